"""Sliding logs against an oracle: never more than N in any window, told exactly."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.limits import Limit
from dispatcher.live.client import connect
from dispatcher.live.keys import keys_of
from dispatcher.live.limits import LimitScripts
from dispatcher.live.pipeline import Pipeline
from tests.harness.lua_zone import START_MS, WarmLimits, Zone, limit


@dataclass
class Oracle:
    """The rule in its plainest form: all admissions are kept, and counted anew each time."""

    admitted: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def check(self, limits: Sequence[Limit], now_us: int) -> tuple[bool, set[tuple[str, int, int]]]:
        """Whether it is admitted, and what may be reported: (class, remaining, reset in ms)."""
        states = []
        for one in limits:
            window_us = one.rate.window_s * 1_000_000
            log = self.admitted.setdefault((one.name, one.subject), [])
            inside = sorted(at for at in log if now_us - window_us < at <= now_us)
            if len(inside) >= one.rate.limit:
                # Room comes when so many have left that fewer than the limit are inside.
                frees = inside[len(inside) - one.rate.limit] + window_us
                states.append((True, one.name, 0, frees))
            else:
                oldest = inside[0] if inside else now_us
                states.append((False, one.name, one.rate.limit - len(inside), oldest + window_us))
        refusing = [s for s in states if s[0]]
        if refusing:
            latest = max(s[3] for s in refusing)
            return False, {(s[1], 0, math.ceil(s[3] / 1000)) for s in refusing if s[3] == latest}
        tightest = min(s[2] for s in states)
        for one in limits:
            self.admitted[one.name, one.subject].append(now_us)
        return True, {(s[1], tightest - 1, math.ceil(s[3] / 1000)) for s in states if s[2] == tightest}


@pytest.mark.parametrize("seed", range(8))
async def test_random_schedules_against_the_oracle(zone: Zone, seed: int) -> None:
    rng = random.Random(seed)
    classes = [
        limit(rng.randint(1, 6), rng.randint(1, 4), name, subject)
        for name, subject in (("trip_accept", "d1"), ("general", "d1"), ("ip", "10.0.0.1"))
    ]
    oracle = Oracle()
    refused = 0
    for _ in range(150):
        # Gaps that hit the windows' edges to the microsecond, and gaps that do not.
        gap_us = rng.choice([0, 1, 250_000, 333_333, 999_999, 1_000_000, rng.randint(0, 2_000_000)])
        await zone.advance(us=gap_us)
        applying = rng.sample(classes, rng.randint(1, len(classes)))
        if rng.random() < 0.1:  # a setting that changed between two starts
            at = rng.randrange(len(classes))
            old = classes[at]
            classes[at] = limit(rng.randint(1, 6), old.rate.window_s, old.name, old.subject)
            continue
        admission = await zone.limits.check_limit(zone.keys, applying)
        admitted, reports = oracle.check(applying, zone.now_us)
        assert admission.is_admitted == admitted
        assert admission.limit is not None
        state = admission.limit
        assert (state.name, state.remaining, state.reset_ms) in reports
        refused += not admitted
    assert 10 < refused < 140
    for one in classes:
        times = oracle.admitted.get((one.name, one.subject), [])
        stored = await zone.redis.lrange(zone.keys.limit(one.name, one.subject), 0, -1)
        assert [int(at) for at in stored] == times[len(times) - len(stored) :]


async def test_the_window_s_edge_is_exact(zone: Zone) -> None:
    rate = [limit(2, 1)]
    for _ in range(2):
        assert (await zone.limits.check_limit(zone.keys, rate)).is_admitted
    await zone.advance(us=999_999)
    assert not (await zone.limits.check_limit(zone.keys, rate)).is_admitted
    await zone.advance(us=1)
    assert (await zone.limits.check_limit(zone.keys, rate)).is_admitted


async def test_who_waits_until_the_reset_gets_in(zone: Zone) -> None:
    rate = [limit(10, 60)]
    for i in range(15):
        admission = await zone.limits.check_limit(zone.keys, rate)
        assert admission.is_admitted == (i < 10)
        await zone.advance(us=1_234_567)
    assert admission.limit is not None
    await zone.advance(us=admission.limit.reset_ms * 1000 - 1000 - zone.now_us)
    assert not (await zone.limits.check_limit(zone.keys, rate)).is_admitted
    await zone.advance(us=1000)
    admission = await zone.limits.check_limit(zone.keys, rate)
    assert (admission.is_admitted, admission.limit and admission.limit.remaining) == (True, 0)


async def test_refusals_do_not_extend_the_window(zone: Zone) -> None:
    rate = [limit(1, 10)]
    await zone.limits.check_limit(zone.keys, rate)
    for _ in range(99):
        await zone.advance(100)
        admission = await zone.limits.check_limit(zone.keys, rate)
        assert not admission.is_admitted
        assert admission.limit is not None
        assert admission.limit.reset_ms == START_MS + 10_000
    await zone.advance(100)
    assert (await zone.limits.check_limit(zone.keys, rate)).is_admitted


async def test_of_several_limits_the_one_that_lasts_longest_is_told(zone: Zone) -> None:
    short, long = limit(1, 10, "trip_accept"), limit(1, 60, "general")
    await zone.limits.check_limit(zone.keys, [short, long])
    for order in ([short, long], [long, short]):
        admission = await zone.limits.check_limit(zone.keys, order)
        assert admission.limit is not None
        assert (admission.limit.name, admission.limit.reset_ms) == ("general", START_MS + 60_000)
    # One that is full refuses for all, and nothing is counted against the other.
    await zone.advance(10_000)
    assert not (await zone.limits.check_limit(zone.keys, [short, long])).is_admitted
    assert (await zone.limits.check_limit(zone.keys, [short])).is_admitted


async def test_of_several_limits_the_tightest_is_told(zone: Zone) -> None:
    wide, tight = limit(9, 60, "general"), limit(3, 10, "trip_accept")
    admission = await zone.limits.check_limit(zone.keys, [wide, tight])
    assert admission.limit is not None
    assert (admission.limit.name, admission.limit.remaining) == ("trip_accept", 2)


async def test_a_log_outlives_its_window_and_not_by_much(zone: Zone) -> None:
    await zone.limits.check_limit(zone.keys, [limit(3, 60)])
    left_ms = await zone.redis.pttl(zone.keys.limit("general", "d1"))
    assert 60_000 < left_ms <= 61_000


async def test_no_limit_is_no_limit(zone: Zone) -> None:
    for _ in range(3):
        admission = await zone.limits.check_limit(zone.keys, [])
        assert (admission.is_admitted, admission.limit) == (True, None)


async def test_fifty_clients_and_never_more_than_ten_in_any_window(redis_url: str) -> None:
    """Real connections, real time; judged by Redis' own times of what it admitted."""
    keys, rate = keys_of("z"), [limit(10, 1)]
    log = keys.limit("general", "d1")
    window_us = 1_000_000
    admitted = 0
    refused_ms: list[int] = []
    times: set[int] = set()

    async with contextlib.AsyncExitStack() as stack:

        async def client() -> None:
            nonlocal admitted
            redis = connect(redis_url)
            stack.push_async_callback(redis.aclose)
            pipeline = Pipeline(redis)
            scripts = WarmLimits(pipeline)
            rng = random.Random()
            while admitted < 35:  # the fourth window's, however long that takes
                # In one pipeline with the call, so that no admission leaves the log unseen.
                call = asyncio.ensure_future(scripts.check_limit(keys, rate))
                await asyncio.sleep(0)
                seen = pipeline.command("LRANGE", log, 0, -1)
                admission = await call
                times.update(int(at) for at in await seen)
                assert admission.limit is not None
                if admission.is_admitted:
                    admitted += 1
                else:
                    refused_ms.append(admission.limit.now_ms)
                    assert admission.limit.reset_ms > admission.limit.now_ms - 1
                await asyncio.sleep(rng.uniform(0, 0.02))
            await pipeline.close()

        await asyncio.gather(*(client() for _ in range(50)))

    ordered = sorted(times)
    assert len(ordered) == admitted, "two of the same microsecond would be one here"
    for first, eleventh in zip(ordered, ordered[10:], strict=False):
        assert eleventh - first >= window_us
    # And none was turned away for nothing: the ten of the window that ended then were used.
    assert refused_ms
    for at_ms in refused_ms:
        # It was refused within this ms, whose last µs and those of the window before it may count.
        since, until = at_ms * 1000 - window_us, at_ms * 1000 + 999
        assert bisect.bisect_right(ordered, until) - bisect.bisect_right(ordered, since) >= 10


async def test_a_limit_without_redis_says_so() -> None:
    redis = connect("redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable):
        await LimitScripts(Pipeline(redis)).check_limit(keys_of("z"), [limit(1)])
    await redis.aclose()


async def test_a_clock_that_steps_back_locks_nobody_out(zone: Zone) -> None:
    """What was admitted counts as of now: for a window at most, and never twice."""
    rate = [limit(3, 10)]
    await zone.advance(-1_000)
    await zone.limits.check_limit(zone.keys, rate)
    await zone.advance(1_000)
    for _ in range(2):
        await zone.limits.check_limit(zone.keys, rate)
    await zone.advance(-3_600_000)
    admission = await zone.limits.check_limit(zone.keys, rate)
    assert not admission.is_admitted
    assert admission.limit is not None
    assert admission.limit.reset_ms == zone.now_ms + 10_000
    await zone.advance(10_000)
    for _ in range(3):
        assert (await zone.limits.check_limit(zone.keys, rate)).is_admitted
    assert not (await zone.limits.check_limit(zone.keys, rate)).is_admitted


async def test_a_small_step_back_opens_no_second_window(zone: Zone) -> None:
    """Times that lie ahead and are not looked for count for longer, by the step at most."""
    rate = [limit(3, 10)]
    for wait_ms in (0, 5_000, 0, -3_000):
        await zone.advance(wait_ms)
        admission = await zone.limits.check_limit(zone.keys, rate)
    assert not admission.is_admitted
    assert admission.limit is not None
    assert admission.limit.reset_ms == START_MS + 10_000
    await zone.advance(8_000)  # the first has left; the clock shows 10 s after it, which are 13 s
    assert (await zone.limits.check_limit(zone.keys, rate)).is_admitted
    admission = await zone.limits.check_limit(zone.keys, rate)
    assert not admission.is_admitted
    assert admission.limit is not None
    assert admission.limit.reset_ms == START_MS + 15_000


async def test_a_refusal_waits_for_nothing_that_lies_ahead(zone: Zone) -> None:
    wide, narrow = [limit(3, 10)], [limit(1, 10)]
    for wait_ms in (0, 5_000):
        await zone.advance(wait_ms)
        await zone.limits.check_limit(zone.keys, wide)
    await zone.advance(-3_000)
    admission = await zone.limits.check_limit(zone.keys, narrow)
    assert not admission.is_admitted
    assert admission.limit is not None
    assert admission.limit.reset_ms == zone.now_ms + 10_000


@pytest.mark.parametrize("steps_back_ms", [2_000, 3_600_000])
async def test_a_log_whose_times_are_pulled_back_still_goes_by_itself(
    zone: Zone, steps_back_ms: int
) -> None:
    """A refusal records nothing, so that no later call of this user may come to give it an end."""
    for rate, wait_ms in ((limit(2, 10), 1_000), (limit(2, 10), -steps_back_ms), (limit(1, 10), 0)):
        admission = await zone.limits.check_limit(zone.keys, [rate])
        await zone.advance(wait_ms)
    assert not admission.is_admitted
    assert 9 <= await zone.redis.ttl(zone.keys.limit("general", "d1")) <= 11
