"""One look at several things of a zone: where Redis says something else of them than Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from dispatcher.core.actors import Role, address_of
from dispatcher.core.drivers import Driver, is_free
from dispatcher.core.trips import FINAL, Status, Trip
from dispatcher.ledger.database import Database, answer_from_row, driver_from_row, trip_from_row
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.idempotency import done_record, is_asked_of_postgres
from dispatcher.live.keys import Keys
from dispatcher.live.state import StateScripts
from dispatcher.service.queue_looks import QueueLooks

#: A claim that is overdue for longer was not swept, and a geo member whose fix is older by more neither.
_SWEPT_AFTER_MS: Final = 30_000
#: Follows from the driver's row, which may change without the trip.
_NOT_THE_TRIPS: Final = "driver_vehicle_type"


class LookCode(StrEnum):
    """Whether what differs may be on its way."""

    AT_REST = "at_rest"
    CLAIMED = "claimed"


class Look(NamedTuple):
    """How something differs. `detail` has the versions of both sides, where there are any: looks that
    are equal saw the same."""

    code: LookCode
    detail: str


class Looks:
    """What differs of the ids that are asked for; ids of which nothing differs are left out."""

    def __init__(
        self,
        *,
        scripts: ComparisonScripts,
        state: StateScripts,
        queues: QueueLooks,
        database: Database,
        fix_age_s: int,
        presence_ttl_s: int,
    ) -> None:
        self._scripts = scripts
        self._state = state
        self._queues = queues
        self._database = database
        self._fix_age_ms = fix_age_s * 1000
        self._presence_ttl_ms = presence_ttl_s * 1000

    async def is_warm(self, keys: Keys) -> bool:
        """Whether the zone is loaded into the Redis that answers."""
        epoch = await self._state.read_epoch(keys)
        return epoch is not None and epoch.run_id == await self._state.run_id(keys)

    async def overdue_claims(self, keys: Keys) -> list[str]:
        """Attempts that no server has swept; a page at most."""
        before_ms = await self._now_ms(keys) - _SWEPT_AFTER_MS
        return await self._scripts.overdue(keys, before_ms)

    async def zone(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Zones that are cold."""
        is_warm = await self.is_warm(keys)
        return {} if is_warm else {name: Look(LookCode.AT_REST, "is cold") for name in ids}

    async def trips(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Trips by id: columns, and whether one that waits has a wave to come."""
        rows = await self._database.rows("trips_by_id", ids=ids)
        known = {row["id"]: trip_from_row(row) for row in rows}
        hashes = await self._scripts.hashes([keys.trip(trip_id) for trip_id in ids])
        waves = await self._scripts.scores([(keys.waves, trip_id) for trip_id in ids])
        found = {}
        for trip_id, hash_, wave in zip(ids, hashes, waves, strict=True):
            detail = _trip_differs(known.get(trip_id), hash_)
            if not detail and known.get(trip_id) is None and wave is not None:
                detail = "waits for a wave, and is not in Postgres"
            if detail:
                found[trip_id] = detail
        return await self._with_claims(found, [keys.trip_claim(trip_id) for trip_id in found])

    async def drivers(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Drivers by id: availability, vehicle and trip."""
        known = await self._drivers_by_id(ids)
        hashes = await self._scripts.hashes([keys.driver(driver_id) for driver_id in ids])
        found = {}
        for driver_id, hash_ in zip(ids, hashes, strict=True):
            if detail := _driver_differs(keys.zone, known.get(driver_id), hash_):
                found[driver_id] = detail
        return await self._with_claims(found, [keys.driver_claim(driver_id) for driver_id in found])

    async def places(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Drivers by id: whether they are in the geo set of their vehicle type, and in no other."""
        vehicles = await self._scripts.vehicles(keys)
        hashes = await self._scripts.hashes([keys.driver(driver_id) for driver_id in ids])
        pairs = [(keys.geo(vehicle), driver_id) for driver_id in ids for vehicle in vehicles]
        scores = iter(await self._scripts.scores(pairs))
        now_ms = await self._now_ms(keys)
        found = {}
        for driver_id, hash_ in zip(ids, hashes, strict=True):
            inside = {vehicle for vehicle in vehicles if next(scores) is not None}
            if detail := self._place_differs(hash_, inside, now_ms):
                found[driver_id] = detail
        return await self._with_claims(found, [keys.driver_claim(driver_id) for driver_id in found])

    def _place_differs(self, hash_: dict[str, str], inside: set[str], now_ms: int) -> str:
        own = hash_.get("vehicle_type", "")
        if others := sorted(inside - {own}):
            return f"is in the geo set {others[0]}, and drives {own or 'nothing'}"
        may_be_offered = is_free(
            is_online=hash_.get("is_online") == "1",
            availability_status=hash_.get("availability_status", ""),
            trip_id=hash_.get("trip_id"),
        )
        fix_ms = int(hash_.get("fix_ms") or 0)
        age_ms = now_ms - fix_ms
        at = f"(version {hash_.get('version')}, fix of {fix_ms})"
        if inside and not may_be_offered:
            return f"is in the geo set {own}, and may not be offered a trip {at}"
        if inside and age_ms > self._fix_age_ms + _SWEPT_AFTER_MS:
            return f"is in the geo set {own}, and nobody swept it {at}"
        # With another vehicle or state, the next fix brings them there.
        has_moved = fix_ms <= int(hash_.get("updated_at") or 0)
        if may_be_offered and not inside and not has_moved and age_ms < self._fix_age_ms:
            return f"is in no geo set, and may be offered a trip {at}"
        return ""

    async def queues(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Drivers by id: their places in queues."""
        found = await self._queues.differences(keys, ids)
        return await self._with_claims(found, [keys.driver_claim(driver_id) for driver_id in found])

    async def offers(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """`trip:ID` and `driver:ID`: open offers that only one side knows, or of a trip that does not
        wait; and trips that wait without a wave to come."""
        now_ms = await self._now_ms(keys)
        trips = [name.partition(":")[2] for name in ids if name.startswith("trip:")]
        drivers = [name.partition(":")[2] for name in ids if name.startswith("driver:")]
        found: dict[str, str] = {}
        hashes = await self._scripts.hashes([keys.trip(trip_id) for trip_id in trips])
        held = await self._scripts.open_members([keys.offers(t) for t in trips], now_ms)
        waves = await self._scripts.scores([(keys.waves, trip_id) for trip_id in trips])
        for trip_id, hash_, offered, wave in zip(trips, hashes, held, waves, strict=True):
            status = hash_.get("current_status", "unknown")
            at = f"(version {hash_.get('version')})"
            inboxes = await self._scripts.scores([(keys.inbox(d), trip_id) for d in offered])
            lost = [d for d, score in zip(offered, inboxes, strict=True) if score is None]
            if offered and status != Status.PENDING:
                found[f"trip:{trip_id}"] = f"is on offer to {offered[0]}, and is {status} {at}"
            elif lost:
                found[f"trip:{trip_id}"] = f"is on offer to {lost[0]}, whose inbox does not have it {at}"
            elif status == Status.PENDING and wave is None:
                found[f"trip:{trip_id}"] = f"waits, and no wave is to come {at}"
        shown = await self._scripts.open_members(
            [keys.inbox(driver_id) for driver_id in drivers], now_ms
        )
        for driver_id, inbox in zip(drivers, shown, strict=True):
            theirs = await self._scripts.scores([(keys.offers(t), driver_id) for t in inbox])
            lost = [t for t, score in zip(inbox, theirs, strict=True) if score is None]
            if lost:
                found[f"driver:{driver_id}"] = (
                    f"has {lost[0]} in the inbox, which is not on offer to them"
                )
        claims = [
            keys.trip_claim(name[5:]) if name.startswith("trip:") else keys.driver_claim(name[7:])
            for name in found
        ]
        return await self._with_claims(found, claims)

    async def claims(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Entries of attempts whose lease is long over."""
        before_ms = await self._now_ms(keys) - _SWEPT_AFTER_MS
        ends = await self._scripts.scores([(keys.claims, entry) for entry in ids])
        return {
            entry: Look(LookCode.AT_REST, f"its lease ended at {end:.0f}, and nobody settled it")
            for entry, end in zip(ids, ends, strict=True)
            if end is not None and end < before_ms
        }

    async def presences(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Drivers who have been online for longer than a presence lives, and have none."""
        now_ms = await self._now_ms(keys)
        known = await self._drivers_by_id(ids)
        ends = await self._scripts.scores([(keys.present, address_of(Role.DRIVER, d)) for d in ids])
        found = {}
        for driver_id, end in zip(ids, ends, strict=True):
            driver = known.get(driver_id)
            is_here = driver is not None and driver.zone == keys.zone and driver.is_online
            since_ms = driver.updated_at if driver is not None else now_ms
            if end is None and is_here and now_ms - since_ms > self._presence_ttl_ms:
                found[driver_id] = Look(LookCode.AT_REST, "is online, and no presence of theirs ends")
        return found

    async def answers(self, keys: Keys, ids: Sequence[str]) -> dict[str, Look]:
        """Stored answers by the id of their row: whether a replay would give them."""
        rows = await self._database.rows("answers_by_id", ids=[int(i) for i in ids])
        names = [keys.idem(r["user_id"], r["endpoint"], r["idempotency_key"]) for r in rows]
        records = await self._scripts.values(names)
        epoch = await self._state.read_epoch(keys)
        # A key that Redis does not know is asked of Postgres until then.
        now_ms = await self._now_ms(keys)
        is_asked = epoch is None or epoch.horizon_ms > now_ms
        found = {}
        for row, record in zip(rows, records, strict=True):
            subject = f"{row['user_id']} {row['endpoint']} {row['idempotency_key']}"
            if record is None:
                if not is_asked:
                    found[str(row["id"])] = Look(LookCode.AT_REST, f"{subject}: is not in Redis")
            elif record != done_record(answer := answer_from_row(row)):
                if is_asked_of_postgres(record, answer.fingerprint, now_ms):
                    continue
                code = LookCode.CLAIMED if record.startswith("L ") else LookCode.AT_REST
                found[str(row["id"])] = Look(code, f"{subject}: Redis has another answer")
        return found

    async def _now_ms(self, keys: Keys) -> int:
        now_ms, _ = await self._scripts.read_clock(keys)
        return now_ms

    async def _drivers_by_id(self, ids: Sequence[str]) -> dict[str, Driver]:
        rows = await self._database.rows("drivers_by_id", ids=ids)
        return {row["user_id"]: driver_from_row(row) for row in rows}

    async def _with_claims(self, found: dict[str, str], claims: Sequence[str]) -> dict[str, Look]:
        """The differences, and whether an attempt holds the thing: then it may be on its way."""
        held = await self._scripts.values(claims)
        return {
            subject: Look(LookCode.CLAIMED if claim else LookCode.AT_REST, detail)
            for (subject, detail), claim in zip(found.items(), held, strict=True)
        }


def _trip_differs(row: Trip | None, hash_: dict[str, str]) -> str:
    if not hash_.get("id"):
        is_live = row is not None and row.current_status not in FINAL
        return f"is not in Redis (Postgres: {_version(row)})" if is_live else ""
    if row is None:
        return f"is not in Postgres (Redis: version {hash_.get('version')})"
    try:
        live = Trip.from_hash(hash_)
    except (KeyError, ValueError, TypeError) as error:
        return f"cannot be read in Redis: {error!r}"
    for name, ours, theirs in zip(Trip._fields, live, row, strict=True):
        if ours != theirs and name != _NOT_THE_TRIPS:
            at = f"version {live.version} in Redis, {row.version} in Postgres"
            return f"{name} is {ours} in Redis, {theirs} in Postgres ({at})"
    return ""


def _driver_differs(zone: str, row: Driver | None, hash_: dict[str, str]) -> str:
    is_here = row is not None and row.zone == zone
    if "is_online" not in hash_:
        must_be_known = row is not None and is_here and (row.is_online or row.trip_id)
        return "is not in Redis" if must_be_known or hash_ else ""
    if row is None:
        return "is not in Postgres"
    ours: dict[str, object] = {
        "zone": hash_.get("zone", zone),
        "is_online": hash_["is_online"] == "1",
        "availability_status": hash_.get("availability_status"),
        "vehicle_type": hash_.get("vehicle_type"),
        "trip_id": hash_.get("trip_id") or None,
        "version": hash_.get("version"),
    }
    theirs: dict[str, object] = {
        "zone": zone,
        "is_online": row.is_online,
        "availability_status": str(row.availability_status),
        "vehicle_type": row.vehicle_type,
        "trip_id": row.trip_id,
        "version": str(row.version),
    }
    if not is_here:  # what stays behind of one who has moved is that they are not online here
        ours, theirs = {"is_online": ours["is_online"]}, {"is_online": False}
    for name, value in ours.items():
        if value != theirs[name]:
            at = f"version {hash_.get('version')} in Redis, {row.version} in Postgres"
            return f"{name} is {value} in Redis, {theirs[name]} in Postgres ({at})"
    return ""


def _version(trip: Trip | None) -> str:
    return "nothing" if trip is None else f"version {trip.version}, {trip.current_status}"
