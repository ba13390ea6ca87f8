"""Settles that travel together: one call, and no change that harms another."""

from __future__ import annotations

import asyncio

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.transitions import ACCEPT, GIVE_BACK
from dispatcher.core.trips import Status, Trip
from dispatcher.live.settlement import Message, SettleEffect
from tests.harness.lua_zone import START_MS, Zone, key, make_trip, open_zone
from tests.lua.claim_kinds import code_of
from tests.lua.settling import accepted, answer_of, geo, listening, place, put_on_offer, settle, spy_on


async def test_a_message_goes_out_with_the_settle(redis_url: str) -> None:
    async with open_zone("valkey", redis_url) as zone:
        messages = [Message(["driver:d1", "customer:c1"], "1"), Message(["driver:d2"], "2")]
        trip = await zone.trip()
        async with listening(zone, redis_url, "driver:d1", "driver:d2", "customer:c1") as heard:
            await settle(zone, trip=accepted(trip), messages=messages)
            told = [await heard() for _ in range(3)]
        assert told == [("driver:d1", "1"), ("customer:c1", "1"), ("driver:d2", "2")]


async def test_a_stream_of_events_in_their_order(zone: Zone) -> None:
    trip = await zone.trip()
    for n in range(5):
        await settle(zone, trip=trip._replace(version=n + 1), event=str(n))
    found = [fields["event"] for _, fields in await zone.redis.xrange(zone.keys.events)]
    assert found == list("01234")


async def test_each_of_a_batch_is_told_what_is_theirs(redis_url: str) -> None:
    async with open_zone("valkey", redis_url) as zone:
        trips = [await zone.trip(str(n)) for n in range(3)]
        to = [[f"driver:d{n}", "driver:d9"] for n in range(3)]
        async with listening(zone, redis_url, "driver:d0", "driver:d9") as heard:
            await asyncio.gather(
                *(
                    settle(
                        zone, zone.attempt(t.id), trip=t._replace(version=1),
                        messages=[Message(to[n], f"m{n}")] if n < 2 else [],
                    )
                    for n, t in enumerate(trips)
                )
            )  # fmt: skip
            told = [await heard() for _ in range(3)]
        assert told == [("driver:d0", "m0"), ("driver:d9", "m0"), ("driver:d9", "m1")]


async def test_a_trip_that_waits_wakes_who_does_the_rounds(redis_url: str) -> None:
    async with open_zone("valkey", redis_url) as zone:
        connection = await zone.redis.connection_pool.get_connection()
        await connection.send_command("SSUBSCRIBE", zone.keys.wake)
        await connection.read_response()

        async def wake_ups() -> int:
            await zone.pipeline.command("SPUBLISH", zone.keys.wake, "end")
            count = 0
            while (await asyncio.wait_for(connection.read_response(), 5))[2] != "end":
                count += 1
            return count

        trip = make_trip()
        await settle(zone, trip=trip)
        assert await wake_ups() == 1
        await settle(zone, trip=accepted(trip))
        assert await wake_ups() == 0, "nobody waits"
        await zone.state.load_trip(zone.keys, make_trip("2"))
        assert await wake_ups() == 1
        # The last open offer is declined; its driver takes another trip.
        await put_on_offer(zone, "d8", trip_id="z_2")
        await settle(zone, zone.attempt("z_2", "d8"), barred_driver="d8", inboxes=["d8"])
        assert await wake_ups() == 1
        await put_on_offer(zone, "d9", trip_id="z_2")
        await zone.settler.withdraw_offers(zone.keys, "d9", ["z_2"])
        assert await wake_ups() == 1
        await connection.disconnect()


async def test_what_settles_in_one_turn_settles_together(zone: Zone) -> None:
    trips = [await zone.trip(str(n)) for n in range(20)]
    attempts = [zone.attempt(trip.id, f"d{n}", key=key(str(n))) for n, trip in enumerate(trips)]
    for n, attempt in enumerate(attempts):
        await zone.driver(f"d{n}", fix_ms=START_MS)
        await place(zone, f"d{n}")
        await put_on_offer(zone, f"d{n}", trip_id=attempt.trip_id)
        assert code_of(await zone.accept(attempt)) == "claimed"
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
                    driver_vehicle_type="car", effect=SettleEffect.TAKE, inboxes=[f"d{n}"],
                    answer=answer_of(str(n)), event=str(n),
                )
                for n, attempt in enumerate(attempts)
            )
        )
    )  # fmt: skip
    assert ran == [[1] * 16, [1] * 4]
    for n, trip in enumerate(after):
        assert Trip.from_hash(await zone.hash(zone.keys.trip(trip.id))) == trip
        assert (await zone.hash(zone.keys.driver(f"d{n}")))["trip_id"] == trip.id
        assert await zone.redis.get(attempts[n].record_key(zone.keys)) == f"D f 200 {n}"
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
        settle(zone, trip=back, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.FREE),
        settle(zone, trip=again, driver_id="d2", driver_vehicle_type="car", effect=SettleEffect.TAKE),
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


async def test_a_settler_that_closes_has_sent_everything(zone: Zone) -> None:
    trip = await zone.trip()
    waiting = asyncio.create_task(settle(zone, trip=trip._replace(version=1)))
    await asyncio.sleep(0)
    zone.settler.close()
    await zone.pipeline.close()
    assert await waiting
    assert (await zone.hash(zone.keys.trip(trip.id)))["version"] == "1"
