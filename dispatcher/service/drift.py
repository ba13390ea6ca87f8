"""Drift: where Redis and Postgres say different things of a zone that is at rest.

A busy zone is never equal: a commit is always a moment before its settle. So what differs is looked at
again, and is drift only once it was seen the same twice, while nobody held a claim on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from dispatcher.ledger.database import Database
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.keys import Keys, keys_of, names_of_driver, names_of_trip, names_of_zone
from dispatcher.live.mending import Mending
from dispatcher.service.drift_looks import Look, LookCode, Looks

#: How many things are compared together: what bounds the memory of a comparison.
_CHUNK: Final = 500
#: Beside requests: comparing so many holds up the event loop for a ms or two.
_CHUNK_OF_A_JOB: Final = 50
#: A job rests for so many times as long as that took, so that a large zone does not feel its look.
_RESTS: Final = 4
#: The newest of a zone's answers that a job compares: a client repeats what it has just sent.
_ANSWERS_OF_A_JOB: Final = 1_000
#: A bigint is no greater.
_LAST_ID: Final = 2**63 - 1
#: How often a difference is looked at again before it is told though a claim is held on it.
_MAX_LOOKS: Final = 30


class DriftKind(StrEnum):
    """What differs."""

    ZONE = "zone"
    TRIP = "trip"
    DRIVER = "driver"
    GEO = "geo"
    QUEUE = "queue"
    OFFERS = "offers"
    CLAIMS = "claims"
    PRESENCE = "presence"
    ANSWERS = "answers"
    VALUES = "values"


class Drift(NamedTuple):
    """One thing that differs, and how."""

    zone: str
    kind: DriftKind
    subject: str
    detail: str


class DriftCheck:
    """Compares Redis with Postgres. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        scripts: ComparisonScripts,
        database: Database,
        looks: Looks,
        mending: Mending,
        pause_s: float = 0.5,
    ) -> None:
        self._scripts = scripts
        self._database = database
        self._looks = looks
        self._mending = mending
        self._pause_s = pause_s

    async def check(self, zone: str, *, every_key: bool) -> AsyncIterator[Drift]:
        """What differs in a zone, as it is found. With `every_key`, Redis' whole key space is gone
        through; without, what Postgres and the zone's own indexes name, which is cheap."""
        keys = keys_of(zone)
        is_sound = True
        async for drift in self._values(keys, every_key=every_key):
            yield drift
            is_sound &= not await self.still_differs(drift)
        if not is_sound:
            return  # nothing else can be compared with what cannot be read
        if not await self._looks.is_warm(keys):
            yield Drift(zone, DriftKind.ZONE, zone, "is cold: its live state is not loaded")
            return
        chunk = _CHUNK if every_key else _CHUNK_OF_A_JOB
        sources = [
            self._from_postgres(keys),
            self._from_indexes(keys),
            self._answers(keys, every_key=every_key),
        ]
        if every_key:
            sources.append(self._from_every_key(keys))
        for source in sources:
            async for kind, ids in source:
                for start in range(0, len(ids), chunk):
                    some = ids[start : start + chunk]
                    async for drift in self._compare(keys, kind, some, rests=not every_key):
                        yield drift

    async def still_differs(self, drift: Drift) -> bool:
        """Whether something that differed does so now."""
        looked = await self._look(keys_of(drift.zone), drift.kind, [drift.subject])
        return drift.subject in looked

    async def _compare(
        self, keys: Keys, kind: DriftKind, ids: Sequence[str], *, rests: bool
    ) -> AsyncIterator[Drift]:
        before: Mapping[str, Look] = {}
        began_s = time.monotonic()
        found = await self._look(keys, kind, ids)
        if rests:
            await self._rest(began_s)
        for _ in range(_MAX_LOOKS):
            if not found:
                return
            for subject, look in found.items():
                if look == before.get(subject) and look.code is LookCode.AT_REST:
                    yield Drift(keys.zone, kind, subject, look.detail)
            before = {
                subject: look
                for subject, look in found.items()
                if not (look == before.get(subject) and look.code is LookCode.AT_REST)
            }
            if not before:
                return
            await asyncio.sleep(self._pause_s)
            found = await self._look(keys, kind, list(before))
        for subject, look in before.items():
            yield Drift(keys.zone, kind, subject, look.detail + ", and a claim is held all the time")

    async def _rest(self, began_s: float) -> None:
        """After work that began then, by the monotonic clock; not for long where an engine was slow."""
        await asyncio.sleep(_RESTS * min(time.monotonic() - began_s, self._pause_s))

    async def _look(self, keys: Keys, kind: DriftKind, ids: Sequence[str]) -> Mapping[str, Look]:
        looks = self._looks
        look = {
            DriftKind.ZONE: looks.zone, DriftKind.TRIP: looks.trips, DriftKind.DRIVER: looks.drivers,
            DriftKind.GEO: looks.places, DriftKind.QUEUE: looks.queues, DriftKind.OFFERS: looks.offers,
            DriftKind.CLAIMS: looks.claims, DriftKind.PRESENCE: looks.presences,
            DriftKind.ANSWERS: looks.answers, DriftKind.VALUES: self._unsound,
        }[kind]  # fmt: skip
        return await look(keys, list(dict.fromkeys(ids)))

    async def _unsound(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Names of keys that hold what they should not."""
        faults = await self._mending.find(ids, deep=True)
        return {name: Look(LookCode.AT_REST, fault) for name, fault in faults.items()}

    async def _values(self, keys: Keys, *, every_key: bool) -> AsyncIterator[Drift]:
        """Keys of the zone that hold what they should not. Beside requests, only types and lives are
        looked at: what a trip or driver says is compared with Postgres anyway."""
        async for names in self._names(keys, every_key=every_key):
            for start in range(0, len(names), _CHUNK_OF_A_JOB):
                some = names[start : start + _CHUNK_OF_A_JOB]
                began_s = time.monotonic()
                faults = await self._mending.find(some, deep=every_key)
                if not every_key:
                    await self._rest(began_s)
                for name, fault in faults.items():
                    yield Drift(keys.zone, DriftKind.VALUES, name, fault)

    async def _names(self, keys: Keys, *, every_key: bool) -> AsyncIterator[list[str]]:
        yield names_of_zone(keys)
        if every_key:
            async for names in self._scripts.names(keys):
                yield names
            return
        async for ids in self._pages("live_trip_ids_of_zone", "id", keys):
            yield [name for trip_id in ids for name in names_of_trip(keys, trip_id)]
        async for ids in self._pages("online_driver_ids_of_zone", "user_id", keys):
            yield [name for driver_id in ids for name in names_of_driver(keys, driver_id)]

    async def _from_postgres(self, keys: Keys) -> AsyncIterator[tuple[DriftKind, list[str]]]:
        async for ids in self._pages("live_trip_ids_of_zone", "id", keys):
            yield DriftKind.TRIP, ids
            yield DriftKind.OFFERS, [f"trip:{trip_id}" for trip_id in ids]
        async for ids in self._pages("online_driver_ids_of_zone", "user_id", keys):
            for kind in (DriftKind.DRIVER, DriftKind.GEO, DriftKind.QUEUE, DriftKind.PRESENCE):
                yield kind, ids
            yield DriftKind.OFFERS, [f"driver:{driver_id}" for driver_id in ids]

    async def _from_indexes(self, keys: Keys) -> AsyncIterator[tuple[DriftKind, list[str]]]:
        async for ids in self._scripts.members(keys.waves):
            yield DriftKind.TRIP, ids
        for vehicle_type in await self._scripts.vehicles(keys):
            async for ids in self._scripts.members(keys.geo(vehicle_type)):
                yield DriftKind.GEO, ids
        async for ids in self._scripts.members(keys.seen):
            yield DriftKind.DRIVER, ids
        yield DriftKind.CLAIMS, await self._looks.overdue_claims(keys)

    async def _from_every_key(self, keys: Keys) -> AsyncIterator[tuple[DriftKind, list[str]]]:
        kinds = ("trip", "driver", "offers", "inbox")
        async for found in self._scripts.keys_of_zone(keys, kinds):
            yield DriftKind.TRIP, found["trip"]
            yield DriftKind.DRIVER, found["driver"]
            yield DriftKind.OFFERS, [f"trip:{trip_id}" for trip_id in found["offers"]]
            yield DriftKind.OFFERS, [f"driver:{driver_id}" for driver_id in found["inbox"]]

    async def _answers(
        self, keys: Keys, *, every_key: bool
    ) -> AsyncIterator[tuple[DriftKind, list[str]]]:
        before, looked = _LAST_ID, 0
        while rows := await self._database.rows(
            "answer_ids_of_zone", zone=keys.zone, before=before, page_size=_CHUNK
        ):
            yield DriftKind.ANSWERS, [str(row["id"]) for row in rows]
            before, looked = rows[-1]["id"], looked + len(rows)
            if not every_key and looked >= _ANSWERS_OF_A_JOB:
                return

    async def _pages(self, query: str, column: str, keys: Keys) -> AsyncIterator[list[str]]:
        after = ""
        while rows := await self._database.rows(query, zone=keys.zone, after=after, page_size=_CHUNK):
            yield [row[column] for row in rows]
            after = rows[-1][column]
