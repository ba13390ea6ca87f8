"""A release: what an attempt that came to nothing lets go of."""

from __future__ import annotations

from dispatcher.core.idempotency import StoredAnswer
from dispatcher.live.settle import Settlement
from tests.harness.lua_zone import START_MS, Zone, key


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
