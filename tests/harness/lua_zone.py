"""A zone of Redis for tests of the scripts: its keys, its scripts, and a clock that is set by hand.

The scripts' only look at the time, `redis.call('TIME')`, is replaced by a look at a key, so that
leases, windows and deadlines are passed without waiting, on fakeredis and on the real engine alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Literal

import fakeredis
import redis.asyncio

from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import Limit, Rate
from dispatcher.core.trips import Trip
from dispatcher.live.claim_results import AcceptClaimed, NotClaimed
from dispatcher.live.claims import Attempt, ClaimScripts, Resolved
from dispatcher.live.hashes import driver_fields
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.limits import Admission, LimitScripts
from dispatcher.live.matching import MatchScripts
from dispatcher.live.offers import OfferScripts
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.positions import PositionScripts
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.scripts import LuaScripts
from dispatcher.live.settle import Settler
from dispatcher.live.state import StateScripts

BACKENDS = ("fakeredis", "valkey")
START_MS = 1_795_000_000_000
LEASE_MS = 10_000
MARGIN_MS = 5  # an idempotency lease outlives the claims by this
FIX_AGE_MS = 60_000
_CLOCK = "clock-of-the-test"
_TOKENS = itertools.count(1)


def limit(max_calls: int, window_s: int = 60, name: str = "general", subject: str = "d1") -> Limit:
    """A limit of `max_calls` in any window of `window_s` seconds."""
    return Limit(name, subject, Rate(max_calls, window_s))


def key(text: str = "k1", asked: str = "accept", user: str = "d1") -> IdempotencyKey:
    """A user's key of a request whose fingerprint is that of `asked`."""
    return IdempotencyKey(user, "/act", text, hashlib.sha256(asked.encode()).hexdigest())


def scripts_with_a_clock_set_by_hand() -> LuaScripts:
    """The scripts, whose only look at the time is replaced by a look at a key."""
    by_hand = f"redis.call('HMGET', '{_CLOCK}', 's', 'us')"
    texts = LuaScripts.read().texts
    return LuaScripts(
        {name: text.replace("redis.call('TIME')", by_hand) for name, text in texts.items()}
    )


class Zone:
    """One zone, `z`; `redis` speaks text, `raw` bytes."""

    def __init__(self, client: Any, raw: Any) -> None:
        self.redis = client
        self.raw = raw
        self.keys = keys_of("z")
        self.pipeline = Pipeline(client, scripts_with_a_clock_set_by_hand())
        self.claims = ClaimScripts(self.pipeline)
        self.settler = Settler(self.pipeline, fix_age_s=FIX_AGE_MS // 1000)
        self.state = StateScripts(self.pipeline)
        self.offers = OfferScripts(self.pipeline)
        self.matching = MatchScripts(self.pipeline)
        self.positions = PositionScripts(self.pipeline)
        self.presence = PresenceScripts(self.pipeline)
        self.limits = LimitScripts(self.pipeline)
        self.now_us = START_MS * 1000

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    async def advance(self, ms: float = 0, us: int = 0) -> None:
        """Lets time pass for the scripts."""
        self.now_us += round(ms * 1000) + us
        seconds, micros = divmod(self.now_us, 1_000_000)
        await self.redis.hset(_CLOCK, mapping={"s": seconds, "us": micros})

    async def warm(self, horizon_ms: int = 0) -> None:
        await self.redis.set(self.keys.epoch, f"{START_MS} {horizon_ms} run-id")

    async def trip(self, suffix: str = "1", **columns: Any) -> Trip:
        """A trip in the live state; pending, version 0, unless said otherwise."""
        trip = make_trip(suffix, **columns)
        flat = trip.to_hash()
        await self.redis.hset(
            self.keys.trip(trip.id), mapping=dict(zip(flat[::2], flat[1::2], strict=True))
        )
        return trip

    async def driver(self, name: str = "d1", *, trip_id: str = "", fix_ms: int | None = None,
                     **columns: Any) -> Driver:  # fmt: skip
        """A driver in the live state; online, available, of version 0, unless said otherwise."""
        driver = make_driver(name, **columns)
        flat = [*driver_fields(driver), "trip_id", trip_id]
        if fix_ms is not None:
            flat += ("lat", "50.1", "lng", "8.6", "fix_ms", str(fix_ms))
        await self.redis.hset(
            self.keys.driver(name), mapping=dict(zip(flat[::2], flat[1::2], strict=True))
        )
        return driver

    def attempt(
        self,
        trip_id: str = "z_1",
        driver_id: str = "d1",
        *,
        key: IdempotencyKey | None = None,
        limits: Sequence[Limit] = (),
        resolved: Iterable[Resolved] = (),
        token: str | None = None,
    ) -> Attempt:
        """An attempt of a token that nobody has had yet, unless said otherwise."""
        name = token or f"node.{next(_TOKENS)}"
        return Attempt(
            name, trip_id, driver_id, LEASE_MS, key, 86_400_000, tuple(limits), frozenset(resolved)
        )

    async def accept(
        self,
        attempt: Attempt,
        *,
        version: int | None = None,
        policy: Literal["open", "offered"] = "open",
    ) -> AcceptClaimed | NotClaimed:
        """Claims the attempt's trip for its driver."""
        return await self.claims.claim_accept(self.keys, attempt, version=version, policy=policy)

    async def hash(self, name: str) -> dict[str, str]:
        return dict(await self.redis.hgetall(name))

    async def dump(self) -> dict[bytes, tuple[Any, int]]:
        """Everything that is stored, with its life: what no script changed is the same again."""
        found = {}
        for name in sorted(await self.raw.keys("*")):
            if name != _CLOCK.encode():
                found[name] = (await self.raw.dump(name), await self.raw.pexpiretime(name))
        return found


def make_trip(suffix: str = "1", **columns: Any) -> Trip:
    usual: dict[str, Any] = {
        "id": f"z_{suffix}", "zone": "z", "customer_id": "c1", "vehicle_type": "car",
        "pickup_lat": 50.1, "pickup_lng": 8.6, "created_at": START_MS, "updated_at": START_MS,
    }  # fmt: skip
    return Trip(**(usual | columns))


def make_driver(name: str = "d1", **columns: Any) -> Driver:
    usual: dict[str, Any] = {
        "zone": "z", "availability_status": AvailabilityStatus.AVAILABLE, "is_online": True,
        "vehicle_type": "car",
    }  # fmt: skip
    return Driver(name, **(usual | columns))


class WarmLimits(LimitScripts):
    """The limits of zones that are loaded, whatever node has them now: in one batch with each call."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._warm = pipeline

    async def check_limit(
        self, keys: Keys, limits: Sequence[Limit], *, is_seeded: bool = False
    ) -> Admission:
        warmed = self._warm.command("SET", keys.epoch, f"{START_MS} 0 run-id")
        warmed.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await super().check_limit(keys, limits, is_seeded=is_seeded)


@contextlib.asynccontextmanager
async def open_zone(backend: str, redis_url: str, *, warm: bool = True) -> AsyncIterator[Zone]:
    """A zone on one of BACKENDS, warm, at START_MS."""
    if backend == "fakeredis":
        server = fakeredis.FakeServer(version=(7,))
        client: Any = fakeredis.FakeAsyncRedis(server=server, decode_responses=True, protocol=2)
        raw: Any = fakeredis.FakeAsyncRedis(server=server, protocol=2)
    else:
        client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=2)
        raw = redis.asyncio.Redis.from_url(redis_url, protocol=2)
    try:
        zone = Zone(client, raw)
        await zone.advance()
        if warm:
            await zone.warm()
        yield zone
        await zone.pipeline.close()
    finally:
        await client.aclose()
        await raw.aclose()
