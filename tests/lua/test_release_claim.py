"""A release: what an attempt that came to nothing lets go of."""

from __future__ import annotations

from dispatcher.core.idempotency import StoredAnswer
from dispatcher.live.settlement import Settlement
from tests.harness.lua_zone import START_MS, Zone, key, limit


async def test_a_release_drops_its_own_alone(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    attempt = zone.attempt(key=key())
    before = await zone.dump()
    await zone.accept(attempt)
    stranger = attempt._replace(token="other.9")
    held = await zone.dump()
    assert await zone.claims.release_claim(zone.keys, stranger) == 0
    assert await zone.dump() == held
    assert await zone.claims.release_claim(zone.keys, attempt) == 2
    assert await zone.dump() == before
    assert await zone.claims.release_claim(zone.keys, attempt) == 0


async def test_a_release_leaves_an_answer_alone(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    attempt = zone.attempt(key=key())
    await zone.accept(attempt)
    answer = f"D {key().fingerprint} 200 {{}}"
    stored = StoredAnswer(key().fingerprint, 200, "{}", START_MS)
    await zone.settler.settle(zone.keys, attempt, Settlement(), stored)
    assert await zone.claims.release_claim(zone.keys, attempt) == 0
    assert await zone.redis.get(attempt.record_key(zone.keys)) == answer
    # Nor does it touch what stands in for a record where no key was sent.
    await zone.claims.release_claim(zone.keys, zone.attempt())
    assert await zone.redis.exists(zone.keys.epoch) == 1


async def test_a_release_gives_back_what_the_limits_counted_and_nothing_else(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    rates = [limit(5), limit(9, name="ip", subject="10.0.0.1")]
    await zone.advance(us=123_457)
    for _ in range(2):  # of another call, before and after, a microsecond apart
        await zone.limits.check_limit(zone.keys, rates)
        await zone.advance(us=1)
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=rates)
    await zone.accept(attempt)
    await zone.advance(us=1)
    await zone.limits.check_limit(zone.keys, rates)
    assert await zone.claims.release_claim(zone.keys, attempt, gives_back=True) == 2
    for one in rates:
        log = await zone.redis.lrange(zone.keys.limit(one.name, one.subject), 0, -1)
        assert [int(at) for at in log] == [zone.now_us - 3, zone.now_us - 2, zone.now_us]
        await zone.redis.rpop(zone.keys.limit(one.name, one.subject))
    assert {name: value for name, (value, _) in (await zone.dump()).items()} == {
        name: value for name, (value, _) in before.items()
    }
    # Once, however often it is released.
    assert await zone.claims.release_claim(zone.keys, attempt, gives_back=True) == 0
    assert await zone.redis.llen(zone.keys.limit("general", "d1")) == 2


async def test_a_release_gives_nothing_back_unless_it_is_to(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    attempt = zone.attempt(limits=[limit(5)])
    await zone.accept(attempt)
    await zone.claims.release_claim(zone.keys, attempt)
    assert await zone.redis.llen(zone.keys.limit("general", "d1")) == 1
