"""Offers in Redis: whose wave is due, who is near, who is shown a trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from dispatcher.core.trips import Trip
from dispatcher.live.hashes import flat_to_dict
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.shapes import check_trip

#: A server that dies while it runs a wave delays that wave by this much.
WAVE_AGAIN_MS: Final = 2_000
#: No deadline of a wave is longer (dispatcher/zones_file.py).
_LONGEST_WAIT_MS: Final = 600_000
#: Trips handed to one server at once.
MAX_TRIPS: Final = 100


class DueWaves(NamedTuple):
    """Trips whose wave is due, and when the next one is (None: none is waiting). Times in ms.

    `scarce` are vehicle types of which there are fewer drivers than trips, so that `auto` matches these.
    Not `is_held`: the zone is another server's, and nothing was handed out.
    """

    now_ms: int
    next_ms: int | None
    trip_ids: list[str]
    scarce: frozenset[str] = frozenset()
    is_held: bool = True


class WaveCode(StrEnum):
    """What a wave came to."""

    OFFERED = "offered"
    NOBODY = "nobody"  # was found
    EXHAUSTED = "exhausted"  # the trip has waited as long as it may
    MOVED = "moved"  # it is not this wave's turn any more


class WaveResult(NamedTuple):
    """What a wave came to; times in ms. `expired` are drivers who let their offer pass; `shared` counts
    those of the `offered` who hold offers of other trips."""

    code: WaveCode
    now_ms: int
    wave: int
    deadline_ms: int
    offered: list[str]
    expired: list[str]
    shared: int = 0


class OpenOffer(NamedTuple):
    """An offer that its driver may still take; times in ms."""

    trip_id: str
    deadline_ms: int
    left_ms: int


class Candidate(NamedTuple):
    """A driver near a pickup."""

    driver_id: str
    distance_m: float


class TripBeforeWave(NamedTuple):
    """A trip as Redis has it, how often drivers were looked for before, and whether its first wave
    `goes_on`: a round's matched driver was asked ahead of the others."""

    trip: Trip
    round_number: int
    goes_on: bool


def goes_on(hash_: Mapping[str, str]) -> bool:
    """Whether the wave of a trip's hash has begun with a head start, and not been asked as a whole."""
    return bool(hash_.get("head_start")) and hash_["head_start"] == hash_.get("round", "0")


class OfferScripts:
    """The offers of a zone. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def claim_waves(
        self,
        keys: Keys,
        *,
        max_trips: int = MAX_TRIPS,
        again_ms: int = WAVE_AGAIN_MS,
        zone_fence: str = "",
    ) -> DueWaves:
        """The trips whose next wave is due, each handed to one server at a time.

        Should that server fail, they are due again after `again_ms`. `zone_fence` is that by which the
        caller holds the zone; an empty one needs none.
        """
        now_ms, next_ms, due, scarce, is_held = await self._pipeline.run(
            "claim_waves",
            (keys.waves, keys.matching, keys.holder),
            (max_trips, again_ms, _LONGEST_WAIT_MS, zone_fence),
        )
        return DueWaves(now_ms, next_ms or None, due, frozenset(scarce), is_held == 1)

    async def offer_trip(
        self,
        keys: Keys,
        trip: Trip,
        trip_json: str,
        candidates: Sequence[Candidate],
        *,
        round_number: int,
        size: int,
        answer_ms: int,
        again_ms: int,
        max_open_offers: int,
        fix_age_ms: int,
        max_wait_ms: int,
        ask_again: bool,
        fence: int | None = None,
        head_start_ms: int = 0,
        queue: str = "",
        queued: int = 0,
        zone_fence: str = "",
        reach_m: float | None = None,
    ) -> WaveResult:
        """Runs one wave over the candidates, in the order of asking.

        `fence` is that of the round of matching that planned it, `reach_m` how far that looked. With a
        head start the first candidate alone is asked, and the same wave goes on after it. `queued`
        candidates, the first ones, are asked for their place in the `queue` at which the pickup is. By
        `zone_fence` the zone is held.
        """
        names = [
            keys.trip(trip.id), keys.trip_claim(trip.id), keys.offers(trip.id),
            keys.barred(trip.id), keys.passed(trip.id), keys.waves, keys.present, keys.channel(""),
            keys.geo(trip.vehicle_type), keys.matching, keys.turned_down, keys.holder,
        ]  # fmt: skip
        args: list[Any] = [
            trip.id, round_number, size, answer_ms, again_ms, max_open_offers, fix_age_ms,
            max_wait_ms, int(ask_again), trip_json, trip.vehicle_type,
            "" if fence is None else fence, head_start_ms, queue, queued, zone_fence,
            "" if reach_m is None else reach_m,
        ]  # fmt: skip
        for driver_id, distance_m in candidates:
            names += (keys.driver(driver_id), keys.inbox(driver_id))
            args += (driver_id, f"{distance_m:.1f}")
        code, *rest = await self._pipeline.run("offer_trip", names, args)
        return WaveResult(WaveCode(code), *rest)

    async def read_waiting(self, keys: Keys, trip_id: str) -> TripBeforeWave | None:
        """A trip as Redis has it."""
        flat = await self._pipeline.command("HGETALL", keys.trip(trip_id))
        hash_ = flat if isinstance(flat, dict) else flat_to_dict(flat)
        if not hash_.get("id"):
            return None
        with self._pipeline.decoding(keys.trip(trip_id)):
            trip = check_trip(hash_, trip_id)
            return TripBeforeWave(trip, int(hash_.get("round", "0")), goes_on(hash_))

    async def next_waves(self, keys: Keys, trip_ids: Sequence[str]) -> dict[str, int | None]:
        """When the next wave of each trip is due (ms); None where none is."""
        if not trip_ids:
            return {}
        due = await self._pipeline.command("ZMSCORE", keys.waves, *trip_ids)
        return {
            trip_id: None if at_ms is None else int(float(at_ms))
            for trip_id, at_ms in zip(trip_ids, due, strict=True)
        }

    async def forget_wave(self, keys: Keys, trip_id: str) -> None:
        """There is no such trip: no wave is due."""
        await self._pipeline.command("ZREM", keys.waves, trip_id)

    async def nearest(
        self, keys: Keys, trip: Trip, *, radius_m: float, max_drivers: int
    ) -> list[Candidate]:
        """Drivers around a trip's pickup, nearest first."""
        found = await self._pipeline.command(
            "GEOSEARCH", keys.geo(trip.vehicle_type),
            "FROMLONLAT", trip.pickup_lng, trip.pickup_lat, "BYRADIUS", radius_m, "m",
            "ASC", "COUNT", max_drivers, "WITHDIST",
        )  # fmt: skip
        return [Candidate(driver, float(distance)) for driver, distance in found]

    async def read_offers(self, keys: Keys, driver_id: str) -> list[OpenOffer]:
        """The open offers of a driver."""
        reply = await self._pipeline.run("read_offers", (keys.inbox(driver_id),), ())
        return [OpenOffer(*offer) for offer in reply]
