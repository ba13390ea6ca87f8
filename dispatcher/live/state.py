"""The live state of a zone: trips and drivers, put there from Postgres, and read."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from dispatcher.core.drivers import Driver
from dispatcher.core.idempotency import IdempotencyKey, StoredAnswer
from dispatcher.core.times import now_ms
from dispatcher.core.trips import ACTIVE, FINAL, Status, Trip
from dispatcher.live.hashes import driver_fields, driver_from_hash, flat_to_dict
from dispatcher.live.idempotency import done_record
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.queues import SavedPlace
from dispatcher.live.run_ids import RunIds
from dispatcher.live.shared_scan import SharedScan

#: A finished trip stays this long: late losers are still answered from there.
FINISHED_TTL_S: Final = 3_600
#: A server that dies while it loads a zone leaves it to another one after this long.
_LOADING_MS: Final = 10_000
#: What tries whether Redis can be written goes by itself.
_READY_MS: Final = 1_000
#: Zones that are loaded together ask for the run id of their node together.
_RUN_ID_AGE_S: Final = 0.05
#: The keys of a zone that Postgres can give back, or that follow from those.
_DERIVED: Final = ("trip:", "driver:", "claim:", "geo:", "queue:", "offers:", "inbox:", "passed:")


class Epoch(NamedTuple):
    """When (ms) a zone was loaded, until when a missing key may exist in Postgres (ms), and into
    which Redis."""

    loaded_ms: int
    horizon_ms: int
    run_id: str


class Fix(NamedTuple):
    """A measured position in degrees, and when, in ms since the epoch."""

    lat: float
    lng: float
    at_ms: int

    @classmethod
    def of(cls, lat: float | None, lng: float | None, at_ms: int | None) -> Fix | None:
        """A fix of what may not be known."""
        return None if lat is None or lng is None or at_ms is None else cls(lat, lng, at_ms)


class StateScripts:
    """What Redis holds of trips, drivers, answers and the zone itself. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._run_ids = RunIds(pipeline)
        self._scan = SharedScan(pipeline)

    async def load_trip(
        self,
        keys: Keys,
        trip: Trip,
        *,
        former_driver: str | None = None,
        offered: Sequence[str] = (),
        barred: Sequence[str] = (),
        last_wave: int = 0,
    ) -> bool:
        """Puts a trip from Postgres into the live state. Says whether it was newer.

        `former_driver` may believe to have it, `offered` hold an offer; `barred` and `last_wave` are
        what Postgres knows of the offers of a trip that waits.
        """
        own = keys.trip(trip.id)
        holder = (trip.driver_id if trip.current_status in ACTIVE else None) or ""
        reply: int = await self._pipeline.run(
            "load_trip",
            (
                own,
                keys.driver(holder) if holder else own,
                keys.driver(former_driver) if former_driver else own,
                keys.waves, keys.offers(trip.id), keys.barred(trip.id),
                keys.geo(trip.driver_vehicle_type or trip.vehicle_type), keys.wake,
                *(keys.inbox(driver) for driver in offered),
            ),
            (
                trip.version, trip.id, FINISHED_TTL_S if trip.current_status in FINAL else "",
                holder, former_driver or "", int(trip.current_status is Status.PENDING),
                last_wave, len(barred), *barred, *trip.to_hash(),
            ),
        )  # fmt: skip
        return reply == 1

    async def load_driver(
        self,
        keys: Keys,
        driver: Driver,
        *,
        fix: Fix | None = None,
        place: SavedPlace | None = None,
        former_vehicle: str = "",
    ) -> bool:
        """Puts a driver from Postgres into the live state, with their last fix, and where Redis has lost
        them with their place in a queue.

        Says whether it was newer. A driver who works in another zone is offline in this one. They
        leave the geo set of `former_vehicle`, which the live state knew.
        """
        if driver.zone != keys.zone:
            driver = replace(driver, is_online=False)
        geo = keys.geo(driver.vehicle_type)
        reply: int = await self._pipeline.run(
            "load_driver",
            (
                keys.driver(driver.user_id), geo, keys.seen,
                keys.geo(former_vehicle) if former_vehicle else geo,
                keys.queue(place.queue, driver.vehicle_type) if place else geo,
                keys.vehicles,
            ),
            (
                driver.version, driver.user_id, *(fix or ("", "", "")), *(place or ("", 0, 0)),
                driver.vehicle_type, *driver_fields(driver),
            ),
        )  # fmt: skip
        return reply == 1

    async def read_trip(self, keys: Keys, trip_id: str) -> Trip | None:
        """A trip as Redis has it."""
        hash_ = await self.read_hash(keys.trip(trip_id))
        with self._pipeline.decoding(keys.trip(trip_id)):
            return Trip.from_hash(hash_) if hash_.get("id") else None

    async def read_driver(self, keys: Keys, driver_id: str) -> Driver | None:
        """A driver as Redis has them."""
        hash_ = await self.read_hash(keys.driver(driver_id))
        with self._pipeline.decoding(keys.driver(driver_id)):
            return driver_from_hash(driver_id, keys.zone, hash_) if hash_ else None

    async def read_hash(self, key: str) -> dict[str, str]:
        """All fields of a hash; empty where there is none."""
        hash_ = await self._pipeline.command("HGETALL", key)
        return hash_ if isinstance(hash_, dict) else flat_to_dict(hash_)

    async def is_online(self, keys: Keys, driver_id: str) -> bool:
        """Whether the driver is online in this zone."""
        online: str | None = await self._pipeline.command("HGET", keys.driver(driver_id), "is_online")
        return online == "1"

    async def customer_of(self, keys: Keys, trip_id: str) -> str | None:
        """The customer of a trip."""
        customer: str | None = await self._pipeline.command("HGET", keys.trip(trip_id), "customer_id")
        return customer

    async def driver_of(self, keys: Keys, trip_id: str) -> str | None:
        """The driver of a trip."""
        driver: str | None = await self._pipeline.command("HGET", keys.trip(trip_id), "driver_id")
        return driver or None

    async def version_of(self, keys: Keys, trip_id: str) -> int | None:
        """The version of a trip; None where Redis does not have it."""
        version: str | None = await self._pipeline.command("HGET", keys.trip(trip_id), "version")
        with self._pipeline.decoding(keys.trip(trip_id)):
            return None if version is None else int(version)

    async def changed_by(self, keys: Keys, trip_id: str) -> str:
        """The token of the attempt that holds the claim on a trip, or empty."""
        token: str | None = await self._pipeline.command("GET", keys.trip_claim(trip_id))
        return token or ""

    async def offered_to(self, keys: Keys, trip_id: str) -> list[str]:
        """The drivers who hold an offer of a trip."""
        drivers: list[str] = await self._pipeline.command("ZRANGE", keys.offers(trip_id), 0, -1)
        return drivers

    async def keep_answer(self, keys: Keys, key: IdempotencyKey, answer: StoredAnswer) -> None:
        """Keeps a stored answer for replays, for what is left of its life."""
        left_ms = answer.expires_at_ms - now_ms()
        if left_ms > 0:
            record = keys.idem(key.user_id, key.endpoint, key.key)
            await self._pipeline.command("SET", record, done_record(answer), "PX", left_ms)

    def node_of(self, keys: Keys) -> Hashable:
        """The node that holds a zone."""
        return self._pipeline.node_of(keys.epoch)

    async def read_epoch(self, keys: Keys) -> Epoch | None:
        """When and into which Redis the zone was loaded; None where it is cold."""
        text = await self._pipeline.command("GET", keys.epoch)
        if text is None:
            return None
        with self._pipeline.decoding(keys.epoch):
            loaded_ms, horizon_ms, run_id = text.split(" ")
            return Epoch(int(loaded_ms), int(horizon_ms), run_id)

    async def run_id(self, keys: Keys, *, max_age_s: float = _RUN_ID_AGE_S) -> str:
        """The run id of the Redis that holds the zone, as it was `max_age_s` ago at most."""
        return await self._run_ids.of(keys.epoch, max_age_s=max_age_s)

    async def mark_cold(self, keys: Keys, run_id: str) -> bool:
        """Makes a zone cold that was loaded into another Redis than this one.

        Says whether it is cold.
        """
        reply: int = await self._pipeline.run("mark_cold", (keys.epoch,), (run_id,))
        return reply == 1

    async def begin_loading(self, keys: Keys, token: str) -> bool:
        """Whether this server may load the zone: only one does at a time."""
        won: Any = await self._pipeline.command("SET", keys.loading, token, "NX", "PX", _LOADING_MS)
        return bool(won)

    async def go_on_loading(self, keys: Keys) -> None:
        """The lock of this loading lives on."""
        await self._pipeline.command("PEXPIRE", keys.loading, _LOADING_MS)

    async def end_loading(self, keys: Keys, token: str, epoch: Epoch | None = None) -> bool:
        """The zone is loaded: claims are decided from now on; or, without an epoch, another server
        may try. False where the lock was not this loading's any more: nothing was done."""
        text = f"{epoch.loaded_ms} {epoch.horizon_ms} {epoch.run_id}" if epoch else ""
        reply: int = await self._pipeline.run(
            "end_loading", (keys.loading, keys.epoch, keys.unheard_since, keys.caught_up), (token, text)
        )
        return reply == 1

    async def drop_zone(self, keys: Keys) -> dict[str, Fix]:
        """Drops what Postgres knows better: trips, drivers, claims, and all that follows from them.

        Kept is what Postgres does not know: limits, presence, refusals, drivers who declined, the
        stream, and the list of attempts for the sweeper. Returns the drivers' last fixes.
        """
        fixes: dict[str, Fix] = {}
        if not await self._scan.was_filled(keys):
            return fixes  # nothing but what settles have written since then, which is newer
        # First, so that a settle whose trip or driver stays has its place in them, too.
        await self._pipeline.command("UNLINK", keys.seen, keys.waves)
        drivers = keys.driver("")
        dropped = tuple(keys.prefix + kind for kind in _DERIVED)

        async def drop(found: list[str]) -> None:
            names = [name for name in found if name.startswith(dropped)]
            theirs = [name for name in names if name.startswith(drivers)]
            replies = await asyncio.gather(
                *(self._pipeline.command("HMGET", name, "lat", "lng", "fix_ms") for name in theirs)
            )
            for name, (lat, lng, fix_ms) in zip(theirs, replies, strict=True):
                if fix_ms:
                    with self._pipeline.decoding(name):
                        fixes[name.removeprefix(drivers)] = Fix(float(lat), float(lng), int(fix_ms))
            if names:
                await self._pipeline.command("UNLINK", *names)

        await self._scan.scan(keys, drop)
        return fixes

    async def check_writable(self, keys: Keys) -> None:
        """Raises StoreUnavailable where Redis cannot be written, as a claim would."""
        await self._pipeline.command("SET", keys.ready, now_ms(), "PX", _READY_MS)
