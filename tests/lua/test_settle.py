"""Settling: the picture becomes what Postgres committed, in one step and never backwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.transitions import ACCEPT, ARRIVE, CANCEL, COMPLETE, EXPIRE, GIVE_BACK, START
from dispatcher.core.trips import Status, Trip
from dispatcher.live.scripts import FINISHED_TTL_S, Attempt, Settlement, driver_fields
from tests.harness.lua_zone import (
    BACKENDS,
    FIX_AGE_MS,
    LEASE_MS,
    START_MS,
    Zone,
    key,
    make_driver,
    make_trip,
    open_zone,
)


@pytest.fixture(params=BACKENDS)
async def zone(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Zone]:
    async with open_zone(request.param, redis_url) as opened:
        yield opened


async def settle(zone: Zone, attempt: Attempt | None = None, **columns: Any) -> bool:
    return await zone.settler.settle(zone.keys, attempt or zone.attempt(), Settlement(**columns))


async def geo(zone: Zone, vehicle: str = "car") -> list[str]:
    return sorted(await zone.redis.zrange(zone.keys.geo(vehicle), 0, -1))


async def put_on_offer(zone: Zone, *names: str, trip_id: str = "z_1") -> None:
    for name in names:
        await zone.redis.zadd(zone.keys.offers(trip_id), {name: START_MS + 15_000})
        await zone.redis.zadd(zone.keys.inbox(name), {trip_id: START_MS + 15_000})


async def place(zone: Zone, *names: str, vehicle: str = "car") -> None:
    for name in names:
        await zone.redis.geoadd(zone.keys.geo(vehicle), (8.6, 50.1, name))
        await zone.redis.zadd(zone.keys.seen, {name: START_MS})


def spy_on(zone: Zone) -> list[Any]:
    """The results of each call of a script from now on."""
    ran: list[Any] = []
    run = zone.pipeline.run

    def spy(script: str, keys: Any, args: Any) -> Any:
        reply = run(script, keys, args)
        reply.add_done_callback(lambda done: ran.append(done.result()))
        return reply

    zone.pipeline.run = spy  # type: ignore[method-assign]
    return ran


@contextlib.asynccontextmanager
async def listening(zone: Zone, redis_url: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Gives the next message on the zone's push channel."""
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        connection = await client.connection_pool.get_connection()
        await connection.send_command("SSUBSCRIBE", zone.keys.push)
        await connection.read_response()

        async def heard() -> str:
            message = await asyncio.wait_for(connection.read_response(), 5)
            return str(message[2])

        yield heard
        await connection.disconnect()


def accepted(trip: Trip) -> Trip:
    return ACCEPT.apply(trip, START_MS + 5, driver_id="d1", driver_vehicle_type="car")


async def test_an_accept_settles_everything_at_once(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1", "d2")
    await put_on_offer(zone, "d1", "d2")
    await zone.redis.zadd(zone.keys.inbox("d2"), {"z_7": START_MS + 9})
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS, "z_7": START_MS})
    attempt = zone.attempt(key=key())
    assert (await zone.accept(attempt)).code == "claimed"
    after = accepted(trip)
    assert await settle(
        zone, attempt, trip=after, driver_id="d1", driver_vehicle="car", effect="take",
        inboxes=["d1", "d2"], answer="D f 200 {}", event='{"e":1}',
    )  # fmt: skip

    assert Trip.from_hash(await zone.hash(zone.keys.trip("z_1"))) == after
    assert await zone.redis.ttl(zone.keys.trip("z_1")) == -1
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == "z_1"
    assert await geo(zone) == ["d2"]
    assert await zone.redis.exists(zone.keys.offers("z_1"), zone.keys.inbox("d1")) == 0
    assert await zone.redis.zrange(zone.keys.inbox("d2"), 0, -1) == ["z_7"]
    assert await zone.redis.zrange(zone.keys.waves, 0, -1) == ["z_7"]
    assert await zone.redis.get(attempt.record(zone.keys)) == "D f 200 {}"
    assert 0 < await zone.redis.pttl(attempt.record(zone.keys)) <= attempt.key_ttl_ms
    ((_, event),) = await zone.redis.xrange(zone.keys.events)
    assert event == {"event": '{"e":1}'}
    assert await zone.redis.keys("*:claim*") == []


async def test_older_and_equal_versions_change_nothing_of_the_trip(zone: Zone) -> None:
    now = await zone.trip(version=5, current_status=Status.ARRIVED, driver_id="d1")
    await zone.driver("d1", trip_id="z_1", fix_ms=START_MS)
    await put_on_offer(zone, "d2")
    before = await zone.dump()
    for version in (0, 4, 5):
        old = make_trip(version=version, current_status=Status.CANCELLED)
        assert not await settle(
            zone, trip=old, driver_id="d1", driver_vehicle="car", effect="free", inboxes=["d2"]
        )
    assert await zone.dump() == before
    assert Trip.from_hash(await zone.hash(zone.keys.trip("z_1"))) == now


async def test_versions_are_compared_as_numbers(zone: Zone) -> None:
    await zone.trip(version=9)
    assert await settle(zone, trip=make_trip(version=10))
    assert not await settle(zone, trip=make_trip(version=9))


async def test_a_late_settle_still_keeps_its_answer_and_event(zone: Zone) -> None:
    await zone.trip(version=5)
    attempt = zone.attempt(key=key())
    await settle(zone, attempt, trip=make_trip(version=1), answer="D f 200 {}", event="{}")
    assert await zone.redis.get(attempt.record(zone.keys)) == "D f 200 {}"
    assert await zone.redis.xlen(zone.keys.events) == 1


async def test_claims_are_dropped_by_their_own_token_alone(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    late = zone.attempt()
    await zone.accept(late)
    # Its lease ran out, and another attempt holds the claims by now.
    other = zone.attempt()
    for name in (zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1")):
        await zone.redis.set(name, other.token, px=LEASE_MS)
    await zone.redis.zadd(zone.keys.claims, {other.entry: START_MS + LEASE_MS})
    await settle(zone, late)
    assert await zone.redis.get(zone.keys.trip_claim("z_1")) == other.token
    assert await zone.redis.get(zone.keys.driver_claim("d1")) == other.token
    assert await zone.redis.zrange(zone.keys.claims, 0, -1) == [other.entry]
    await settle(zone, other)
    assert await zone.redis.keys("*:claim*") == []


async def test_a_creation_starts_the_waves(zone: Zone) -> None:
    trip = make_trip()
    assert await settle(zone, trip=trip, event="{}")
    stored = await zone.hash(zone.keys.trip("z_1"))
    assert Trip.from_hash(stored) == trip
    assert (stored["reach"], stored["waiting_since"]) == ("0", str(START_MS))
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS


@pytest.mark.parametrize(
    ("transition", "status", "ends"),
    [(GIVE_BACK, Status.ACCEPTED, False), (CANCEL, Status.ACCEPTED, True),
     (COMPLETE, Status.ONGOING, True)],
)  # fmt: skip
async def test_a_driver_who_is_free_again(
    zone: Zone, transition: Any, status: Status, ends: bool
) -> None:
    trip = await zone.trip(current_status=status, driver_id="d1", version=2)
    await zone.driver("d1", trip_id="z_1", fix_ms=START_MS)
    await zone.redis.sadd(zone.keys.barred("z_1"), "d8")
    await zone.advance(FIX_AGE_MS - 1)
    after = transition.apply(trip, zone.now_ms)
    bars = "d1" if transition is GIVE_BACK else ""
    assert await settle(zone, trip=after, driver_id="d1", driver_vehicle="car", effect="free", bars=bars)
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == ""
    assert await geo(zone) == ["d1"], "back on offer"
    assert await zone.redis.zscore(zone.keys.seen, "d1") == START_MS
    due = await zone.redis.zscore(zone.keys.waves, "z_1")
    life_s = await zone.redis.ttl(zone.keys.trip("z_1"))
    barred = await zone.redis.smembers(zone.keys.barred("z_1"))
    if ends:
        assert (due, barred) == (None, set())
        assert 0 < life_s <= FINISHED_TTL_S
    else:
        assert (due, barred, life_s) == (zone.now_ms, {"d1", "d8"}, -1)
        assert (await zone.hash(zone.keys.trip("z_1")))["driver_id"] == ""


@pytest.mark.parametrize(
    "driver",
    [
        {"fix_ms": START_MS - FIX_AGE_MS},
        {"fix_ms": None},
        {"fix_ms": START_MS, "is_online": False},
        {"fix_ms": START_MS, "availability_status": "unavailable"},
    ],
)
async def test_who_may_not_be_offered_a_trip_stays_out_of_the_geo_set(
    zone: Zone, driver: dict[str, Any]
) -> None:
    trip = await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    await zone.driver("d1", trip_id="z_1", **driver)
    await place(zone, "d1")
    after = COMPLETE.apply(trip, START_MS)
    await settle(zone, trip=after, driver_id="d1", driver_vehicle="car", effect="free")
    assert await geo(zone) == []
    seen = await zone.redis.zscore(zone.keys.seen, "d1")
    assert (seen is None) == (driver.get("is_online") is False)


async def test_only_its_own_trip_frees_a_driver(zone: Zone) -> None:
    trip = await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    await zone.driver("d1", trip_id="z_2", fix_ms=START_MS)
    after = COMPLETE.apply(trip, START_MS)
    await settle(zone, trip=after, driver_id="d1", driver_vehicle="car", effect="free")
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == "z_2"
    assert await geo(zone) == []


async def test_an_expiry_concerns_no_driver(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS})
    assert await settle(zone, trip=EXPIRE.apply(trip, START_MS))
    assert await zone.redis.exists(zone.keys.waves) == 0
    assert 0 < await zone.redis.ttl(zone.keys.trip("z_1")) <= FINISHED_TTL_S


# --- the driver's own state


async def test_going_online_with_a_fresh_fix(zone: Zone) -> None:
    await zone.driver("d1", is_online=False, fix_ms=START_MS)
    fields = driver_fields(make_driver("d1", version=1))
    await settle(zone, driver_id="d1", driver_vehicle="car", effect="state", driver_fields=fields)
    assert await geo(zone) == ["d1"]
    assert (await zone.hash(zone.keys.driver("d1")))["is_online"] == "1"


async def test_a_driver_never_seen_before(zone: Zone) -> None:
    fields = driver_fields(make_driver("d1"))
    await settle(zone, driver_id="d1", driver_vehicle="car", effect="state", driver_fields=fields)
    assert (await zone.hash(zone.keys.driver("d1")))["version"] == "0"
    assert await geo(zone) == []


@pytest.mark.parametrize("change", [{"is_online": False}, {"availability_status": "unavailable"}])
async def test_leaving_the_market(zone: Zone, change: dict[str, Any]) -> None:
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1")
    fields = driver_fields(make_driver("d1", version=1, **change))
    await settle(zone, driver_id="d1", driver_vehicle="car", effect="state", driver_fields=fields)
    assert await geo(zone) == []
    assert (await zone.redis.zscore(zone.keys.seen, "d1") is None) == ("is_online" in change)


async def test_an_older_state_of_the_driver_is_not_written(zone: Zone) -> None:
    await zone.driver("d1", version=3, fix_ms=START_MS)
    for version in (2, 3):
        fields = driver_fields(make_driver("d1", version=version, is_online=False))
        await settle(zone, driver_id="d1", driver_vehicle="car", effect="state", driver_fields=fields)
    assert (await zone.hash(zone.keys.driver("d1")))["is_online"] == "1"
    assert await geo(zone) == ["d1"]


async def test_another_vehicle_leaves_the_old_one_s_geo_set(zone: Zone) -> None:
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1")
    fields = driver_fields(make_driver("d1", version=1, vehicle_type="van"))
    await settle(zone, driver_id="d1", driver_vehicle="car", effect="state", driver_fields=fields)
    assert await geo(zone) == [], "a van is no car"
    fixes = [("d1", 50.2, 8.7, zone.now_ms + 1)]
    await zone.advance(2)
    await zone.scripts.put_positions(zone.keys, "van", fixes, fix_age_ms=FIX_AGE_MS)
    assert await geo(zone, "van") == ["d1"]


async def test_offline_with_a_trip_to_release(zone: Zone) -> None:
    trip = await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    await zone.driver("d1", trip_id="z_1", fix_ms=START_MS)
    fields = driver_fields(make_driver("d1", version=1, is_online=False))
    assert await settle(
        zone, trip=GIVE_BACK.apply(trip, START_MS), driver_id="d1", driver_vehicle="car",
        effect="free", driver_fields=fields, bars="d1",
    )  # fmt: skip
    stored = await zone.hash(zone.keys.driver("d1"))
    assert (stored["is_online"], stored["trip_id"]) == ("0", "")
    assert (await zone.hash(zone.keys.trip("z_1")))["current_status"] == "pending"
    assert await geo(zone) == []


# --- declines


async def decline(zone: Zone, name: str) -> None:
    attempt = zone.attempt("z_1", name)
    await settle(zone, attempt, bars=name, inboxes=[name])


async def test_the_last_decline_makes_the_next_wave_due(zone: Zone) -> None:
    await zone.trip()
    before = await zone.hash(zone.keys.trip("z_1"))
    await put_on_offer(zone, "d1", "d2")
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS + 15_000})
    await decline(zone, "d1")
    assert await zone.redis.zrange(zone.keys.offers("z_1"), 0, -1) == ["d2"]
    assert await zone.redis.exists(zone.keys.inbox("d1")) == 0
    assert await zone.redis.exists(zone.keys.inbox("d2")) == 1
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS + 15_000
    await zone.advance(100)
    await decline(zone, "d2")
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS + 100
    assert await zone.redis.smembers(zone.keys.barred("z_1")) == {"d1", "d2"}
    assert 0 < await zone.redis.ttl(zone.keys.barred("z_1")) <= 86_400
    assert await zone.hash(zone.keys.trip("z_1")) == before


async def test_an_expired_offer_keeps_no_wave_waiting(zone: Zone) -> None:
    await zone.trip()
    await put_on_offer(zone, "d1")
    await zone.redis.zadd(zone.keys.offers("z_1"), {"d2": START_MS - 1})
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS + 15_000})
    await decline(zone, "d1")
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS


async def test_a_decline_starts_no_wave_of_a_trip_that_has_none(zone: Zone) -> None:
    await zone.trip()
    await put_on_offer(zone, "d1")
    await decline(zone, "d1")
    await decline(zone, "d9")  # never had an offer
    assert await zone.redis.exists(zone.keys.waves) == 0
    assert await zone.redis.smembers(zone.keys.barred("z_1")) == {"d1", "d9"}


# --- messages


async def test_a_message_goes_out_with_the_settle(redis_url: str) -> None:
    async with open_zone("valkey", redis_url) as zone:
        text = json.dumps([["driver:d1"], {"type": "trip"}])
        trip = await zone.trip()
        async with listening(zone, redis_url) as heard:
            await settle(zone, trip=accepted(trip), message=text)
            assert await heard() == text


async def test_a_stream_of_events_in_their_order(zone: Zone) -> None:
    trip = await zone.trip()
    for n in range(5):
        await settle(zone, trip=trip._replace(version=n + 1), event=str(n))
    found = [fields["event"] for _, fields in await zone.redis.xrange(zone.keys.events)]
    assert found == list("01234")


async def test_changes_of_another_version_write_nothing(zone: Zone) -> None:
    """The picture missed a change: what differs is not enough, so the whole trip is sent."""
    before = await zone.trip("1")
    claimed = ACCEPT.apply(before, START_MS, driver_id="d1", driver_vehicle_type="car")
    arrived = ARRIVE.apply(claimed, START_MS + 1)
    ran = spy_on(zone)
    a = zone.attempt()
    settled = Settlement(trip=arrived, before=claimed, event="{}")
    assert await zone.settler.settle(zone.keys, a, settled)
    assert ran == [[-1], [1]]
    stored = await zone.hash(zone.keys.trip(before.id))
    assert Trip.from_hash(stored) == arrived
    assert await zone.redis.xlen(zone.keys.events) == 1, "told once"

    await zone.redis.delete(zone.keys.trip(before.id))
    settled = Settlement(trip=START.apply(arrived, START_MS + 2), before=arrived)
    assert await zone.settler.settle(zone.keys, a, settled)
    assert Trip.from_hash(await zone.hash(zone.keys.trip(before.id))) == settled.trip
    assert ran == [[-1], [1], [-1], [1]]


# --- batches


async def test_what_settles_in_one_turn_settles_together(zone: Zone) -> None:
    trips = [await zone.trip(str(n)) for n in range(20)]
    attempts = [zone.attempt(trip.id, f"d{n}", key=key(str(n))) for n, trip in enumerate(trips)]
    for n, attempt in enumerate(attempts):
        await zone.driver(f"d{n}", fix_ms=START_MS)
        await place(zone, f"d{n}")
        await put_on_offer(zone, f"d{n}", trip_id=attempt.trip_id)
        assert (await zone.accept(attempt)).code == "claimed"
    await zone.redis.zadd(zone.keys.waves, {trip.id: START_MS for trip in trips} | {"z_99": START_MS})
    ran = spy_on(zone)
    after = [
        ACCEPT.apply(trip, START_MS + 5, driver_id=f"d{n}", driver_vehicle_type="car")
        for n, trip in enumerate(trips)
    ]
    assert all(
        await asyncio.gather(
            *(
                settle(
                    zone, attempt, trip=after[n], before=trips[n], driver_id=f"d{n}",
                    driver_vehicle="car", effect="take", inboxes=[f"d{n}"],
                    answer=f"D f 200 {n}", event=str(n),
                )
                for n, attempt in enumerate(attempts)
            )
        )
    )  # fmt: skip
    assert ran == [[1] * 16, [1] * 4]
    for n, trip in enumerate(after):
        assert Trip.from_hash(await zone.hash(zone.keys.trip(trip.id))) == trip
        assert (await zone.hash(zone.keys.driver(f"d{n}")))["trip_id"] == trip.id
        assert await zone.redis.get(attempts[n].record(zone.keys)) == f"D f 200 {n}"
    found = [fields["event"] for _, fields in await zone.redis.xrange(zone.keys.events)]
    assert found == [str(n) for n in range(20)]
    assert await zone.redis.zrange(zone.keys.waves, 0, -1) == ["z_99"]
    assert await geo(zone) == []
    for pattern in ("*:claim*", "*:offers:*", "*:inbox:*"):
        assert await zone.redis.keys(pattern) == []


async def test_two_changes_of_one_trip_keep_their_order(zone: Zone) -> None:
    """A trip that is given back and taken again waits for no wave."""
    held = await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    await zone.driver("d1", trip_id=held.id, fix_ms=START_MS)
    await zone.driver("d2", fix_ms=START_MS)
    back = GIVE_BACK.apply(held, START_MS)
    again = ACCEPT.apply(back, START_MS + 1, driver_id="d2", driver_vehicle_type="car")
    ran = spy_on(zone)
    done = await asyncio.gather(
        settle(zone, trip=back, driver_id="d1", driver_vehicle="car", effect="free"),
        settle(zone, trip=again, driver_id="d2", driver_vehicle="car", effect="take"),
    )
    assert (done, ran) == ([True, True], [[1], [1]])
    assert Trip.from_hash(await zone.hash(zone.keys.trip(held.id))) == again
    assert await zone.redis.exists(zone.keys.waves) == 0
    assert await geo(zone) == ["d1"]


async def test_a_change_that_fails_leaves_its_neighbours_alone(zone: Zone) -> None:
    trips = [await zone.trip(str(n)) for n in range(3)]
    attempts = [zone.attempt(trip.id, f"d{n}") for n, trip in enumerate(trips)]
    for n, attempt in enumerate(attempts):
        await zone.driver(f"d{n}")
        await zone.accept(attempt)
    await zone.redis.delete(zone.keys.trip("z_1"))
    await zone.redis.set(zone.keys.trip("z_1"), "not a hash")
    ran = spy_on(zone)
    done = await asyncio.gather(
        *(settle(zone, a, trip=trips[n]._replace(version=1)) for n, a in enumerate(attempts)),
        return_exceptions=True,
    )
    assert [type(result) for result in done] == [bool, StoreUnavailable, bool]
    ((first, wrong, last),) = ran
    assert (first, last) == (1, 1)
    assert "WRONGTYPE" in wrong
    # Its claims stay until their lease is over: the sweeper will ask Postgres.
    assert await zone.redis.zrange(zone.keys.claims, 0, -1) == [attempts[1].entry]
    assert await zone.redis.exists(zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1")) == 2


async def test_a_batch_is_told_in_one_message(redis_url: str) -> None:
    async with open_zone("valkey", redis_url) as zone:
        trips = [await zone.trip(str(n)) for n in range(3)]
        texts = [json.dumps([[[f"driver:d{n}"], {"n": n}], [["driver:d9"], {}]]) for n in range(2)]
        async with listening(zone, redis_url) as heard:
            await asyncio.gather(
                *(
                    settle(zone, zone.attempt(t.id), trip=t._replace(version=1), message=text)
                    for t, text in zip(trips, [*texts, "[]"], strict=True)
                )
            )
            message = json.loads(await heard())
        assert message == [*json.loads(texts[0]), *json.loads(texts[1])]


async def test_a_settler_that_closes_has_sent_everything(zone: Zone) -> None:
    trip = await zone.trip()
    waiting = asyncio.create_task(settle(zone, trip=trip._replace(version=1)))
    await asyncio.sleep(0)
    zone.settler.close()
    await zone.pipeline.close()
    assert await waiting
    assert (await zone.hash(zone.keys.trip(trip.id)))["version"] == "1"
