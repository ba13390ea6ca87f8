"""Compares the live state of a zone with Postgres.

A zone that is in use changes while it is read. So what seems to differ is looked at again, and only
what says the very same at each look, and is not being changed by anybody, is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence, Set
from typing import Final

from dispatcher.core.actors import Role, address_of
from dispatcher.core.times import now_ms
from dispatcher.core.trips import Status
from dispatcher.ledger.database import Database, answer_from_row, driver_from_row, trip_from_row
from dispatcher.live.idempotency import done_record
from dispatcher.live.inspection import Inspection, KeptRecord
from dispatcher.live.keys import Keys
from dispatcher.service.drift import Drift, DriftKind, driver_drift, geo_drift, trip_drift

_PAGE_ROWS: Final = 500
#: Two reads that belong together may meet a change between them, but not again and again.
_FURTHER_LOOKS: Final = 3


class Consistency:
    """Looks at one zone at a time. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        inspection: Inspection,
        database: Database,
        fix_age_s: int,
        lease_ms: int,
    ) -> None:
        self._inspection = inspection
        self._database = database
        self._fix_age_ms = fix_age_s * 1000
        self._lease_ms = lease_ms

    async def check(self, keys: Keys, *, rest_s: float = 1.0) -> list[Drift]:
        """What differs, and still does so at further looks, `rest_s` apart; by kind and subject."""
        found = {drift async for page in self._everything(keys) for drift in page}
        for _ in range(_FURTHER_LOOKS):
            if found:
                await asyncio.sleep(rest_s)
                found.intersection_update(await self._look_again(keys, found))
        return sorted(found)

    async def remains(self, keys: Keys, drift: Drift) -> bool:
        """Whether this one thing differs still."""
        return drift in await self._look_again(keys, [drift])

    async def _everything(self, keys: Keys) -> AsyncIterator[list[Drift]]:
        """All that seems to differ, in pages."""
        inspection = self._inspection
        waiting = await inspection.waiting(keys)
        yield await self._trips(keys, sorted(waiting), waiting)
        async for ids in self._pages("live_trip_ids_of_zone", "id", keys):
            yield await self._trips(keys, ids, waiting)
        async for ids in inspection.names(keys, keys.trip("")):
            yield await self._trips(keys, ids, waiting)
        geo_sets, present = await inspection.geo_sets(keys), await inspection.present(keys)
        yield await self._drivers(keys, sorted(set().union(*geo_sets.values())), geo_sets, present)
        async for ids in self._pages("online_driver_ids_of_zone", "user_id", keys):
            yield await self._drivers(keys, ids, geo_sets, present)
        async for ids in inspection.names(keys, keys.driver("")):
            yield await self._drivers(keys, ids, geo_sets, present)
        async for ids in inspection.names(keys, keys.offers("")):
            yield await self._offers(keys, ids)
        yield await self._overdue(keys)
        async for records in inspection.answers(keys):
            yield await self._answers(keys, records)

    async def _look_again(self, keys: Keys, drifts: Collection[Drift]) -> list[Drift]:
        """What differs now of these subjects, without those that are being changed."""
        inspection = self._inspection

        def subjects(*kinds: DriftKind) -> list[str]:
            return sorted({drift.subject for drift in drifts if drift.kind in kinds})

        trips = subjects(DriftKind.TRIP, DriftKind.WAVES, DriftKind.OFFERS)
        drivers = subjects(DriftKind.DRIVER, DriftKind.GEO, DriftKind.PRESENCE)
        changing = await inspection.changing(keys, trip_ids=trips, driver_ids=drivers)
        trips = [trip for trip in trips if trip not in changing]
        drivers = [driver for driver in drivers if driver not in changing]
        found = [
            *await self._trips(keys, trips, await inspection.waiting(keys)),
            *await self._drivers(
                keys, drivers, await inspection.geo_sets(keys), await inspection.present(keys)
            ),
            *await self._offers(keys, trips),
            *await self._overdue(keys),
        ]
        if subjects(DriftKind.ANSWERS):
            async for records in inspection.answers(keys):
                found += await self._answers(keys, records)
        return found

    async def _trips(self, keys: Keys, ids: Sequence[str], waiting: set[str]) -> list[Drift]:
        if not ids:
            return []
        # Redis first: what it is told meanwhile is newer than the rows.
        live = await self._inspection.trips(keys, ids)
        rows = await self._database.rows("trips_by_id", ids=list(ids))
        known = {row["id"]: trip_from_row(row) for row in rows}
        found = [trip_drift(each, live[each], known.get(each)) for each in ids]
        waves = [
            Drift(
                DriftKind.WAVES, each,
                f"has {'a' if each in waiting else 'no'} next wave", live[each].status or "nothing",
            )
            for each in ids
            if (each in waiting) != (live[each].status == Status.PENDING)
        ]  # fmt: skip
        return [*_some(found), *waves]

    async def _drivers(
        self, keys: Keys, ids: Sequence[str], geo_sets: Mapping[str, Set[str]], present: set[str]
    ) -> list[Drift]:
        if not ids:
            return []
        live = await self._inspection.drivers(keys, ids)
        rows = await self._database.rows("states_of_drivers", driver_ids=list(ids))
        known = {row["user_id"]: driver_from_row(row) for row in rows}
        fresh_after_ms = now_ms() - self._fix_age_ms // 2
        found: list[Drift | None] = []
        for each in ids:
            driver = known.get(each)
            found.append(driver_drift(keys.zone, each, live[each], driver))
            vehicles = {live[each].vehicle_type, *(v for v in geo_sets if each in geo_sets[v])}
            found += [
                geo_drift(
                    each, vehicle, live[each],
                    is_listed=each in geo_sets.get(vehicle, ()), fresh_after_ms=fresh_after_ms,
                )
                for vehicle in vehicles
                if vehicle
            ]  # fmt: skip
            is_here = driver is not None and driver.is_online and driver.zone == keys.zone
            if is_here and address_of(Role.DRIVER, each) not in present:
                found.append(Drift(DriftKind.PRESENCE, each, "has no presence", "is online"))
        return _some(found)

    async def _offers(self, keys: Keys, ids: Sequence[str]) -> list[Drift]:
        if not ids:
            return []
        offered = await self._inspection.open_offers(keys, ids)
        live = await self._inspection.trips(keys, ids)
        return [
            Drift(DriftKind.OFFERS, each, f"is on offer to {', '.join(offered[each])}", status)
            for each in ids
            if offered[each] and (status := live[each].status or "nothing") != Status.PENDING
        ]

    async def _overdue(self, keys: Keys) -> list[Drift]:
        overdue = await self._inspection.overdue(keys, now_ms() - 2 * self._lease_ms)
        return [Drift(DriftKind.CLAIMS, claim.entry, "is overdue", "unknown") for claim in overdue]

    async def _answers(self, keys: Keys, records: Sequence[KeptRecord]) -> list[Drift]:
        rows = await self._database.rows(
            "answers_of_keys",
            user_ids=[record.key.user_id for record in records],
            endpoints=[record.key.endpoint for record in records],
            keys=[record.key.key for record in records],
        )
        kept = {
            (row["user_id"], row["endpoint"], row["idempotency_key"]): done_record(answer_from_row(row))
            for row in rows
        }
        found = []
        for key, text in records:
            name = (key.user_id, key.endpoint, key.key)
            if text != kept.get(name):
                is_kept = "another answer" if name in kept else "no answer"
                found.append(Drift(DriftKind.ANSWERS, " ".join(name), "an answer", is_kept))
        return found

    async def _pages(self, query: str, column: str, keys: Keys) -> AsyncIterator[list[str]]:
        after = ""
        while rows := await self._database.rows(
            query, zone=keys.zone, after=after, page_size=_PAGE_ROWS
        ):
            yield [row[column] for row in rows]
            after = rows[-1][column]


def _some(found: Iterable[Drift | None]) -> list[Drift]:
    return [drift for drift in found if drift is not None]
