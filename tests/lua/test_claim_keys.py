"""Every claim: the lease that it gives, and what an idempotency key makes of it."""

from __future__ import annotations

import pytest

from dispatcher.live.claim_results import Replayed
from dispatcher.live.claims import Resolved
from dispatcher.live.idempotency import KeptAnswer
from tests.harness.lua_zone import LEASE_MS, MARGIN_MS, START_MS, Zone, key, limit
from tests.lua.claim_kinds import CLAIMS, Claimed, claim_of, code_of, make_ready


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_claim_has_a_lease_an_entry_and_an_idempotency_lease(zone: Zone, kind: str) -> None:
    attempt = zone.attempt(key=key(), limits=[limit(5)], **await make_ready(zone, kind))
    result = await claim_of(zone, kind)(attempt)
    assert isinstance(result, Claimed)
    assert result.now_ms == START_MS
    assert result.limit is not None
    assert (result.limit.remaining, result.limit.reset_ms) == (4, START_MS + 60_000)

    held = {
        "accept": {zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1")},
        "transition": {zone.keys.trip_claim("z_1")},
        "creation": {zone.keys.trip_claim("z_1")},
        "availability": {zone.keys.driver_claim("d1")},
        "decline": set(),
    }[kind]
    assert set(await zone.redis.keys("*:claim:*")) == held
    for name in held:
        assert await zone.redis.get(name) == attempt.token
        assert 0 < await zone.redis.pttl(name) <= LEASE_MS
    entries = await zone.redis.zrange(zone.keys.claims, 0, -1, withscores=True)
    assert [(m, float(s)) for m, s in entries] == [(attempt.entry, START_MS + LEASE_MS)]
    record = await zone.redis.get(attempt.record_key(zone.keys))
    assert record == f"L {key().fingerprint} {START_MS + LEASE_MS + MARGIN_MS} {attempt.token}"
    assert 0 < await zone.redis.pttl(attempt.record_key(zone.keys)) <= attempt.key_ttl_ms
    assert await zone.redis.lrange(zone.keys.limit("general", "d1"), 0, -1) == [str(START_MS * 1000)]


@pytest.mark.parametrize("kind", CLAIMS)
async def test_without_a_key_no_record_is_kept(zone: Zone, kind: str) -> None:
    attempt = zone.attempt(**await make_ready(zone, kind))
    epoch = await zone.redis.get(zone.keys.epoch)
    assert code_of(await claim_of(zone, kind)(attempt)) == "claimed"
    assert await zone.redis.keys("*:idem:*") == []
    assert await zone.redis.get(zone.keys.epoch) == epoch


@pytest.mark.parametrize("kind", CLAIMS)
async def test_what_postgres_keeps_is_replayed_without_a_write(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    await zone.redis.set(
        zone.keys.idem("d1", "/act", "k1"), f'D {key().fingerprint} 200 {{"a":"b c"}}', px=60_000
    )
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)], **more)
    result = await claim_of(zone, kind)(attempt)
    assert result == Replayed(result.limit, KeptAnswer(200, '{"a":"b c"}'))
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_another_request_with_the_key_is_a_mismatch(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    claim = claim_of(zone, kind)
    assert code_of(await claim(zone.attempt(key=key(), **more))) == "claimed"
    before = await zone.dump()
    other = zone.attempt(key=key(asked="something else"), limits=[limit(5)], **more)
    assert code_of(await claim(other)) == "key_reused"
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_in_flight_until_the_lease_is_over(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    claim = claim_of(zone, kind)
    first = zone.attempt(key=key(), **more)
    await claim(first)
    second = zone.attempt(key=key(), limits=[limit(1)], **more)
    await zone.advance(LEASE_MS + MARGIN_MS - 1)
    before = await zone.dump()
    assert code_of(await claim(second)) == "request_in_progress"
    await zone.advance(1)
    assert code_of(await claim(second)) == "key_unresolved"
    assert await zone.dump() == before

    # Postgres knows nothing of it: the next one takes over, record and all.
    second = second._replace(resolved=frozenset({Resolved.KEY}))
    await zone.redis.delete(zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1"))  # expired
    assert code_of(await claim(second)) == "claimed"
    record = await zone.redis.get(second.record_key(zone.keys))
    assert record.endswith(f" {START_MS + 2 * (LEASE_MS + MARGIN_MS)} {second.token}")
    # And the first one's late end does not harm it.
    await zone.claims.release_claim(zone.keys, first)
    assert await zone.redis.get(second.record_key(zone.keys)) == record


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_missing_record_asks_postgres_up_to_the_horizon(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    await zone.warm(horizon_ms=START_MS + 500)
    claim = claim_of(zone, kind)
    await zone.advance(499)
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)], **more)
    assert code_of(await claim(attempt)) == "key_unresolved"
    assert await zone.dump() == before
    assert code_of(await claim(zone.attempt(**more, resolved=()))) == "claimed"  # no key, no question

    await zone.redis.delete(zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1"))
    await zone.advance(1)
    assert code_of(await claim(attempt)) == "claimed"


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_horizon_is_passed_by_who_has_asked(zone: Zone, kind: str) -> None:
    more = await make_ready(zone, kind)
    await zone.warm(horizon_ms=START_MS + 500)
    assert (
        code_of(await claim_of(zone, kind)(zone.attempt(key=key(), resolved=[Resolved.KEY], **more)))
        == "claimed"
    )
