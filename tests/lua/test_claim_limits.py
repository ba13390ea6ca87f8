"""Every claim: what the limits refuse, and what is not written where something is not known."""

from __future__ import annotations

import pytest

from dispatcher.live.claim_results import ClaimCode, Refused, Unresolved
from dispatcher.live.claims import Resolved
from tests.harness.lua_zone import START_MS, Zone, key, limit
from tests.lua.claim_kinds import CLAIMS, claim_of, code_of, make_ready


@pytest.mark.parametrize("kind", CLAIMS)
async def test_the_limit_refuses_and_a_refusal_leaves_no_trace(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    log = zone.keys.limit("general", "d1")
    await zone.redis.rpush(log, *(zone.now_us - 30_000_000 + i for i in range(2)))
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(2)], **more)
    result = await claim_of(zone, kind)(attempt)
    assert code_of(result) == "rate_limited"
    assert result.limit is not None
    assert (result.limit.remaining, result.limit.reset_ms) == (0, START_MS + 30_000)
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_replay_passes_a_full_limit_and_uses_none_up(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    record = zone.keys.idem("d1", "/act", "k1")
    await zone.redis.set(record, f"D {key().fingerprint} 200 {{}}")
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(1)], **more)
    assert code_of(await claim_of(zone, kind)(attempt)) == "replay"
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_full_limit_spares_postgres_the_question(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    await zone.warm(horizon_ms=START_MS + 60_000)
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    attempt = zone.attempt(key=key(), limits=[limit(1)], **more)
    assert code_of(await claim_of(zone, kind)(attempt)) == "rate_limited"


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_second_look_is_not_counted_again(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    log = zone.keys.limit("general", "d1")
    await zone.redis.rpush(log, zone.now_us)
    attempt = zone.attempt(key=key(), limits=[limit(1)], resolved=[Resolved.LIMITS], **more)
    assert code_of(await claim_of(zone, kind)(attempt)) == "claimed"
    assert await zone.redis.llen(log) == 1


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_second_look_still_asks_for_a_lease_that_is_over(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    record = zone.keys.idem("d1", "/act", "k1")
    await zone.redis.set(record, f"L {key().fingerprint} {START_MS} other.1")
    attempt = zone.attempt(key=key(), limits=[limit(1)], resolved=[Resolved.LIMITS], **more)
    assert code_of(await claim_of(zone, kind)(attempt)) == "key_unresolved"


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_cold_zone_is_not_written_to(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    await zone.redis.delete(zone.keys.epoch)
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)], resolved=Resolved, **more)
    result = await claim_of(zone, kind)(attempt)
    assert result == Unresolved(ClaimCode.COLD, None)
    assert await zone.dump() == before


@pytest.mark.parametrize(
    ("kind", "code", "resolved", "then"),
    [
        ("accept", "trip_unknown", Resolved.TRIP, "trip_not_found"),
        ("transition", "trip_unknown", Resolved.TRIP, "trip_not_found"),
        ("decline", "trip_unknown", Resolved.TRIP, "trip_not_found"),
        ("availability", "driver_unknown", Resolved.DRIVER, "claimed"),
    ],
)
async def test_the_unknown_is_asked_for_first(
    zone: Zone, kind: str, code: str, resolved: Resolved, then: str
) -> None:
    before = await zone.dump()
    trip_id = "" if kind == "availability" else "z_1"
    attempt = zone.attempt(trip_id, key=key(), limits=[limit(5)])
    assert code_of(await claim_of(zone, kind)(attempt)) == code
    assert await zone.dump() == before
    attempt = attempt._replace(resolved=frozenset({resolved}))
    result = await claim_of(zone, kind)(attempt)
    assert code_of(result) == then
    if then == "trip_not_found":
        assert isinstance(result, Refused)
        assert (result.version, result.status) == (None, None)
        assert await zone.redis.keys("*:idem:*") == [], "a corrected request deserves another answer"
        assert await zone.redis.llen(zone.keys.limit("general", "d1")) == 1


async def test_the_driver_of_an_accept_is_asked_for(zone: Zone) -> None:
    await zone.trip()
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    assert code_of(await zone.accept(attempt)) == "driver_unknown"
    assert await zone.dump() == before
    attempt = attempt._replace(resolved=frozenset({Resolved.DRIVER}))
    assert code_of(await zone.accept(attempt)) == "driver_not_online"


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_retry_after_an_outcome_that_got_lost_is_not_counted_again(
    zone: Zone, kind: str
) -> None:
    """Its lease is over and Postgres knows nothing: the request was counted when it was granted."""
    more = await make_ready(zone, kind)
    log = zone.keys.limit("general", "d1")
    await zone.redis.rpush(log, zone.now_us - 30_000_000)
    record = zone.keys.idem("d1", "/act", "k1")
    await zone.redis.set(record, f"L {key().fingerprint} {START_MS} other.1")
    attempt = zone.attempt(key=key(), limits=[limit(1)], **more)
    assert code_of(await claim_of(zone, kind)(attempt)) == "key_unresolved"
    attempt = attempt._replace(resolved=frozenset({Resolved.KEY}))
    assert code_of(await claim_of(zone, kind)(attempt)) == "claimed"
    assert await zone.redis.llen(log) == 1
