"""The product's own services on real or fake engines, whose changes can be halted, resumed and killed anywhere.

Two servers commit to one Postgres. Each believes in a Redis of its own, as when one of them has not heard of a
failover. Leases end when the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

import asyncpg
import orjson

from dispatcher.background import reconcile_job
from dispatcher.composition import Services, services
from dispatcher.config import load_settings
from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import OutcomeUnknown, Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.times import now_ms
from dispatcher.core.zones import Zones
from dispatcher.ledger.changes import OutcomeCode
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.service import coordinator
from dispatcher.service.answers import Answer
from dispatcher.service.commands.actions import assign_trip, expire_trip, trip_action
from dispatcher.service.commands.create import create_trip
from tests.faults.evidence import Evidence, gather
from tests.faults.history import History
from tests.harness.lua_zone import Zone, open_zone, scripts_with_a_clock_set_by_hand
from tests.harness.services import PLACE
from tests.model.rules import Act, Rules

ZONE = "default"
#: Points of the road, in their order; at each a change can be halted.
POINTS = ("after_claim", "before_commit", "after_commit", "before_settle", "after_settle")
#: What the network can lose between a server and Postgres.
LOSSES = ("request", "answer")
_LEASE_MS = 10_000
_WORDS = {"give back": "cancel"}
_AVAILABILITY: dict[str, dict[str, Any]] = {
    "go online": {"is_online": True, "availability_status": "available"},
    "go offline": {"is_online": False},
    "pause": {"availability_status": "unavailable"},
}


class Killed(BaseException):
    """The server is gone, and with it whatever it was about to do."""


@dataclass(eq=False)
class Journey:
    """One act on its way. `loses` is what is lost of its commit."""

    act: Act
    rules: Rules
    key: str
    stop_at: str = ""
    loses: str = ""
    is_committed: bool = False
    halted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Answer] | None = None
    _goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    _is_dead: bool = False

    async def reach(self, point: str) -> None:
        """The road has come to this point."""
        if point == self.stop_at:
            self.halted.set()
            await self._goes_on.wait()
            if self._is_dead:
                raise Killed

    def commit(self) -> None:
        """Postgres has it now."""
        self.rules.do(self.act)
        self.is_committed = True

    async def run(self) -> bool:
        """Goes on until it is halted or answered; whether it is answered."""
        assert self.task is not None
        halted = asyncio.ensure_future(self.halted.wait())
        await asyncio.wait((self.task, halted), return_when=asyncio.FIRST_COMPLETED)
        halted.cancel()
        return self.task.done()

    async def resume(self) -> None:
        self.halted.clear()
        self.stop_at = ""
        self._goes_on.set()
        assert await self.run()

    async def kill(self) -> None:
        self._is_dead = True
        await self.resume()
        assert self.task is not None
        assert isinstance(self.task.exception(), Killed)


_JOURNEY: ContextVar[Journey] = ContextVar("journey")


class HaltingCoordinator(coordinator.Coordinator):
    """The coordinator, whose own points of halting lead to the journey of the task."""

    async def _halt(self, point: str) -> None:
        journey = _JOURNEY.get(None)
        if journey is not None:
            await journey.reach(point)


class _Pipeline(Pipeline):
    """A pipeline to a Redis whose run id is set by hand."""

    restarts = 0

    async def run_id(self, key: str) -> str:
        return f"run-{self.restarts}"


@dataclass(eq=False)
class Side:
    """A server and the Redis that it believes in."""

    zone: Zone
    parts: Services
    pipeline: _Pipeline
    #: Whether its Redis knows all that is committed, and holds no claim of anybody.
    is_fresh: bool = True
    snapshot: dict[bytes, tuple[Any, int]] | None = None
    #: How much time both sides were told has passed.
    skipped_ms: ClassVar[int] = 0

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

    async def end_leases(self) -> None:
        """Every lease is over: claims are gone, and whoever sweeps finds what they belonged to."""
        claims = await self.zone.redis.keys("dsp:*:claim:*")
        if claims:
            await self.zone.redis.delete(*claims)
        Side.skipped_ms += _LEASE_MS + 1_000
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


class World:
    """Two sides on one Postgres, the rules that both are held against, and what was answered."""

    def __init__(self, sides: tuple[Side, Side], postgres: asyncpg.Connection, url: str) -> None:
        self.sides = sides
        self.postgres = postgres
        self._url = url
        self.begin()

    def begin(self) -> None:
        self.rules = Rules()
        self.history = History()
        self.halted: list[tuple[Side, Journey]] = []
        #: What each key was first answered with success: act and body.
        self.answers: dict[str, tuple[Act, bytes]] = {}
        self.used_keys: dict[str, Act] = {}

    async def reset(self) -> None:
        """Nothing is left of what was before."""
        Side.skipped_ms = 0
        tables = "trip_requests, driver_details, trip_events, idempotency_keys, trip_offers"
        await self.postgres.execute(f"TRUNCATE {tables}")
        for side in self.sides:
            await side.flush()
            side.snapshot, side.is_fresh = None, True
            for driver in self.rules.drivers:
                side.parts.effects.directory.forget(driver)
        self.begin()

    def start(self, side: Side, act: Act, key: str, stop_at: str = "", loses: str = "") -> Journey:
        """Sets out with an act on one side, with a key or without one."""
        journey = Journey(act, self.rules, key, stop_at, loses)

        async def go() -> Answer:
            _JOURNEY.set(journey)
            return await _execute(side.parts, act, _key_of(act, key))

        journey.task = asyncio.get_running_loop().create_task(go())
        return journey

    async def rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Trips and drivers as Postgres has them, in the shape of the rules."""
        trips = await self.postgres.fetch(
            "SELECT id, customer_id, current_status, version, driver_id FROM trip_requests"
        )
        drivers = await self.postgres.fetch(
            "SELECT user_id, is_online, availability_status = 'available', version FROM driver_details"
        )
        return {row[0]: tuple(row)[1:] for row in trips}, {row[0]: tuple(row)[1:] for row in drivers}

    async def hear(self) -> None:
        """Notes what the streams hold."""
        for side in self.sides:
            entries = await side.zone.redis.xrange(keys_of(ZONE).events)
            self.history.read_stream(entries)

    async def evidence(self) -> Evidence:
        """What the first side and Postgres hold."""
        await self.hear()
        return await gather(self.history, self._url, self.sides[0].zone.redis, [ZONE])


def _key_of(act: Act, text: str) -> IdempotencyKey | None:
    if not text:
        return None
    body = orjson.dumps(list(act))
    return IdempotencyKey(act.user, "/act", text, hashlib.sha256(body).hexdigest(), body)


async def _execute(parts: Services, act: Act, key: IdempotencyKey | None) -> Answer:
    driver = Caller(Actor(act.user, Role.DRIVER), key)
    rider = Caller(Actor(act.user, Role.CUSTOMER), key)
    try:
        match act.what:
            case "create":
                command: Any = create_trip(
                    parts.zones, rider, pickup=PLACE, vehicle_type="car", trip_request_id=act.trip
                )
            case "cancel":
                command = trip_action(parts.zones, rider, "cancel", act.trip)
            case "expire":
                command = expire_trip(parts.zones, act.trip)
            case "be assigned":
                admin = Caller(Actor("admin", Role.ADMIN))
                command = assign_trip(parts.zones, admin, act.trip, act.user)
            case "be forced offline":
                admin = Caller(Actor("admin", Role.ADMIN))
                return await parts.availability.force_offline(admin, act.user)
            case what if what in _AVAILABILITY:
                return await parts.availability.change(driver, **_AVAILABILITY[what])
            case what:
                command = trip_action(parts.zones, driver, _WORDS.get(what, what), act.trip)
        return await parts.coordinator.execute(command)
    except Refusal as refusal:
        return Answer(400, orjson.dumps({"response_code": refusal.code}))
    except OutcomeUnknown:
        return Answer(503, b'{"response_code":"outcome_unknown"}')


@contextlib.asynccontextmanager
async def open_world(backend: str, redis_url: str, database_url: str) -> AsyncIterator[World]:
    """A world whose first side has a Redis of this backend, and whose second has a fake one."""
    async with (
        open_zone(backend, redis_url, warm=False) as first,
        open_zone("fakeredis", redis_url, warm=False) as second,
        _side(first, redis_url, database_url) as here,
        _side(second, redis_url, database_url) as there,
    ):
        postgres = await asyncpg.connect(database_url)
        try:
            yield World((here, there), postgres, database_url)
        finally:
            await postgres.close()


@contextlib.asynccontextmanager
async def _side(zone: Zone, redis_url: str, database_url: str) -> AsyncIterator[Side]:
    pipeline = _Pipeline(zone.redis, scripts_with_a_clock_set_by_hand())

    @contextlib.asynccontextmanager
    async def opened(*_: Any, **__: Any) -> AsyncIterator[Pipeline]:
        yield pipeline
        await pipeline.close()

    wide = {f"limit_{name}": "100000/60" for name in ("trip_accept", "trip_cancel", "general")}
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
        patch("dispatcher.composition.Coordinator", HaltingCoordinator),
        # Nobody lets go of a claim while another waits for it: waiting is cut short.
        patch.object(coordinator, "_MAX_CLAIMS", 5),
        patch.object(coordinator, "_MAX_WAIT_S", 0.001),
        patch.object(coordinator, "_FIRST_WAIT_S", 0.001),
    ):
        async with services(settings, Zones()) as parts:
            _watch_commits(parts)
            side = Side(zone, parts, pipeline)
            await side.set_clock()
            yield side


def _watch_commits(parts: Services) -> None:
    """Has the rules told of each commit, and loses what its journey loses."""
    commits = parts.ledger.commits
    commit = commits.commit

    async def watched(*args: Any, **options: Any) -> Any:
        journey = _JOURNEY.get()
        if journey.loses == "request":
            raise OutcomeUnknown("postgres")
        outcome = await commit(*args, **options)
        if outcome.code is OutcomeCode.OK:
            journey.commit()
        if journey.loses == "answer":
            raise OutcomeUnknown("postgres")
        return outcome

    commits.commit = watched  # type: ignore[method-assign]
