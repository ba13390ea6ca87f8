"""The live state of a zone: trips and drivers, put there from Postgres, and read."""

from __future__ import annotations

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

#: A finished trip stays this long: late losers are still answered from there.
FINISHED_TTL_S: Final = 3_600
#: A server that dies while it loads a zone leaves it to another one after this long.
_LOADING_MS: Final = 30_000
#: What tries whether Redis can be written goes by itself.
_READY_MS: Final = 1_000


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


class StateScripts:
    """What Redis holds of trips, drivers, answers and the zone itself. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def load_trip(self, keys: Keys, trip: Trip, *, former_driver: str | None = None) -> bool:
        """Puts a trip from Postgres into the live state. Says whether it was newer."""
        own = keys.trip(trip.id)
        is_bound = trip.driver_id is not None and trip.current_status in ACTIVE
        reply: int = await self._pipeline.run(
            "load_trip",
            (
                own,
                keys.driver(trip.driver_id) if is_bound and trip.driver_id else own,
                keys.driver(former_driver) if former_driver else own,
                keys.waves,
            ),
            (
                trip.version, trip.id, FINISHED_TTL_S if trip.current_status in FINAL else "",
                int(is_bound), int(trip.current_status is Status.PENDING), *trip.to_hash(),
            ),
        )  # fmt: skip
        return reply == 1

    async def load_driver(self, keys: Keys, driver: Driver, *, fix: Fix | None = None) -> bool:
        """Puts a driver from Postgres into the live state, with their last fix.

        Says whether it was newer. A driver who works in another zone is offline in this one.
        """
        if driver.zone != keys.zone:
            driver = replace(driver, is_online=False)
        reply: int = await self._pipeline.run(
            "load_driver",
            (keys.driver(driver.user_id), keys.geo(driver.vehicle_type), keys.seen),
            (driver.version, driver.user_id, *(fix or ("", "", "")), *driver_fields(driver)),
        )
        return reply == 1

    async def read_trip(self, keys: Keys, trip_id: str) -> Trip | None:
        """A trip as Redis has it."""
        hash_ = await self.read_hash(keys.trip(trip_id))
        return Trip.from_hash(hash_) if hash_.get("id") else None

    async def read_driver(self, keys: Keys, driver_id: str) -> Driver | None:
        """A driver as Redis has them."""
        hash_ = await self.read_hash(keys.driver(driver_id))
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

    async def keep_answer(self, keys: Keys, key: IdempotencyKey, answer: StoredAnswer) -> None:
        """Keeps a stored answer for replays, for what is left of its life."""
        left_ms = answer.expires_at_ms - now_ms()
        if left_ms > 0:
            record = keys.idem(key.user_id, key.endpoint, key.key)
            await self._pipeline.command("SET", record, done_record(answer), "PX", left_ms)

    async def read_epoch(self, keys: Keys) -> Epoch | None:
        """When and into which Redis the zone was loaded; None where it is cold."""
        text = await self._pipeline.command("GET", keys.epoch)
        if text is None:
            return None
        loaded_ms, horizon_ms, run_id = text.split(" ")
        return Epoch(int(loaded_ms), int(horizon_ms), run_id)

    async def write_epoch(self, keys: Keys, epoch: Epoch) -> None:
        """The zone is loaded: claims are decided from now on."""
        await self._pipeline.command(
            "SET", keys.epoch, f"{epoch.loaded_ms} {epoch.horizon_ms} {epoch.run_id}"
        )

    async def run_id(self, keys: Keys) -> str:
        """The run id of the Redis that holds the zone."""
        return await self._pipeline.run_id(keys.epoch)

    async def begin_loading(self, keys: Keys, token: str) -> bool:
        """Whether this server may load the zone: only one does at a time."""
        won: Any = await self._pipeline.command("SET", keys.loading, token, "NX", "PX", _LOADING_MS)
        return bool(won)

    async def end_loading(self, keys: Keys) -> None:
        """The zone is loaded, or another server may try."""
        await self._pipeline.command("DEL", keys.loading)

    async def check_writable(self, keys: Keys) -> None:
        """Raises StoreUnavailable where Redis cannot be written, as a claim would."""
        await self._pipeline.command("SET", keys.ready, now_ms(), "PX", _READY_MS)
