"""The product's own services on real or fake engines, whose changes can be halted, resumed and killed anywhere.

Two servers commit to one Postgres. Each believes in a Redis of its own, as when one of them has not heard of a
failover; where one cannot reach it, Postgres decides alone. Leases end when the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import asyncpg
import orjson

from dispatcher.composition import Services
from dispatcher.core.actors import Actor, Role
from dispatcher.core.authority import Authority, Engine
from dispatcher.core.callers import Caller
from dispatcher.core.errors import OutcomeUnknown, Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.ledger.changes import Change, Outcome, OutcomeCode
from dispatcher.live.keys import keys_of
from dispatcher.service import coordinator
from dispatcher.service.answers import Answer
from dispatcher.service.commands.actions import assign_trip, expire_trip, trip_action
from dispatcher.service.commands.create import create_trip
from tests.faults.evidence import Evidence, gather
from tests.faults.history import History
from tests.harness.lua_zone import open_zone
from tests.harness.services import PLACE
from tests.model.plants import Plant
from tests.model.rules import Act, Rules
from tests.model.side import ZONE, Side, open_side

#: Points of the road, in their order; at each a change can be halted.
POINTS = ("after_claim", "before_commit", "after_commit", "before_settle", "after_settle")
#: What the network can lose between a server and Postgres.
LOSSES = ("request", "answer")
_WORDS = {"give back": "cancel"}
_AVAILABILITY: dict[str, dict[str, Any]] = {
    "go online": {"is_online": True, "availability_status": "available"},
    "go offline": {"is_online": False},
    "pause": {"availability_status": "unavailable"},
}


class Killed(BaseException):
    """The server is gone, and with it whatever it was about to do."""


_CLEAR = """
    DELETE FROM trip_offers; DELETE FROM trip_events; DELETE FROM trip_requests; DELETE FROM driver_details;
    DELETE FROM idempotency_keys;
    UPDATE zone_authorities SET engine = 'redis', fence = fence + 1, changed_at = clock_timestamp();
"""
_ROWS = """
    SELECT json_build_object(
        'trips', (SELECT coalesce(json_object_agg(id, json_build_array(customer_id, current_status, version,
                      driver_id)), '{}') FROM trip_requests),
        'events', (SELECT coalesce(json_object_agg(trip_id, number), '{}')
                     FROM (SELECT trip_id, count(*) AS number FROM trip_events GROUP BY trip_id) counted),
        'drivers', (SELECT coalesce(json_object_agg(user_id, json_build_array(is_online,
                        availability_status = 'available', version)), '{}') FROM driver_details),
        'keys', (SELECT coalesce(json_agg(idempotency_key ORDER BY idempotency_key), '[]') FROM idempotency_keys))
"""


@dataclass(eq=False)
class Journey:
    """One act on its way. `loses` is what is lost of its commit."""

    act: Act
    rules: Rules
    key: str
    stop_at: str = ""
    loses: str = ""
    is_committed: bool = False
    #: Whether Postgres alone decided.
    is_fallback: bool = False
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

    def commit(self, *, is_fallback: bool) -> None:
        """Postgres has it now."""
        self.rules.do(self.act, self.key)
        self.is_committed, self.is_fallback = True, is_fallback

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
        #: The body that each key was first answered with success.
        self.answers: dict[str, bytes] = {}
        self.used_keys: set[str] = set()
        #: What was sent with which of the user's keys.
        self.sent: list[tuple[Act, str]] = []

    async def reset(self) -> None:
        """Nothing is left of what was before."""
        Side.skipped_ms = 0
        await self.postgres.execute(_CLEAR)
        for side in self.sides:
            await side.begin()
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

    async def authority(self) -> Authority:
        """Who decides."""
        return await _authority(self.postgres)

    async def rows(self) -> dict[str, Any]:
        """What Postgres has: trips, how many events each has, drivers, and the keys that have an answer."""
        found: dict[str, Any] = orjson.loads(await self.postgres.fetchval(_ROWS))
        return found

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


async def _authority(postgres: asyncpg.Connection) -> Authority:
    row = await postgres.fetchrow("SELECT engine, fence FROM zone_authorities WHERE zone = $1", ZONE)
    assert row is not None
    return Authority(Engine(row["engine"]), row["fence"])


@contextlib.asynccontextmanager
async def open_world(
    backend: str, redis_url: str, database_url: str, *, plant: Plant | None = None
) -> AsyncIterator[World]:
    """A world whose first side has a Redis of this backend, and whose second has a fake one.

    Both are servers with the bug `plant`.
    """
    async with contextlib.AsyncExitStack() as stack:
        postgres = await asyncpg.connect(database_url)
        stack.push_async_callback(postgres.close)
        sides = []
        for kind in (backend, "fakeredis"):
            zone = await stack.enter_async_context(open_zone(kind, redis_url, warm=False))
            opened = open_side(zone, redis_url, database_url, HaltingCoordinator)
            side = await stack.enter_async_context(opened)
            if plant is not None:
                stack.enter_context(plant(side))
            commits = side.parts.ledger.commits
            stack.enter_context(patch.object(commits, "commit", watched(commits.commit, postgres)))
            sides.append(side)
        yield World((sides[0], sides[1]), postgres, database_url)


Commit = Callable[..., Awaitable[Outcome]]


def watched(commit: Commit, postgres: asyncpg.Connection) -> Commit:
    """Has the rules told of each commit, holds its fence against the row, and loses what its journey loses."""

    async def commit_and_tell(change: Change, answer: Any, **options: Any) -> Outcome:
        journey = _JOURNEY.get()
        if journey.loses == "request":
            raise OutcomeUnknown("postgres")
        authority = await _authority(postgres)
        outcome = await commit(change, answer, **options)
        if outcome.code is OutcomeCode.REPLAY:
            assert journey.key in journey.rules.keys
        else:
            is_old = (change.fence, change.is_fallback) != (authority.fence, authority.is_degraded)
            assert (outcome.code is OutcomeCode.FENCED) == is_old, (journey.act, outcome.code, authority)
        if outcome.code is OutcomeCode.OK:
            journey.commit(is_fallback=change.is_fallback)
        if journey.loses == "answer":
            raise OutcomeUnknown("postgres")
        return outcome

    return commit_and_tell
