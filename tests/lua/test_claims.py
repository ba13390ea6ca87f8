"""The claims: who goes on to commit, what everyone else is told, and what is written meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from dispatcher.core.trips import Status
from dispatcher.live.scripts import Attempt, Settlement, Verdict
from tests.harness.lua_zone import BACKENDS, LEASE_MS, MARGIN_MS, START_MS, Zone, key, limit, open_zone

Claim = Callable[[Attempt], Awaitable[Verdict]]
CLAIMS = ("accept", "transition", "creation", "availability", "decline")


@pytest.fixture(params=BACKENDS)
async def zone(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Zone]:
    async with open_zone(request.param, redis_url) as opened:
        yield opened


def claim_of(zone: Zone, kind: str, **more: Any) -> Claim:
    """One kind of claim, as its service would ask for it."""
    scripts, keys = zone.scripts, zone.keys
    match kind:
        case "accept":
            usual: dict[str, Any] = {"version": None, "policy": "open"}
            return lambda a: scripts.claim_accept(keys, a, **(usual | more))
        case "transition":
            usual = {
                "version": None, "role": "customer", "actor": "c1",
                "sources": (Status.PENDING, Status.ACCEPTED),
            }  # fmt: skip
            return lambda a: scripts.claim_transition(keys, a, **(usual | more))
        case "creation":
            return lambda a: scripts.claim_creation(keys, a)
        case "availability":
            usual = {"goes_offline": False, "changes_zone": False, "vehicle_type": ""}
            return lambda a: scripts.claim_availability(keys, a, **(usual | more))
        case _:
            return lambda a: scripts.claim_decline(keys, a, **({"version": None} | more))


async def _ready(zone: Zone, kind: str) -> dict[str, Any]:
    """A zone in which this claim succeeds, and what its attempt is to name."""
    await zone.driver("d1")
    if kind != "creation":
        await zone.trip("1")
    return {"trip_id": ""} if kind == "availability" else {}


# --- every claim: the winner


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_claim_has_a_lease_an_entry_and_an_idempotency_lease(zone: Zone, kind: str) -> None:
    attempt = zone.attempt(key=key(), limits=[limit(5)], **await _ready(zone, kind))
    verdict = await claim_of(zone, kind)(attempt)
    assert (verdict.code, verdict.now_ms) == ("claimed", START_MS)
    assert verdict.limit is not None
    assert (verdict.limit.remaining, verdict.limit.reset_ms) == (4, START_MS + 60_000)

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
    record = await zone.redis.get(attempt.record(zone.keys))
    assert record == f"L {key().fingerprint} {START_MS + LEASE_MS + MARGIN_MS} {attempt.token}"
    assert 0 < await zone.redis.pttl(attempt.record(zone.keys)) <= attempt.key_ttl_ms
    assert await zone.redis.lrange(zone.keys.limit("general", "d1"), 0, -1) == [str(START_MS * 1000)]


@pytest.mark.parametrize("kind", CLAIMS)
async def test_without_a_key_no_record_is_kept(zone: Zone, kind: str) -> None:
    attempt = zone.attempt(**await _ready(zone, kind))
    epoch = await zone.redis.get(zone.keys.epoch)
    assert (await claim_of(zone, kind)(attempt)).code == "claimed"
    assert await zone.redis.keys("*:idem:*") == []
    assert await zone.redis.get(zone.keys.epoch) == epoch


# --- every claim: idempotency


@pytest.mark.parametrize("kind", CLAIMS)
async def test_what_postgres_keeps_is_replayed_without_a_write(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    await zone.redis.set(
        zone.keys.idem("d1", "/act", "k1"), f'D {key().fingerprint} 200 {{"a":"b c"}}', px=60_000
    )
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)], **more)
    verdict = await claim_of(zone, kind)(attempt)
    assert (verdict.code, verdict.detail) == ("replay", ['D 200 {"a":"b c"}'])
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_another_request_with_the_key_is_a_mismatch(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    claim = claim_of(zone, kind)
    assert (await claim(zone.attempt(key=key(), **more))).code == "claimed"
    before = await zone.dump()
    other = zone.attempt(key=key(asked="something else"), limits=[limit(5)], **more)
    assert (await claim(other)).code == "key_reused"
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_in_flight_until_the_lease_is_over(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    claim = claim_of(zone, kind)
    first = zone.attempt(key=key(), **more)
    await claim(first)
    second = zone.attempt(key=key(), limits=[limit(1)], **more)
    await zone.advance(LEASE_MS + MARGIN_MS - 1)
    before = await zone.dump()
    assert (await claim(second)).code == "request_in_progress"
    await zone.advance(1)
    assert (await claim(second)).code == "key_unresolved"
    assert await zone.dump() == before

    # Postgres knows nothing of it: the next one takes over, record and all.
    second.resolved = "k"
    await zone.redis.delete(zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1"))  # expired
    assert (await claim(second)).code == "claimed"
    record = await zone.redis.get(second.record(zone.keys))
    assert record.endswith(f" {START_MS + 2 * (LEASE_MS + MARGIN_MS)} {second.token}")
    # And the first one's late end does not harm it.
    await zone.scripts.release_claim(zone.keys, first)
    assert await zone.redis.get(second.record(zone.keys)) == record


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_missing_record_asks_postgres_up_to_the_horizon(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    await zone.warm(horizon_ms=START_MS + 500)
    claim = claim_of(zone, kind)
    await zone.advance(499)
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)], **more)
    assert (await claim(attempt)).code == "key_unresolved"
    assert await zone.dump() == before
    assert (await claim(zone.attempt(**more, resolved=""))).code == "claimed"  # no key, no question

    await zone.redis.delete(zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1"))
    await zone.advance(1)
    assert (await claim(attempt)).code == "claimed"


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_horizon_is_passed_by_who_has_asked(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    await zone.warm(horizon_ms=START_MS + 500)
    assert (await claim_of(zone, kind)(zone.attempt(key=key(), resolved="k", **more))).code == "claimed"


# --- every claim: limits


@pytest.mark.parametrize("kind", CLAIMS)
async def test_the_limit_refuses_and_a_refusal_leaves_no_trace(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    log = zone.keys.limit("general", "d1")
    await zone.redis.rpush(log, *(zone.now_us - 30_000_000 + i for i in range(2)))
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(2)], **more)
    verdict = await claim_of(zone, kind)(attempt)
    assert verdict.code == "rate_limited"
    assert verdict.limit is not None
    assert (verdict.limit.remaining, verdict.limit.reset_ms) == (0, START_MS + 30_000)
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_replay_passes_a_full_limit_and_uses_none_up(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    record = zone.keys.idem("d1", "/act", "k1")
    await zone.redis.set(record, f"D {key().fingerprint} 200 {{}}")
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(1)], **more)
    assert (await claim_of(zone, kind)(attempt)).code == "replay"
    assert await zone.dump() == before


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_full_limit_spares_postgres_the_question(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    await zone.warm(horizon_ms=START_MS + 60_000)
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    attempt = zone.attempt(key=key(), limits=[limit(1)], **more)
    assert (await claim_of(zone, kind)(attempt)).code == "rate_limited"


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_second_look_is_not_counted_again(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    log = zone.keys.limit("general", "d1")
    await zone.redis.rpush(log, zone.now_us)
    attempt = zone.attempt(key=key(), limits=[limit(1)], resolved="l", **more)
    assert (await claim_of(zone, kind)(attempt)).code == "claimed"
    assert await zone.redis.llen(log) == 1


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_second_look_still_asks_for_a_lease_that_is_over(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    record = zone.keys.idem("d1", "/act", "k1")
    await zone.redis.set(record, f"L {key().fingerprint} {START_MS} other.1")
    attempt = zone.attempt(key=key(), limits=[limit(1)], resolved="l", **more)
    assert (await claim_of(zone, kind)(attempt)).code == "key_unresolved"


# --- every claim: nothing is known, nothing is written


@pytest.mark.parametrize("kind", CLAIMS)
async def test_a_cold_zone_is_not_written_to(zone: Zone, kind: str) -> None:
    more = await _ready(zone, kind)
    await zone.redis.delete(zone.keys.epoch)
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)], resolved="ktdl", **more)
    verdict = await claim_of(zone, kind)(attempt)
    assert (verdict.code, verdict.limit, verdict.detail) == ("cold", None, [])
    assert await zone.dump() == before


@pytest.mark.parametrize(
    ("kind", "code", "letter", "then"),
    [
        ("accept", "trip_unknown", "t", "trip_not_found"),
        ("transition", "trip_unknown", "t", "trip_not_found"),
        ("decline", "trip_unknown", "t", "trip_not_found"),
        ("availability", "driver_unknown", "d", "claimed"),
    ],
)
async def test_the_unknown_is_asked_for_first(
    zone: Zone, kind: str, code: str, letter: str, then: str
) -> None:
    before = await zone.dump()
    trip_id = "" if kind == "availability" else "z_1"
    attempt = zone.attempt(trip_id, key=key(), limits=[limit(5)])
    assert (await claim_of(zone, kind)(attempt)).code == code
    assert await zone.dump() == before
    attempt.resolved = letter
    verdict = await claim_of(zone, kind)(attempt)
    assert verdict.code == then
    if then == "trip_not_found":
        assert verdict.detail == ["-", "-"]
        assert await zone.redis.keys("*:idem:*") == [], "a corrected request deserves another answer"
        assert await zone.redis.llen(zone.keys.limit("general", "d1")) == 1


async def test_the_driver_of_an_accept_is_asked_for(zone: Zone) -> None:
    await zone.trip()
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    assert (await zone.accept(attempt)).code == "driver_unknown"
    assert await zone.dump() == before
    attempt.resolved = "d"
    assert (await zone.accept(attempt)).code == "driver_not_online"


# --- accept


async def test_an_accept_learns_what_its_commit_needs(zone: Zone) -> None:
    trip = await zone.trip(version=4)
    await zone.driver(vehicle_type="van")
    await zone.redis.zadd(zone.keys.offers("z_1"), {"d7": START_MS + 1, "d8": START_MS - 1})
    verdict = await zone.accept(zone.attempt(), version=4)
    flat, vehicle, offered = verdict.detail
    assert flat == trip.to_hash()
    assert (vehicle, sorted(offered)) == ("van", ["d7", "d8"])


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
    verdict = await claim(attempt)
    assert (verdict.code, verdict.detail) == (code, ["3", status])
    assert await zone.redis.keys("*:claim*") == []
    # Kept: the same again, free of charge, whatever has become of the trip.
    await zone.trip()
    again = await claim(replace(attempt, token="other.1"))
    assert (again.code, again.detail) == ("replay", [f"N {code} 3 {status}"])
    assert await zone.redis.llen(zone.keys.limit("general", "d1")) == 1
    assert 0 < await zone.redis.pttl(attempt.record(zone.keys)) <= attempt.key_ttl_ms


@pytest.mark.parametrize("kind", ["accept", "decline", "transition"])
async def test_an_expected_version(zone: Zone, kind: str) -> None:
    await zone.trip(version=2)
    await zone.driver()
    for version, code in ((1, "version_conflict"), (3, "version_conflict"), (2, "claimed")):
        verdict = await claim_of(zone, kind, version=version)(zone.attempt(key=key(f"k{version}")))
        assert verdict.code == code
        if code != "claimed":
            assert verdict.detail == ["2", "pending"]
            record = await zone.redis.get(zone.keys.idem("d1", "/act", f"k{version}"))
            assert record == f"N {key().fingerprint} version_conflict 2 pending"


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
    assert (await zone.accept(attempt)).code == code
    assert (await zone.accept(attempt)).code == "replay"
    assert await zone.redis.keys("*:claim*") == []


async def test_the_policy_asks_for_an_open_offer(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    offers = zone.keys.offers("z_1")
    assert (await zone.accept(zone.attempt(key=key()), policy="offered")).code == "not_offered"
    await zone.redis.zadd(offers, {"d1": START_MS})
    assert (await zone.accept(zone.attempt(key=key()), policy="offered")).code == "not_offered"
    assert await zone.redis.keys("*:idem:*") == [], "the offer may come yet"
    await zone.redis.zadd(offers, {"d1": START_MS + 1})
    assert (await zone.accept(zone.attempt(key=key()), policy="offered")).code == "claimed"


async def test_one_driver_wins_and_the_others_keep_their_answer(zone: Zone) -> None:
    await zone.trip()
    for name in ("d1", "d2"):
        await zone.driver(name)
    winner = zone.attempt()
    assert (await zone.accept(winner)).code == "claimed"
    loser = zone.attempt(driver_id="d2", key=key(user="d2"), limits=[limit(5, subject="d2")])
    assert (await zone.accept(loser)).code == "trip_already_assigned"
    assert await zone.redis.get(zone.keys.trip_claim("z_1")) == winner.token
    assert await zone.redis.llen(zone.keys.limit("general", "d2")) == 1
    # The winner's commit failed. One key has one answer all the same; a new try takes a new key.
    await zone.scripts.release_claim(zone.keys, winner)
    assert (await zone.accept(loser)).code == "replay"
    fresh = zone.attempt(driver_id="d2", key=key("k2", user="d2"), limits=[limit(5, subject="d2")])
    assert (await zone.accept(fresh)).code == "claimed"


async def test_a_driver_takes_one_trip_at_a_time(zone: Zone) -> None:
    await zone.trip("1")
    await zone.trip("2")
    await zone.driver()
    assert (await zone.accept(zone.attempt("z_1"))).code == "claimed"
    attempt = zone.attempt("z_2", key=key())
    assert (await zone.accept(attempt)).code == "driver_not_available"
    assert (await zone.accept(attempt)).code == "replay"
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
        return (await zone.accept(attempt, version=1, policy="offered")).code

    assert await code() == "cold"
    await zone.warm()
    assert await code() == "key_reused"
    await zone.redis.delete(record)
    assert await code() == "rate_limited"
    attempt.limits = []
    attempt.key = None  # from here on refusals would be kept
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


# --- transition


async def test_a_transition_learns_what_its_commit_needs(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.redis.zadd(zone.keys.offers("z_1"), {"d7": START_MS + 1})
    verdict = await claim_of(zone, "transition")(zone.attempt())
    assert verdict.detail == [trip.to_hash(), ["d7"]]


@pytest.mark.parametrize(
    ("role", "actor", "code"),
    [
        ("driver", "d1", "claimed"), ("driver", "d2", "trip_not_found"),
        ("customer", "c1", "claimed"), ("customer", "d1", "trip_not_found"),
        ("admin", "anyone", "claimed"), ("system", "dispatcher", "claimed"),
    ],
)  # fmt: skip
async def test_only_its_own_people_see_a_trip(zone: Zone, role: str, actor: str, code: str) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    claim = claim_of(zone, "transition", role=role, actor=actor)
    verdict = await claim(zone.attempt(key=key()))
    assert verdict.code == code
    if code == "trip_not_found":
        assert verdict.detail == ["-", "-"], "nothing is given away"
        assert await zone.redis.keys("*:idem:*") == []


async def test_a_trip_without_a_driver_is_nobodys(zone: Zone) -> None:
    await zone.trip()
    claim = claim_of(zone, "transition", role="driver", actor="d1")
    assert (await claim(zone.attempt())).code == "trip_not_found"


async def test_a_state_that_does_not_allow_it(zone: Zone) -> None:
    await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    # A state's name is no part of another's.
    claim = claim_of(zone, "transition", sources=("accepted", "arrived"), version=1)
    verdict = await claim(zone.attempt(key=key()))
    assert (verdict.code, verdict.detail) == ("invalid_trip_status", ["3", "ongoing"])
    assert (await claim(zone.attempt(key=key()))).code == "replay"


async def test_a_busy_trip_is_waited_for_free_of_charge(zone: Zone) -> None:
    await zone.trip()
    claim = claim_of(zone, "transition")
    holder = zone.attempt()
    assert (await claim(holder)).code == "claimed"
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    assert (await claim(attempt)).code == "trip_busy"
    assert await zone.dump() == before
    await zone.scripts.release_claim(zone.keys, holder)
    assert (await claim(attempt)).code == "claimed"


# --- creation


async def test_an_id_that_is_taken_tells_nothing_of_its_trip(zone: Zone) -> None:
    await zone.trip(version=3)
    attempt = zone.attempt(key=key())
    verdict = await claim_of(zone, "creation")(attempt)
    assert (verdict.code, verdict.detail) == ("trip_exists", ["-", "-"])
    again = await claim_of(zone, "creation")(attempt)
    assert (again.code, again.detail) == ("replay", ["N trip_exists - -"])
    assert await zone.redis.keys("*:claim*") == []


async def test_an_id_that_is_being_taken_is_waited_for(zone: Zone) -> None:
    claim = claim_of(zone, "creation")
    assert (await claim(zone.attempt(key=key("first")))).code == "claimed"
    before = await zone.dump()
    assert (await claim(zone.attempt(key=key("second"), limits=[limit(5)]))).code == "trip_busy"
    assert await zone.dump() == before


# --- availability


async def test_going_offline_claims_the_trip_to_release(zone: Zone) -> None:
    for status, released in (("accepted", True), ("arrived", True), ("ongoing", False)):
        await zone.redis.delete(zone.keys.driver_claim("d1"), zone.keys.trip_claim("z_1"))
        trip = await zone.trip(current_status=Status(status), driver_id="d1", version=2)
        await zone.driver(trip_id="z_1")
        attempt = zone.attempt()
        verdict = await claim_of(zone, "availability", goes_offline=True)(attempt)
        driver = await zone.redis.hgetall(zone.keys.driver("d1"))
        assert verdict.code == "claimed"
        assert dict(zip(verdict.detail[0][::2], verdict.detail[0][1::2], strict=True)) == driver
        assert verdict.detail[1] == (trip.to_hash() if released else [])
        assert await zone.redis.get(zone.keys.driver_claim("d1")) == attempt.token
        trip_claim = await zone.redis.get(zone.keys.trip_claim("z_1"))
        assert trip_claim == (attempt.token if released else None)


async def test_becoming_unavailable_keeps_the_trip(zone: Zone) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    await zone.driver(trip_id="z_1")
    verdict = await claim_of(zone, "availability")(zone.attempt())
    assert (verdict.code, verdict.detail[1]) == ("claimed", [])


async def test_a_driver_whose_trip_is_another_by_now(zone: Zone) -> None:
    await zone.driver(trip_id="z_5")
    before = await zone.dump()
    for assumed in ("", "z_1"):
        attempt = zone.attempt(assumed, key=key(), limits=[limit(5)])
        verdict = await claim_of(zone, "availability")(attempt)
        assert (verdict.code, verdict.detail) == ("driver_moved", ["z_5"])
    assert await zone.dump() == before
    attempt = zone.attempt("z_5", key=key(), limits=[limit(5)])
    assert (await claim_of(zone, "availability")(attempt)).code == "trip_unknown"
    assert await zone.dump() == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"changes_zone": True}, "driver_has_active_trip"),
        ({"vehicle_type": "van"}, "driver_has_active_trip"),
        ({"vehicle_type": "van", "goes_offline": True}, "driver_has_active_trip"),
        ({"vehicle_type": "car"}, "claimed"),
    ],
)
async def test_zone_and_vehicle_stay_during_a_trip(
    zone: Zone, change: dict[str, Any], code: str
) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=2)
    await zone.driver(trip_id="z_1")
    claim = claim_of(zone, "availability", **change)
    verdict = await claim(zone.attempt(key=key(), limits=[limit(5)]))
    assert verdict.code == code
    if code != "claimed":
        assert verdict.detail == ["2", "accepted"]
        assert await zone.redis.keys("*:claim*") == []
        assert (await claim(zone.attempt(key=key()))).code == "replay"


@pytest.mark.parametrize("held", ["trip", "driver"])
async def test_a_claim_of_either_is_waited_for(zone: Zone, held: str) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    await zone.driver(trip_id="z_1")
    name = zone.keys.trip_claim("z_1") if held == "trip" else zone.keys.driver_claim("d1")
    await zone.redis.set(name, "other.1", px=LEASE_MS)
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    assert (await claim_of(zone, "availability", goes_offline=True)(attempt)).code == "trip_busy"
    assert await zone.dump() == before


async def test_an_accept_and_going_offline_exclude_each_other(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    accept, offline = zone.attempt(), zone.attempt("")
    assert (await zone.accept(accept)).code == "claimed"
    claim = claim_of(zone, "availability", goes_offline=True)
    assert (await claim(offline)).code == "trip_busy"
    await zone.scripts.release_claim(zone.keys, accept)
    assert (await claim(offline)).code == "claimed"
    assert (await zone.accept(zone.attempt())).code == "driver_not_available"


# --- decline


async def test_declines_hinder_nobody(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.redis.set(zone.keys.trip_claim("z_1"), "other.1")
    first = await claim_of(zone, "decline")(zone.attempt(key=key()))
    assert (first.code, first.detail) == ("claimed", [trip.to_hash()])
    second = zone.attempt(driver_id="d2", key=key(user="d2"))
    assert (await claim_of(zone, "decline")(second)).code == "claimed"
    assert await zone.redis.get(zone.keys.trip_claim("z_1")) == "other.1"


# --- release


async def test_a_release_drops_its_own_alone(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    attempt = zone.attempt(key=key())
    before = await zone.dump()
    await zone.accept(attempt)
    stranger = replace(attempt, token="other.9")
    held = await zone.dump()
    assert await zone.scripts.release_claim(zone.keys, stranger) == 0
    assert await zone.dump() == held
    assert await zone.scripts.release_claim(zone.keys, attempt) == 2
    assert await zone.dump() == before
    assert await zone.scripts.release_claim(zone.keys, attempt) == 0


async def test_a_release_leaves_an_answer_alone(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    attempt = zone.attempt(key=key())
    await zone.accept(attempt)
    answer = f"D {key().fingerprint} 200 {{}}"
    await zone.settler.settle(zone.keys, attempt, Settlement(answer=answer))
    assert await zone.scripts.release_claim(zone.keys, attempt) == 0
    assert await zone.redis.get(attempt.record(zone.keys)) == answer
    # Nor does it touch what stands in for a record where no key was sent.
    await zone.scripts.release_claim(zone.keys, zone.attempt())
    assert await zone.redis.exists(zone.keys.epoch) == 1
