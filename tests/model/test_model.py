"""Any actions in any order, whoever decides, with crashes, losses and duplicates: the rules hold after each of them.

Redis decides, or Postgres alone, and the zone passes from one to the other at any time.

`MODEL_EXAMPLES=2000 uv run pytest -n 0 -o timeout=0 tests/model` looks longer than CI has time for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.checker import (
    every_event_is_heard,
    one_winner,
    redis_equals_postgres,
    versions_are_gapless,
)
from tests.harness.lua_zone import BACKENDS
from tests.model.plants import PLANTS, Plant
from tests.model.rules import SUCCESSES, Act
from tests.model.side import ZONE, Side
from tests.model.world import LOSSES, POINTS, Journey, World, open_world

#: Lives of the world on each backend, without MODEL_EXAMPLES.
_EXAMPLES = {"fakeredis": 12, "valkey": 12}
_STEPS = 30
#: What went wrong is made smaller, and not explained: that runs it hundreds of times more.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
_DRIVERS, _TRIPS, _RIDERS = ("d0", "d1", "d2"), ("default_t0", "default_t1", "default_t2"), ("r0", "r1")
_ACTS = [
    *(Act(what, rider, trip) for what in ("create", "cancel") for rider in _RIDERS for trip in _TRIPS),
    *(
        Act(what, driver, trip)
        for what in ("accept", "be assigned", "decline", "arrive", "start", "complete", "give back")
        for driver in _DRIVERS
        for trip in _TRIPS
    ),
    *(
        Act(what, driver)
        for what in ("go online", "go offline", "pause", "be forced offline")
        for driver in _DRIVERS
    ),
    *(Act("expire", "system", trip) for trip in _TRIPS),
]
#: What leads on, as far as it is allowed: the others end too much.
_LEADING = ("accept", "be assigned", "arrive", "start", "give back", "go online")
_BEGINNING = [
    *(Act("go online", driver) for driver in _DRIVERS[:2]),
    *(Act("create", "r0", trip) for trip in _TRIPS[:2]),
    Act("accept", "d0", _TRIPS[0]),
]
KEYS = st.sampled_from(["", "k0", "k1", "k2"])
SIDES = st.sampled_from([0, 0, 0, 1])


class Machine(RuleBasedStateMachine):
    """One life of the world. `world` and `runner` are the test's."""

    world: ClassVar[World]
    runner: ClassVar[asyncio.Runner]

    def __init__(self) -> None:
        super().__init__()
        self.do(self.world.reset())

    @initialize(is_degraded=st.booleans())
    def begin(self, is_degraded: bool) -> None:
        """A driver is free, one has a trip, one trip waits, and in some lives Redis is away."""
        for act in _BEGINNING:
            self.do(self._act(self.world.sides[0], act, ""))
        if is_degraded:
            self._lose_redis(0, is_noticed=True)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    # --- what people and servers do

    @rule(data=st.data(), side=SIDES, key=KEYS)
    def act(self, data: st.DataObject, side: int, key: str) -> None:
        """From the claim to the answer without a stop."""
        self.do(self._act(self.world.sides[side], self._choose(data), key))

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data(), side=SIDES)
    def act_again(self, data: st.DataObject, side: int) -> None:
        """Somebody sends once more what they have sent with a key."""
        act, name = data.draw(st.sampled_from(self.world.sent), "sent")
        self.do(self._act(self.world.sides[side], act, name))

    @rule(data=st.data(), side=SIDES, key=KEYS, point=st.sampled_from(POINTS))
    def act_and_halt(self, data: st.DataObject, side: int, key: str, point: str) -> None:
        """The server stands still at a point of the road; others go on."""
        self.do(self._act(self.world.sides[side], self._choose(data), key, stop_at=point))

    @rule(data=st.data(), side=SIDES, key=KEYS, loss=st.sampled_from(LOSSES))
    def act_and_lose(self, data: st.DataObject, side: int, key: str, loss: str) -> None:
        """The request for the commit is lost, or its answer."""
        self.do(self._act(self.world.sides[side], self._choose(data), key, loses=loss))

    @rule(data=st.data(), side=SIDES, key=KEYS, calls=st.integers(0, 2))
    def act_and_lose_redis(self, data: st.DataObject, side: int, key: str, calls: int) -> None:
        """Redis goes during the act: after so many calls it takes one more, and nobody hears of it."""
        where = self.world.sides[side]
        where.redis_goes(after_calls=calls)
        self.do(self._act(where, self._choose(data), key))
        self.do(where.pipeline.drain())
        where.redis_goes()
        where.is_fresh = False

    @rule(data=st.data(), side=SIDES, key=KEYS, point=st.sampled_from(POINTS), by=SIDES)
    def act_while_the_zone_passes(
        self, data: st.DataObject, side: int, key: str, point: str, by: int
    ) -> None:
        """It passes to the other engine between two steps of an act."""
        halted = len(self.world.halted)
        self.do(self._act(self.world.sides[side], self._choose(data), key, stop_at=point))
        if self.do(self.world.authority()).is_degraded:
            self._regain_redis(by, is_noticed=True)
        else:
            self._lose_redis(by, is_noticed=True)
        if len(self.world.halted) > halted:  # it was not refused before that point
            self._resume(halted)

    @precondition(lambda self: self.world.halted)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        """A server goes on with what it believed when it was halted."""
        self._resume(data.draw(st.integers(0, len(self.world.halted) - 1)))

    @precondition(lambda self: self.world.halted)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """A server dies where it was halted."""
        _, journey = self.world.halted.pop(data.draw(st.integers(0, len(self.world.halted) - 1)))
        self.do(journey.kill())

    # --- what happens to engines

    @rule(side=SIDES, what=st.sampled_from(["flush", "look", "fall back", "end leases", "retry"]))
    def change_redis(self, side: int, what: str) -> None:
        """Redis forgets everything; a replica hears no more from here on, or takes over, and what came after is lost;
        claims end, though their servers may still be at work; what Redis did not take is tried again."""
        where = self.world.sides[side]
        self.do(self.world.hear())
        match what:
            case "flush":
                self.do(where.flush())
            case "look":
                self.do(where.look())
            case "fall back" if where.snapshot is not None:
                self.do(where.fall_back())
            case "end leases":
                self.do(where.end_leases())
            case "retry":
                self.do(where.retry())

    @rule(side=SIDES, is_noticed=st.booleans(), dies=st.booleans())
    def lose_or_regain_redis(self, side: int, is_noticed: bool, dies: bool) -> None:
        """A server loses its Redis and takes the zone, at once or with its next act; or all reach theirs again, with
        what it holds, and one gives the zone back, at once or later. It loads the zone then, unless it dies."""
        if any(each.is_gone for each in self.world.sides):
            self._regain_redis(side, is_noticed=is_noticed, dies=dies)
        else:
            self._lose_redis(side, is_noticed=is_noticed)

    @rule(side=SIDES)
    def tend(self, side: int) -> None:
        """A server takes the zone of a Redis that is away, and gives it back where it is there again."""
        self.do(self._tend(self.world.sides[side]))

    @rule()
    def repair(self) -> None:
        """Servers that stand still have died, and jobs have had the time to put everything right."""
        self._end()

    # --- what always holds

    @invariant()
    def postgres_has_what_the_rules_say(self) -> None:
        rules = self.world.rules
        assert self.do(self.world.rows()) == {
            "trips": {
                name: [trip.rider, trip.status, trip.version, trip.driver]
                for name, trip in rules.trips.items()
            },
            "events": {name: trip.version + 1 for name, trip in rules.trips.items()},
            "drivers": {
                name: [driver.is_online, driver.is_available, driver.version]
                for name, driver in rules.drivers.items()
            },
            "keys": sorted(rules.keys),
        }

    def teardown(self) -> None:
        """Whatever was left behind is repaired, without anybody's asking, and heard."""
        self._end()
        evidence = self.do(self.world.evidence())
        for check in (one_winner, versions_are_gapless, redis_equals_postgres, every_event_is_heard):
            breaches = list(check(evidence))
            assert not breaches, breaches
        waits = {name for name, trip in self.world.rules.trips.items() if trip.status == "pending"}
        assert {name for kind, _, name in evidence.pending_work if kind == "wave"} == waits
        assert not [name for kind, _, name in evidence.pending_work if kind == "claim"]

    # --- how it is done and judged

    def _end(self) -> None:
        for _, journey in self.world.halted:
            self.do(journey.kill())
        self.world.halted.clear()
        self.do(self._repair())

    def _resume(self, number: int) -> None:
        _, journey = self.world.halted.pop(number)
        self.do(journey.resume())
        self._judge(journey)

    def _lose_redis(self, side: int, *, is_noticed: bool) -> None:
        where = self.world.sides[side]
        where.redis_goes()
        if is_noticed:
            self.do(self._tend(where))

    def _regain_redis(self, side: int, *, is_noticed: bool, dies: bool = False) -> None:
        for each in self.world.sides:
            each.redis_comes_back()
        if is_noticed:
            self.do(self._tend(self.world.sides[side], dies=dies))

    def _choose(self, data: st.DataObject) -> Act:
        """An act that leads on, or one of those that are answered alike: every answer is as likely."""
        answered = defaultdict(list)
        for act in _ACTS:
            answered[self.world.rules.judge(act)].append(act)
        leading = [act for code in SUCCESSES for act in answered[code] if act.what in _LEADING]
        if leading and data.draw(st.booleans(), "leads on"):
            return data.draw(st.sampled_from(sorted(leading)), "act")
        code = data.draw(st.sampled_from(sorted(filter(answered.get, answered))), "answer")
        return data.draw(st.sampled_from(answered[code]), "act")

    async def _act(self, side: Side, act: Act, name: str, *, stop_at: str = "", loses: str = "") -> None:
        """`name` is that of a key of the user's own, or empty."""
        world, key = self.world, ""
        await side.set_clock()
        if name and act.what not in _WITHOUT_KEY:
            key = f"{act.user}-{name}"
            if (act, name) not in world.sent:
                world.sent.append((act, name))
        expected = world.rules.judge(act, key)
        # A refusal is kept for its key or not, and a request that was not answered may be under way.
        is_known = key not in world.used_keys or key in world.rules.keys
        is_exact = not loses and is_known and await self._sees_all(side)
        journey = world.start(side, act, key, stop_at, loses)
        is_answered = await journey.run()
        if key:
            world.used_keys.add(key)
        if is_answered:
            self._judge(journey, expected if is_exact else "")
        else:
            world.halted.append((side, journey))
            for each in world.sides:
                each.is_fresh = False
        if loses:
            side.is_fresh = False
        if journey.is_committed:
            for each in world.sides:
                each.is_fresh = each.is_fresh and each is side and not journey.is_fallback

    async def _sees_all(self, side: Side) -> bool:
        """Whether whatever decides about an act on this side knows all that is committed, and no claims."""
        believed, authority = side.parts.authorities.of(ZONE), await self.world.authority()
        is_redis_asked = not side.is_gone and not (believed.is_degraded and authority.is_degraded)
        is_ledger_asked = side.is_gone or believed.is_degraded or authority.is_degraded
        return (side.is_fresh or not is_redis_asked) and not (side.claims.are_held() and is_ledger_asked)

    def _judge(self, journey: Journey, expected: str = "") -> None:
        """Holds an answer against the rules; `expected` is its code, where that is known."""
        world, act, key = self.world, journey.act, journey.key
        assert journey.task is not None
        answer = journey.task.result()
        code = orjson.loads(answer.body)["response_code"]
        if answer.replayed:
            assert not journey.is_committed
            if code in SUCCESSES:
                assert world.rules.keys[key] == (act, code), "a key has the answer of another act"
        elif answer.status < 300:
            assert journey.is_committed, f"{act} was answered {code}, and not committed"
            self._read(act, answer.body)
        else:
            assert code not in SUCCESSES
        if key and code in SUCCESSES:
            assert world.answers.setdefault(key, answer.body) == answer.body, "a key has two answers"
        assert not expected or code == expected, (act, code, expected)

    def _read(self, act: Act, body: bytes) -> None:
        """A success says what the rules say of the trip, unless it was halted since."""
        told = orjson.loads(body).get("trip")
        if told is not None:
            assert told["id"] == act.trip
            assert told["version"] <= self.world.rules.trips[act.trip].version

    async def _tend(self, side: Side, *, dies: bool = False) -> None:
        await self.world.hear()
        await side.set_clock()
        before = await self.world.authority()
        await side.tend(dies=dies)
        after = await self.world.authority()
        if (
            before.is_degraded and not after.is_degraded
        ):  # its Redis is loaded, or will be by the next act
            side.is_fresh = not self.world.halted

    async def _repair(self) -> None:
        sides = (self.world.sides[1], self.world.sides[0])
        for side in sides:
            side.redis_comes_back()
        for side in sides:
            await self._tend(side)
        assert not (await self.world.authority()).is_degraded
        for side in sides:
            await side.set_clock()
            await side.repair()


#: Nobody sends a key with these.
_WITHOUT_KEY = ("expire", "be assigned", "be forced offline")


@contextlib.contextmanager
def opened_machine(*where: str, plant: Plant | None = None) -> Iterator[type[Machine]]:
    """The machine of an open world."""
    with asyncio.Runner() as runner:
        opened = open_world(*where, plant=plant)
        world = runner.run(opened.__aenter__())
        try:
            yield type("Machine", (Machine,), {"world": world, "runner": runner})
        finally:
            runner.run(opened.__aexit__(None, None, None))


_SETTINGS = settings(
    stateful_step_count=_STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    report_multiple_bugs=False,
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_order_of_actions(backend: str, redis_url: str, database_url: str) -> None:
    """fakeredis runs the scripts' logic, Valkey the scripts themselves."""
    with opened_machine(backend, redis_url, database_url) as machine:
        examples = int(os.environ.get("MODEL_EXAMPLES", _EXAMPLES[backend]))
        run_state_machine_as_test(
            machine, settings=settings(_SETTINGS, max_examples=examples, phases=_PHASES)
        )


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_planted_bugs_are_seen(plant: Plant, redis_url: str, database_url: str) -> None:
    """The lives are those of a seed with which some ten are enough; other rules may need another one."""
    with opened_machine("valkey", redis_url, database_url, plant=plant) as machine:
        lives = settings(_SETTINGS, max_examples=200, phases=(Phase.generate,), database=None)
        with pytest.raises(AssertionError):
            run_state_machine_as_test(seed(19)(machine), settings=lives)
