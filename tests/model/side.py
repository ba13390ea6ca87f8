"""A server of the model: the product's own services, with the Redis that it believes in.

Time passes, a Redis goes and comes back, and what a server does in the background is done, when the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import patch

from dispatcher.background import degraded_zones_job, reconcile_job
from dispatcher.composition import Services, services
from dispatcher.config import load_settings
from dispatcher.core.errors import ReplyLost, StoreUnavailable
from dispatcher.core.times import now_ms
from dispatcher.core.zones import Zones
from dispatcher.jobs.degraded_zones import DegradedZones
from dispatcher.live.claims import Attempt
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.protocol import Call
from dispatcher.service import catch_up, coordinator, held_subjects
from dispatcher.service.held_subjects import HeldSubjects
from dispatcher.service.ledger_claims import LedgerClaims
from tests.harness.lua_zone import Zone, scripts_with_a_clock_set_by_hand

ZONE = "default"
_LEASE_MS = 10_000


class _Pipeline(Pipeline):
    """A pipeline to a Redis whose run id is set by hand, and which goes away and comes back by hand."""

    restarts = 0
    is_gone = False
    #: Calls that are still answered, where Redis is about to go: the one after them is run, and its reply lost.
    calls_left: int | None = None

    async def run_id(self, key: str) -> str:
        if self.is_gone:
            raise StoreUnavailable("redis")
        return f"run-{self.restarts}"

    def is_left_alone(self, key: str) -> bool:
        return self.is_gone

    def put(self, call: Call) -> None:
        if self.is_gone:
            self._answer(call, StoreUnavailable("redis"))
        elif self.calls_left == 0:
            self.is_gone, self.calls_left = True, None
            unheard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            unheard.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
            super().put(call._replace(reply=unheard))
            self._answer(call, ReplyLost("redis"))
        else:
            if self.calls_left is not None:
                self.calls_left -= 1
            super().put(call)


class _Retries:
    """`LeaseRetries` whose work goes on when the test says so."""

    all: ClassVar[list[_Retries]] = []

    def __init__(self, **_: float) -> None:
        self._work: list[Callable[[], Awaitable[bool]]] = []
        self.all.append(self)

    def __len__(self) -> int:
        return len(self._work)

    def start(self, attempt: Attempt, work: Callable[[], Awaitable[bool]], *, at_once: bool) -> bool:
        self._work.append(work)
        return True

    async def run(self) -> None:
        """Tries everything once; what is not done waits for the next time."""
        work, self._work = self._work, []
        for each in work:
            try:
                is_done = await each()
            except StoreUnavailable:
                is_done = False
            if not is_done:
                self._work.append(each)

    async def close(self) -> None:
        """The leases are over."""
        self._work.clear()


class _Claims(LedgerClaims):
    """Claims over Postgres of a server that can be started anew."""

    def are_held(self) -> bool:
        """Whether somebody goes on to their commit, or has left a claim to its lease."""
        return any(self._held.is_held(subject) for subject in list(self._held._held))

    def forget(self) -> None:
        """Nothing is held, and no refusal remembered."""
        self._held = HeldSubjects()
        self._refusals.clear()


class _Clock:
    """The monotonic clock of claims over Postgres."""

    @staticmethod
    def monotonic() -> float:
        return time.monotonic() + Side.skipped_ms / 1000


@dataclass(eq=False)
class Side:
    """A server and the Redis that it believes in."""

    zone: Zone
    parts: Services
    pipeline: _Pipeline
    claims: _Claims
    degraded_zones: DegradedZones
    retries: list[_Retries]
    #: Whether its Redis knows all that is committed, and holds no claim of anybody.
    is_fresh: bool = True
    snapshot: dict[bytes, tuple[Any, int]] | None = None
    #: How much time all sides were told has passed.
    skipped_ms: ClassVar[int] = 0

    @property
    def is_gone(self) -> bool:
        """Whether the server cannot reach its Redis."""
        return self.pipeline.is_gone

    @property
    def has_retries(self) -> bool:
        return any(map(len, self.retries))

    async def begin(self) -> None:
        """Nothing is left of what was before."""
        self.redis_comes_back()
        await self.flush()
        self.snapshot, self.is_fresh = None, True
        await self._drop_retries()
        self.claims.forget()
        await self.degraded_zones.run()

    async def set_clock(self) -> None:
        """The clock of the scripts shows the time of this machine, and what was skipped."""
        self.zone.now_us = (now_ms() + Side.skipped_ms) * 1000
        await self.zone.advance()

    async def flush(self) -> None:
        await self.zone.raw.flushdb()
        await self.set_clock()

    async def look(self) -> None:
        """Remembers what this Redis holds, as a replica does that hears nothing more."""
        self.snapshot = await self.zone.dump()

    async def fall_back(self) -> None:
        """The replica takes over: what came after the look is lost, and the run id is another one."""
        assert self.snapshot is not None
        await self.flush()
        for name, (content, ends_at) in self.snapshot.items():
            lives_ms = max(ends_at - now_ms(), 1) if ends_at > 0 else 0
            await self.zone.raw.restore(name, lives_ms, content)
        self.is_replaced()
        self.is_fresh = False

    def is_replaced(self) -> None:
        """Another Redis answers. A connection to it is a new one, so what was asked of the former is old."""
        self.pipeline.restarts += 1
        self.parts.live.state._run_ids._asked.clear()

    def redis_goes(self, after_calls: int | None = None) -> None:
        """The server cannot reach its Redis from now on; or from the call on that comes after so many."""
        self.pipeline.is_gone, self.pipeline.calls_left = after_calls is None, after_calls

    def redis_comes_back(self) -> None:
        """It holds what it held."""
        self.pipeline.is_gone, self.pipeline.calls_left = False, None

    async def retry(self) -> None:
        """What Redis did not take is tried again."""
        for each in self.retries:
            await each.run()

    async def _drop_retries(self) -> None:
        for each in self.retries:
            await each.close()

    async def tend(self, *, dies: bool = False) -> None:
        """What a server does twice a second for zones without Redis.

        A zone that it gives back is loaded; not where it `dies` after that: who wants it next does so.
        """
        if dies:
            await self.parts.authorities.tend()
            return
        await self.degraded_zones.run()
        if not self.is_gone and (work := self.parts.catch_up._work.get(ZONE)):
            await asyncio.wait([work.look])  # what can be told before was told
            await self.degraded_zones.run()
        if not self.is_gone and not self.parts.authorities.degraded():
            await self.parts.rehydration.warm(ZONE)

    async def end_leases(self) -> None:
        """Every lease is over: claims are gone, and whoever sweeps finds what they belonged to."""
        claims = await self.zone.redis.keys("dsp:*:claim:*")
        if claims:
            await self.zone.redis.delete(*claims)
        Side.skipped_ms += _LEASE_MS + 1_000
        await self._drop_retries()
        await self.set_clock()

    async def repair(self) -> None:
        """What the jobs of a server do within seconds, in a Redis that has come back as another one."""
        await self.end_leases()
        self.is_replaced()
        job = reconcile_job(self.parts, ZONE)
        await job.run()  # sees that the zone is cold, and has it loaded
        await self.parts.rehydration.warm(ZONE)
        await job.run()
        self.is_fresh = True


@contextlib.asynccontextmanager
async def open_side(
    zone: Zone, redis_url: str, database_url: str, make_coordinator: type[coordinator.Coordinator]
) -> AsyncIterator[Side]:
    """A server whose Redis is `zone`."""
    pipeline = _Pipeline(zone.redis, scripts_with_a_clock_set_by_hand())
    _Retries.all = []
    made: list[_Claims] = []

    @contextlib.asynccontextmanager
    async def opened(*_: Any, **__: Any) -> AsyncIterator[Pipeline]:
        yield pipeline
        await pipeline.close()

    def make_claims(*args: Any) -> _Claims:
        made.append(_Claims(*args))
        return made[0]

    wide = {
        f"limit_{name}": "100000/60" for name in ("trip_accept", "trip_cancel", "general", "operator")
    }
    settings = load_settings(
        halt_at="after_claim",  # any point: journeys say where
        redis_url=redis_url,
        database_url=database_url,
        database_pool=2,
        claim_lease_ms=_LEASE_MS,
        **wide,
    )
    await zone.advance()
    with (
        patch("dispatcher.wings.open_pipeline", opened),
        patch("dispatcher.composition.Coordinator", make_coordinator),
        patch("dispatcher.composition.LedgerClaims", make_claims),
        patch("dispatcher.service.persistent_settles.LeaseRetries", _Retries),
        patch("dispatcher.service.abandoned_claims.LeaseRetries", _Retries),
        patch.object(held_subjects, "time", _Clock),
        # A zone is told before it is given back, however little there is to tell.
        patch.object(catch_up, "_FEW", -1),
        # Nobody lets go of a claim while another waits for it: waiting is cut short.
        patch.object(coordinator, "_MAX_CLAIMS", 5),
        patch.object(coordinator, "_MAX_WAIT_S", 0.001),
        patch.object(coordinator, "_FIRST_WAIT_S", 0.001),
    ):
        async with services(settings, Zones()) as parts:
            # A server that cannot reach Redis does not keep the others from giving a zone back.
            parts.authorities.held_s = 0.0
            job = degraded_zones_job(parts)
            side = Side(zone, parts, pipeline, made[0], job, _Retries.all)
            await side.set_clock()
            yield side
