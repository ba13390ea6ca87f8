"""Any actions in any order, on both roads, with crashes, losses and duplicates: the rules hold after each of them.

`MODEL_EXAMPLES=2000 uv run pytest -n 0 tests/model` looks longer than CI has time for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
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
from tests.model.rules import SUCCESSES, Act
from tests.model.world import LOSSES, POINTS, Journey, Side, World, open_world

#: Lives of the world on each backend, without MODEL_EXAMPLES.
_EXAMPLES = {"fakeredis": 10, "valkey": 6}
_STEPS = 30
#: What went wrong is made smaller, and not explained: that runs it hundreds of times more.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
#: Answers that a key may have instead of what the rules say.
_OF_THE_KEY = {"idempotency_key_reused", "request_in_progress"}

DRIVERS = st.sampled_from(["d0", "d1", "d2"])
TRIPS = st.sampled_from(["default_t0", "default_t1", "default_t2"])
RIDERS = st.sampled_from(["r0", "r1"])
NONE = st.just("")
ACTS = st.one_of(
    st.builds(Act, st.just("create"), RIDERS, TRIPS),
    st.builds(Act, st.just("cancel"), RIDERS, TRIPS),
    st.builds(Act, st.sampled_from(["accept", "accept", "be assigned", "decline"]), DRIVERS, TRIPS),
    st.builds(Act, st.sampled_from(["arrive", "start", "complete", "give back"]), DRIVERS, TRIPS),
    st.builds(Act, st.sampled_from(["go online", "go online", "go offline", "pause"]), DRIVERS, NONE),
    st.builds(Act, st.just("be forced offline"), DRIVERS, NONE),
    st.builds(Act, st.just("expire"), st.just("system"), TRIPS),
)
KEYS = st.sampled_from(["", "", "k0", "k1"])
SIDES = st.sampled_from([0, 0, 0, 1])


class Machine(RuleBasedStateMachine):
    """One life of the world. `world` and `runner` are the test's."""

    world: ClassVar[World]
    runner: ClassVar[asyncio.Runner]

    def __init__(self) -> None:
        super().__init__()
        self.do(self.world.reset())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    # --- what people and servers do

    @rule(act=ACTS, side=SIDES, key=KEYS)
    def act(self, act: Act, side: int, key: str) -> None:
        """From the claim to the answer without a stop."""
        self.do(self._act(self.world.sides[side], act, key))

    @rule(act=ACTS, side=SIDES, key=KEYS, point=st.sampled_from(POINTS))
    def act_and_halt(self, act: Act, side: int, key: str, point: str) -> None:
        """The server stands still at a point of the road; others go on."""
        self.do(self._act(self.world.sides[side], act, key, stop_at=point))

    @rule(act=ACTS, side=SIDES, key=KEYS, loss=st.sampled_from(LOSSES))
    def act_and_lose(self, act: Act, side: int, key: str, loss: str) -> None:
        """The request for the commit is lost, or its answer."""
        self.do(self._act(self.world.sides[side], act, key, loses=loss))

    @precondition(lambda self: self.world.halted)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        """A server goes on with what it believed when it was halted."""
        side, journey = self.world.halted.pop(data.draw(st.integers(0, len(self.world.halted) - 1)))
        self.do(journey.resume())
        self._judge(side, journey, is_exact=False)

    @precondition(lambda self: self.world.halted)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """A server dies where it was halted."""
        _, journey = self.world.halted.pop(data.draw(st.integers(0, len(self.world.halted) - 1)))
        self.do(journey.kill())

    # --- what happens to engines

    @rule(side=SIDES)
    def flush(self, side: int) -> None:
        """Redis forgets everything."""
        self.do(self._flush(self.world.sides[side]))

    @rule(side=SIDES)
    def look(self, side: int) -> None:
        """A replica hears no more from here on."""
        self.do(self.world.sides[side].look())

    @precondition(lambda self: self.world.sides[0].snapshot is not None)
    @rule()
    def fall_back(self) -> None:
        """It takes over: what came after is lost."""
        self.do(self.world.hear())
        self.do(self.world.sides[0].fall_back())

    @rule(side=SIDES)
    def end_leases(self, side: int) -> None:
        """Claims end, though their servers may still be at work."""
        self.do(self.world.sides[side].end_leases())

    @precondition(lambda self: not self.world.halted)
    @rule()
    def repair(self) -> None:
        """Jobs have had the time to put everything right."""
        self.do(self._repair())

    # --- what always holds

    @invariant()
    def postgres_has_what_the_rules_say(self) -> None:
        trips, drivers = self.do(self.world.rows())
        assert trips == {
            name: (trip.rider, trip.status, trip.version, trip.driver)
            for name, trip in self.world.rules.trips.items()
        }
        assert drivers == {
            name: (driver.is_online, driver.is_available, driver.version)
            for name, driver in self.world.rules.drivers.items()
        }

    def teardown(self) -> None:
        """Whatever was left behind is repaired, without anybody's asking, and heard."""
        for _, journey in self.world.halted:
            self.do(journey.kill())
        self.world.halted.clear()
        self.do(self._repair())
        evidence = self.do(self.world.evidence())
        for check in (one_winner, versions_are_gapless, redis_equals_postgres, every_event_is_heard):
            breaches = list(check(evidence))
            assert not breaches, breaches
        waits = {name for name, trip in self.world.rules.trips.items() if trip.status == "pending"}
        assert {name for kind, _, name in evidence.pending_work if kind == "wave"} == waits
        assert not [name for kind, _, name in evidence.pending_work if kind == "claim"]

    # --- how it is done and judged

    async def _act(self, side: Side, act: Act, key: str, *, stop_at: str = "", loses: str = "") -> None:
        world = self.world
        await side.set_clock()
        expected = world.rules.judge(act)
        key = f"{act.user}-{key}" if key and act.what not in _WITHOUT_KEY else ""
        is_exact = side.is_fresh and not loses and key not in world.used_keys
        journey = world.start(side, act, key, stop_at, loses)
        if not await journey.run():
            world.halted.append((side, journey))
            for each in world.sides:
                each.is_fresh = False
            world.used_keys.setdefault(key, act)
            return
        self._judge(side, journey, is_exact=is_exact, expected=expected)
        if loses:
            side.is_fresh = False
        world.used_keys.setdefault(key, act)

    def _judge(self, side: Side, journey: Journey, *, is_exact: bool, expected: str = "") -> None:
        """Holds an answer against the rules."""
        world, act = self.world, journey.act
        assert journey.task is not None
        answer = journey.task.result()
        code = orjson.loads(answer.body)["response_code"]
        if journey.is_committed:
            for other in world.sides:
                other.is_fresh = other.is_fresh and other is side
        if answer.replayed:
            known = world.answers.get(journey.key)
            assert known is None or (known == (act, answer.body)), "a key has two answers"
            assert not journey.is_committed
        elif answer.status < 300:
            assert journey.is_committed, f"{act} was answered {code}, and not committed"
            assert journey.key not in world.answers, "a key has two effects"
            self._read(act, answer.body)
            if journey.key:
                world.answers[journey.key] = (act, answer.body)
        else:
            assert code not in SUCCESSES
        if is_exact:
            assert code == expected or (answer.replayed and code in SUCCESSES), (act, code, expected)
        elif journey.key in world.used_keys and world.used_keys[journey.key] != act:
            assert code not in SUCCESSES or not answer.replayed

    def _read(self, act: Act, body: bytes) -> None:
        """A success says what the rules say of the trip, unless it was halted since."""
        told = orjson.loads(body).get("trip")
        if told is not None:
            assert told["id"] == act.trip
            assert told["version"] <= self.world.rules.trips[act.trip].version

    async def _flush(self, side: Side) -> None:
        await self.world.hear()
        await side.flush()

    async def _repair(self) -> None:
        for side in (self.world.sides[1], self.world.sides[0]):
            await side.set_clock()
            await side.repair()


#: Nobody sends a key with these.
_WITHOUT_KEY = ("expire", "be assigned", "be forced offline")


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_order_of_actions(backend: str, redis_url: str, database_url: str) -> None:
    """fakeredis runs the scripts' logic, Valkey the scripts themselves."""
    with asyncio.Runner() as runner:
        opened = open_world(backend, redis_url, database_url)
        world = runner.run(opened.__aenter__())
        try:
            machine = type("Machine", (Machine,), {"world": world, "runner": runner})
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=int(os.environ.get("MODEL_EXAMPLES", _EXAMPLES[backend])),
                    stateful_step_count=_STEPS,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                    report_multiple_bugs=False,
                    phases=_PHASES,
                ),
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
