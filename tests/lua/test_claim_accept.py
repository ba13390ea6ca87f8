"""An accept: who wins, and what every loser is told."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.trips import Status
from dispatcher.live.claim_results import AcceptClaimed, ClaimCode, Refused, Replayed
from dispatcher.live.claims import WAITED_FOR, Resolved
from dispatcher.live.idempotency import KeptRefusal
from tests.harness.lua_zone import LEASE_MS, START_MS, Zone, key, limit
from tests.lua.claim_kinds import claim_of, code_of


async def test_an_accept_learns_what_its_commit_needs(zone: Zone) -> None:
    trip = await zone.trip(version=4)
    await zone.driver(vehicle_type="van")
    await zone.redis.zadd(zone.keys.offers("z_1"), {"d7": START_MS + 1, "d8": START_MS - 1})
    result = await zone.accept(zone.attempt(), version=4)
    assert isinstance(result, AcceptClaimed)
    assert result.trip == trip
    assert (result.vehicle_type, sorted(result.offered)) == ("van", ["d7", "d8"])


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("accepted", "trip_already_assigned"), ("arrived", "trip_already_assigned"),
        ("ongoing", "trip_already_assigned"), ("completed", "trip_not_pending"),
        ("cancelled", "trip_not_pending"), ("expired", "trip_not_pending"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["accept", "decline"])
async def test_a_trip_that_is_not_pending(zone: Zone, kind: str, status: str, code: str) -> None:
    await zone.trip(current_status=Status(status), version=3, driver_id="d9")
    await zone.driver()
    claim = claim_of(zone, kind, version=1)  # the state is looked at first
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    result = await claim(attempt)
    assert result == Refused(ClaimCode(code), result.limit, 3, Status(status), START_MS)
    assert await zone.redis.keys("*:claim*") == []
    # Kept: the same again, free of charge, whatever has become of the trip.
    await zone.trip()
    again = await claim(attempt._replace(token="other.1"))
    assert again == Replayed(result.limit, KeptRefusal(code, 3, Status(status)))
    assert await zone.redis.llen(zone.keys.limit("general", "d1")) == 1
    assert 0 < await zone.redis.pttl(attempt.record_key(zone.keys)) <= attempt.key_ttl_ms


@pytest.mark.parametrize("kind", ["accept", "decline", "transition"])
async def test_an_expected_version(zone: Zone, kind: str) -> None:
    await zone.trip(version=2)
    await zone.driver()
    for version, code in ((1, "version_conflict"), (3, "version_conflict"), (2, "claimed")):
        result = await claim_of(zone, kind, version=version)(zone.attempt(key=key(f"k{version}")))
        assert code_of(result) == code
        if code != "claimed":
            assert result == Refused(ClaimCode(code), None, 2, Status.PENDING, START_MS)
            record = await zone.redis.get(zone.keys.idem("d1", "/act", f"k{version}"))
            assert record == f"N {key().fingerprint} version_conflict 2 pending"


async def test_a_trip_that_is_about_to_be_cancelled_is_waited_for(zone: Zone) -> None:
    """That change may come to nothing: nobody else has the trip."""
    await zone.trip()
    await zone.driver()
    cancel = zone.attempt(driver_id="", token=f"node.c1{WAITED_FOR}")
    await zone.redis.set(zone.keys.trip_claim("z_1"), cancel.token, px=LEASE_MS)
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    assert code_of(await zone.accept(attempt)) == "trip_busy"
    assert await zone.redis.keys("*:idem:*") == [], "it is asked again"
    assert await zone.redis.keys("*:limit:*") == [], "and counted then"
    await zone.claims.release_claim(zone.keys, cancel)
    assert code_of(await zone.accept(attempt)) == "claimed"


@pytest.mark.parametrize("kind", ["accept", "decline"])
async def test_no_state_refuses_that_is_about_to_change(zone: Zone, kind: str) -> None:
    """The trip may be over, or free again, and Redis is to be told yet: Postgres is asked in the end."""
    await zone.trip(version=2, current_status="ongoing", driver_id="d2")
    await zone.driver()
    claim, ending = claim_of(zone, kind), f"node.e1{WAITED_FOR}"
    await zone.redis.set(zone.keys.trip_claim("z_1"), ending, px=LEASE_MS)
    assert code_of(await claim(zone.attempt(key=key()))) == "trip_busy"
    asked = zone.attempt(key=key(), resolved=frozenset({Resolved.CHANGE}))
    assert code_of(await claim(asked)) == "trip_already_assigned"
    await zone.redis.set(zone.keys.trip_claim("z_1"), "node.a1", px=LEASE_MS)
    assert code_of(await claim(zone.attempt(key=key("k2")))) == "trip_already_assigned", "an accept's"


async def test_who_asked_postgres_still_waits_for_the_change(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    await zone.redis.set(zone.keys.trip_claim("z_1"), f"node.c1{WAITED_FOR}", px=LEASE_MS)
    asked = zone.attempt(key=key(), resolved=frozenset({Resolved.CHANGE}))
    assert code_of(await zone.accept(asked)) == "trip_busy"


@pytest.mark.parametrize(
    ("driver", "code"),
    [
        ({"is_online": False}, "driver_not_online"),
        ({"is_online": False, "availability_status": "unavailable"}, "driver_not_online"),
        ({"availability_status": "unavailable"}, "driver_not_available"),
        ({"trip_id": "z_9"}, "driver_not_available"),
    ],
)
async def test_a_driver_who_may_not(zone: Zone, driver: dict[str, Any], code: str) -> None:
    await zone.trip()
    await zone.driver(**driver)
    attempt = zone.attempt(key=key())
    assert code_of(await zone.accept(attempt)) == code
    assert code_of(await zone.accept(attempt)) == "replay"
    assert await zone.redis.keys("*:claim*") == []


async def test_the_policy_asks_for_an_open_offer(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    offers = zone.keys.offers("z_1")
    assert code_of(await zone.accept(zone.attempt(key=key()), policy="offered")) == "not_offered"
    await zone.redis.zadd(offers, {"d1": START_MS})
    assert code_of(await zone.accept(zone.attempt(key=key()), policy="offered")) == "not_offered"
    assert await zone.redis.keys("*:idem:*") == [], "the offer may come yet"
    await zone.redis.zadd(offers, {"d1": START_MS + 1})
    assert code_of(await zone.accept(zone.attempt(key=key()), policy="offered")) == "claimed"


async def test_one_driver_wins_and_the_others_keep_their_answer(zone: Zone) -> None:
    await zone.trip()
    for name in ("d1", "d2"):
        await zone.driver(name)
    winner = zone.attempt()
    assert code_of(await zone.accept(winner)) == "claimed"
    loser = zone.attempt(driver_id="d2", key=key(user="d2"), limits=[limit(5, subject="d2")])
    assert code_of(await zone.accept(loser)) == "trip_already_assigned"
    assert await zone.redis.get(zone.keys.trip_claim("z_1")) == winner.token
    assert await zone.redis.llen(zone.keys.limit("general", "d2")) == 1
    # The winner's commit failed. One key has one answer all the same; a new try takes a new key.
    await zone.claims.release_claim(zone.keys, winner)
    assert code_of(await zone.accept(loser)) == "replay"
    fresh = zone.attempt(driver_id="d2", key=key("k2", user="d2"), limits=[limit(5, subject="d2")])
    assert code_of(await zone.accept(fresh)) == "claimed"


async def test_a_driver_takes_one_trip_at_a_time(zone: Zone) -> None:
    await zone.trip("1")
    await zone.trip("2")
    await zone.driver()
    assert code_of(await zone.accept(zone.attempt("z_1"))) == "claimed"
    attempt = zone.attempt("z_2", key=key())
    assert code_of(await zone.accept(attempt)) == "driver_not_available"
    assert code_of(await zone.accept(attempt)) == "replay"
    assert await zone.redis.exists(zone.keys.trip_claim("z_2")) == 0


async def test_guards_come_in_their_order(zone: Zone) -> None:
    """Everything is wrong at once; each cause is taken away in turn."""
    await zone.redis.delete(zone.keys.epoch)
    record = zone.keys.idem("d1", "/act", "k1")
    await zone.redis.set(record, f"D {key('x', 'other').fingerprint} 200 {{}}")
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    await zone.trip(current_status=Status.CANCELLED, version=7)
    await zone.driver(is_online=False, availability_status="unavailable")
    await zone.redis.set(zone.keys.trip_claim("z_1"), "other.1")
    await zone.redis.set(zone.keys.driver_claim("d1"), "other.2")
    attempt = zone.attempt(key=key(), limits=[limit(1)])

    async def code() -> str:
        return code_of(await zone.accept(attempt, version=1, policy="offered"))

    assert await code() == "cold"
    await zone.warm()
    assert await code() == "key_reused"
    await zone.redis.delete(record)
    assert await code() == "rate_limited"
    attempt = attempt._replace(limits=(), key=None)  # from here on refusals would be kept
    assert await code() == "trip_not_pending"
    await zone.trip(version=7)
    assert await code() == "version_conflict"
    await zone.trip(version=1)
    assert await code() == "driver_not_online"
    await zone.driver(availability_status="unavailable")
    assert await code() == "driver_not_available"
    await zone.driver()
    assert await code() == "not_offered"
    await zone.redis.zadd(zone.keys.offers("z_1"), {"d1": START_MS + 1_000})
    assert await code() == "trip_already_assigned"
    await zone.redis.delete(zone.keys.trip_claim("z_1"))
    assert await code() == "driver_not_available"
    await zone.redis.delete(zone.keys.driver_claim("d1"))
    assert await code() == "claimed"
