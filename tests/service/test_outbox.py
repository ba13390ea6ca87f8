"""Nothing committed goes unheard, and what was answered is what the next call meets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import now_ms
from dispatcher.core.trips import Trip
from dispatcher.jobs import reconcile
from dispatcher.ledger.changes import Change, OutcomeCode
from dispatcher.ledger.database import Database
from dispatcher.live.claims import WAITED_FOR
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.settle import Settler
from dispatcher.service.outbox import Outbox
from dispatcher.service.rehydration import Rehydration
from dispatcher.service.unheard_events import UnheardEvents
from tests.harness.services import City, code_of, driver, open_city, rider

PLACE = (40.7559, -73.9864)


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


class LostSettles:
    """The settles of a server that dies after its commits."""

    def __init__(self, city: City, patch: pytest.MonkeyPatch) -> None:
        self._city = city
        self._patch = patch

    async def __aenter__(self) -> None:
        async def lose(*_: Any) -> bool:
            raise StoreUnavailable("redis")

        self._settle = Settler.settle
        self._patch.setattr(Settler, "settle", lose)

    async def __aexit__(self, *_: object) -> None:
        await self._city.parts.coordinator.close()
        self._patch.setattr(Settler, "settle", self._settle)


async def lease_ends(city: City) -> None:
    """The claims' lease is over, and the sweeper comes by, for a second look as well."""
    keys, sweeper = city.keys(), city.reconcile()
    for name in await city.redis("KEYS", keys.prefix + "claim:*"):
        await city.redis("DEL", name)
    for _ in range(2):
        await claims_are_overdue(city)
        await sweeper.run()
    assert await city.redis("ZCARD", keys.claims) == 0


async def claims_are_overdue(city: City) -> None:
    keys = city.keys()
    for entry in await city.redis("ZRANGE", keys.claims, 0, -1):
        await city.redis("ZADD", keys.claims, 1, entry)


async def test_a_server_that_lives_settles_again_once_redis_answers(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1")
    trip = await city.trip()
    settle, lost = Settler.settle, 5

    async def lose(*args: Any) -> bool:
        nonlocal lost
        lost -= 1
        if lost >= 0:
            raise StoreUnavailable("redis")
        return await settle(*args)

    monkeypatch.setattr(Settler, "settle", lose)
    assert (await city.available("d1", availability_status="unavailable")).status == 200
    async with asyncio.timeout(5):
        while await city.redis("ZCARD", city.keys().claims):
            await asyncio.sleep(0.005)
    assert code_of(await city.act(driver("d1"), "accept", trip)) == "driver_not_available"
    lost = 1
    assert (await city.available("d1", availability_status="available")).status == 200
    assert (await city.act(driver("d1"), "accept", trip)).status == 200


async def versions(city: City, trip: str) -> list[int]:
    return [version for _, told, version in await city.events() if told == trip]


@pytest.mark.parametrize(
    ("action", "after", "told"),
    [("complete", "completed", "trip_not_pending"), ("cancel", "pending", "trip_accepted")],
)
async def test_nobody_is_refused_by_a_state_whose_end_redis_has_not_heard(
    city: City, monkeypatch: pytest.MonkeyPatch, action: str, after: str, told: str
) -> None:
    """Its server waits for Redis: no other driver hears that a trip is taken which Postgres has ended."""
    await city.online("d1", "d2")
    trip = await city.trip()
    for step in ("accept", "arrive", "start")[: 3 if action == "complete" else 1]:
        assert (await city.act(driver("d1"), step, trip)).status == 200
    settle, is_heard, waiting = Settler.settle, asyncio.Event(), 1

    async def wait(*args: Any) -> bool:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            await is_heard.wait()
        return await settle(*args)

    monkeypatch.setattr(Settler, "settle", wait)
    ending = asyncio.ensure_future(city.act(driver("d1"), action, trip))
    async with asyncio.timeout(5):
        while (await city.row(trip))["current_status"] != after:
            await asyncio.sleep(0.005)
    assert code_of(await city.act(driver("d2"), "accept", trip)) == told
    is_heard.set()
    assert (await ending).status == 200


async def test_a_crowd_that_waits_for_one_change_asks_postgres_together(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = [f"d{number}" for number in range(2, 62)]
    await city.online("d1", *crowd)
    trip = await city.trip()
    for step in ("accept", "arrive", "start"):
        assert (await city.act(driver("d1"), step, trip)).status == 200
    settle, is_heard, is_waiting = Settler.settle, asyncio.Event(), asyncio.Event()

    async def wait(*args: Any) -> bool:
        if not is_waiting.is_set():
            is_waiting.set()
            await is_heard.wait()
        return await settle(*args)

    read, asked = Database.trip, 0

    async def counted(*args: Any) -> Trip | None:
        nonlocal asked
        asked += 1
        return await read(*args)

    monkeypatch.setattr(Settler, "settle", wait)
    monkeypatch.setattr(Database, "trip", counted)
    ending = asyncio.ensure_future(city.act(driver("d1"), "complete", trip))
    await is_waiting.wait()
    answers = await asyncio.gather(*(city.act(driver(name), "accept", trip) for name in crowd))
    assert {code_of(answer) for answer in answers} == {"trip_not_pending"}
    is_heard.set()
    assert (await ending).status == 200
    assert asked < len(crowd) / 2
    assert (await versions(city, trip)).count(4) <= 2, "by who asked, and by its own server"


async def test_a_trip_that_redis_forgot_while_its_change_was_waited_for_is_found(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zone that is loaded anew, in a failover for instance, has no trips that have ended."""
    await city.online("d1", "d2")
    trip = await city.trip()
    for step in ("accept", "arrive", "start", "complete"):
        assert (await city.act(driver("d1"), step, trip)).status == 200
    keys, reload = city.keys(), Rehydration.reload_trip
    await city.redis("SET", keys.trip_claim(trip), f"another.1{WAITED_FOR}", "PX", 10_000)

    async def reload_and_lose(*args: Any, **named: Any) -> Trip | None:
        found = await reload(*args, **named)
        if await city.redis("DEL", keys.trip_claim(trip)):
            await city.redis("DEL", keys.trip(trip))
        return found

    monkeypatch.setattr(Rehydration, "reload_trip", reload_and_lose)
    assert code_of(await city.act(driver("d2"), "accept", trip)) == "trip_not_pending"


async def test_an_accept_that_nobody_settled_is_heard_of(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1", "d2", location=PLACE)
    trip = await city.trip()
    keys = city.keys(trip)
    for name in ("d1", "d2"):
        await city.redis("ZADD", keys.offers(trip), 4_000_000_000_000, name)
        await city.redis("ZADD", keys.inbox(name), 4_000_000_000_000, trip)
    told: list[Any] = []
    async with LostSettles(city, monkeypatch):
        assert (await city.act(driver("d1"), "accept", trip)).status == 200
    settle = Settler.settle

    async def spy(self: Settler, keys: Any, attempt: Any, settlement: Any, *rest: Any) -> bool:
        told.extend((message.to, orjson.loads(message.frame)) for message in settlement.messages)
        return await settle(self, keys, attempt, settlement, *rest)

    monkeypatch.setattr(Settler, "settle", spy)
    await lease_ends(city)
    assert await versions(city, trip) == [0, 1]
    assert [(to, frame["type"]) for to, frame in told] == [
        (["customer:rider", "driver:d1"], "trip"), (["driver:d2"], "offer_withdrawn"),
    ]  # fmt: skip
    assert await city.redis("EXISTS", keys.offers(trip), keys.inbox("d2"), keys.waves) == 0
    assert (await city.hash(trip))["driver_id"] == "d1"
    assert await city.redis("HGET", keys.driver("d1"), "trip_id") == trip
    assert await city.redis("ZRANGE", keys.geo("car"), 0, -1) == ["d2"]


async def test_a_creation_that_nobody_settled_is_heard_of(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LostSettles(city, monkeypatch):
        trip = await city.trip()
    await lease_ends(city)
    assert await city.events() == [("created", trip, 0)]
    assert await city.redis("ZRANGE", city.keys(trip).waves, 0, -1) == [trip]


async def test_a_commit_that_ends_after_the_sweeper_has_looked_is_heard_of(city: City) -> None:
    """It stood still on its way, in a Postgres that was frozen."""
    await city.online("d1")
    trip, keys, sweeper = await city.trip(), city.keys(), city.reconcile()
    await city.redis("ZADD", keys.claims, 1, f"node.1 {trip} d1")
    await sweeper.run()
    assert (await city.hash(trip))["version"] == "0"
    columns = {
        "trip_id": trip, "expect_version": 0, "sources": ("pending",), "to_status": "accepted",
        "driver_id": "d1", "zone": keys.zone, "event": "accepted", "actor_id": "d1",
        "actor_role": "driver", "at_ms": now_ms(), "required_driver": "d1",
        "payload": '{"attempt": "node.1", "current_status": "accepted", "driver_id": "d1"}',
    }  # fmt: skip
    outcome = await city.parts.ledger.commits.commit(Change(**columns))
    assert outcome.code is OutcomeCode.OK
    await claims_are_overdue(city)
    await sweeper.run()
    assert await versions(city, trip) == [0, 1]
    assert await city.redis("ZCARD", keys.claims) == 0


async def test_what_is_remembered_between_two_looks_is_bounded(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that was settled after its first look has no second one, and is forgotten by itself."""
    monkeypatch.setattr(reconcile, "_MAX_LOOKED_AT", 1)
    claims, sweeper, passed_s = city.keys().claims, city.reconcile(), 0.0
    monkeypatch.setattr(reconcile, "time", SimpleNamespace(monotonic=lambda: passed_s))
    await city.redis("ZADD", claims, 1, "node.1 - d1")
    await sweeper.run()
    await city.redis("ZREM", claims, "node.1 - d1")
    passed_s = 61.0
    await city.redis("ZADD", claims, 1, "node.2 - d1", 2, "node.3 - d1")
    await sweeper.run()
    assert await city.redis("ZRANGE", claims, 0, -1) == ["node.2 - d1"], "beyond the bound, one look"
    await claims_are_overdue(city)
    await sweeper.run()
    assert await city.redis("ZCARD", claims) == 0


async def test_an_event_is_heard_of_though_the_hash_is_as_new(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another call has had the trip reloaded before the sweeper came."""
    await city.online("d1")
    async with LostSettles(city, monkeypatch):
        trip = await city.trip()
    await city.redis("DEL", city.keys(trip).trip_claim(trip))
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    await lease_ends(city)
    assert sorted(await versions(city, trip)) == [0, 1]


@pytest.mark.parametrize("key", [None, "k1"])
async def test_the_winner_s_next_call_meets_the_accept(
    city: City, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    await city.online("d1")
    trip = await city.trip()
    async with LostSettles(city, monkeypatch):
        assert (await city.act(driver("d1"), "accept", trip, key)).status == 200
    assert (await city.act(driver("d1"), "arrive", trip)).status == 200
    assert await versions(city, trip) == [0, 1, 2]


async def test_the_call_after_a_replay_meets_what_was_replayed(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1")
    trip = await city.trip()
    keys = city.keys(trip)
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    async with LostSettles(city, monkeypatch):
        first = await city.act(driver("d1"), "arrive", trip, "k1")
    # Redis has lost the claim and the key's lease with the settle.
    for name in await city.redis("KEYS", keys.prefix + "*"):
        if ":claim:" in name or ":idem:" in name:
            await city.redis("DEL", name)
    again = await city.act(driver("d1"), "arrive", trip, "k1")
    assert (again.status, again.body, again.replayed) == (200, first.body, True)
    assert code_of(await city.act(driver("d1"), "start", trip)) == "trip_started"
    assert await versions(city, trip) == [0, 1, 2, 3]


async def test_a_release_by_repair_starts_the_waves_anew_without_the_former_driver(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1", location=PLACE)
    trip = await city.trip()
    keys = city.keys(trip)
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    await city.redis("HSET", keys.trip(trip), "waiting_since", 1, "round", 9)
    async with LostSettles(city, monkeypatch):
        assert (await city.available("d1", is_online=False)).status == 200
    await lease_ends(city)
    stored = await city.hash(trip)
    assert (stored["current_status"], stored["round"]) == ("pending", "0")
    assert int(stored["waiting_since"]) > 1
    assert await city.redis("SMEMBERS", keys.barred(trip)) == ["d1"]
    await city.online("d1", location=PLACE)
    await city.redis("ZADD", keys.present, 4_000_000_000_000, "driver:d1")
    await city.parts.offers.run_due("default")
    assert (await city.row(trip))["current_status"] == "pending"
    assert await city.redis("EXISTS", keys.inbox("d1")) == 0


async def test_a_silent_reload_starts_the_waves_anew_too(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1")
    trip = await city.trip()
    keys = city.keys(trip)
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    await city.redis("HSET", keys.trip(trip), "waiting_since", 1, "round", 9)
    async with LostSettles(city, monkeypatch):
        assert (await city.act(driver("d1"), "cancel", trip)).status == 200

    async def nothing(*_: Any, **__: Any) -> int:
        return 0

    monkeypatch.setattr(Outbox, "settle_missed", nothing)
    await city.parts.rehydration.reload_trip(keys, trip)
    stored = await city.hash(trip)
    assert (stored["round"], int(stored["waiting_since"]) > 1) == ("0", True)
    assert await city.redis("SMEMBERS", keys.barred(trip)) == ["d1"]
    assert await city.redis("HGET", keys.driver("d1"), "trip_id") == ""


async def test_a_past_trip_is_told_as_it_was(city: City) -> None:
    """Several events in a row were lost: each is told with the trip of its own version."""
    await city.online("d1", "d2")
    trip = await city.trip(dropoff=(40.7, -73.9))
    keys = city.keys(trip)
    before = await city.redis("HGETALL", keys.trip(trip))
    await city.act(driver("d1"), "accept", trip)
    await city.act(driver("d1"), "cancel", trip)
    await city.act(driver("d2"), "accept", trip)
    await city.act(rider("rider"), "cancel", trip, reason="late")
    told = await city.redis("XRANGE", keys.events, "-", "+")
    await city.redis("DEL", keys.events, keys.trip(trip))
    await city.redis("HSET", keys.trip(trip), *before)
    await city.parts.rehydration.reload_trip(keys, trip)
    again = await city.redis("XRANGE", keys.events, "-", "+")
    shown = [orjson.loads(fields[1])["trip"] for _, fields in again]
    assert shown == [orjson.loads(fields[1])["trip"] for _, fields in told[1:]]


async def test_a_snapshot_shows_no_trip_that_is_not_pending_and_none_that_has_ended(
    city: City,
) -> None:
    await city.online("d1")
    open_trip, gone = await city.trip(), await city.trip()
    keys = city.keys()
    for trip in (open_trip, gone):
        await city.redis("ZADD", keys.inbox("d1"), 4_000_000_000_000, trip)
    await city.redis("HSET", keys.trip(gone), "current_status", "cancelled")
    await city.redis("HSET", keys.driver("d1"), "trip_id", gone)
    snapshot = await city.parts.snapshots.of(driver("d1"))
    assert [offer["trip"]["id"] for offer in snapshot["offers"]] == [open_trip]
    assert (snapshot["trip"], snapshot["driver"]["trip_id"]) == (None, None)


async def test_an_emptied_redis_tells_what_was_committed_long_before_it_is_loaded(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All servers died with Redis, and came back an hour later."""
    await city.online("d1")
    trip = await city.trip()
    async with LostSettles(city, monkeypatch):
        assert (await city.act(driver("d1"), "accept", trip)).status == 200
    await city.postgres.execute("UPDATE trip_events SET created_at = created_at - interval '1 hour'")
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    assert ("accepted", trip, 1) in await city.events()


async def test_a_trip_that_ended_before_its_creation_by_another_clock_does_not_come_back(
    city: City,
) -> None:
    """The event that ended it was stamped by a Redis whose clock was behind: still, it came after."""
    trip = await city.trip()
    assert (await city.act(rider("rider"), "cancel", trip)).status == 200
    await city.postgres.execute(
        "UPDATE trip_events SET created_at = created_at - interval '1 hour' WHERE version = 1"
    )
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    assert (await city.hash(trip))["current_status"] == "cancelled"
    assert [version for _, _, version in await city.events()] == [0, 1]


async def test_a_zone_is_loaded_though_older_events_take_too_long_to_look_for(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quiet zone, whose Redis was emptied, in a large database."""
    looks, since = 0, UnheardEvents._last_events_since

    async def slow(*args: Any, **more: Any) -> dict[str, int]:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise StoreUnavailable("timeout")
        return await since(*args, **more)

    monkeypatch.setattr(UnheardEvents, "_last_events_since", slow)
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    assert looks == 2
    assert await city.parts.live.state.read_epoch(city.keys()) is not None


async def test_a_load_that_breaks_off_as_it_tells_events_leaves_the_rest_to_the_next_one(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has told is new to the stream, and hides that older ones are missing."""
    await city.online("d1", "d2")
    trips = [await city.trip(), await city.trip()]
    async with LostSettles(city, monkeypatch):
        for number, trip in enumerate(trips, 1):
            assert (await city.act(driver(f"d{number}"), "accept", trip)).status == 200
    await city.postgres.execute("UPDATE trip_events SET created_at = created_at - interval '1 hour'")
    await city.redis("FLUSHDB")
    settle_trips = Outbox._settle_trips

    async def break_off(outbox: Outbox, keys: Any, ids: Any, first: Any) -> int:
        await settle_trips(outbox, keys, ids[:1], first)
        raise StoreUnavailable("redis")

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_settle_trips", break_off)
        with pytest.raises(StoreUnavailable):
            await city.parts.rehydration.warm("default")
    told = {trip for event, trip, _ in await city.events() if event == "accepted"}
    assert len(told) == 1
    await city.parts.rehydration.warm("default")
    told = {trip for event, trip, _ in await city.events() if event == "accepted"}
    assert told == set(trips)
    assert await city.redis("EXISTS", city.keys().unheard_since) == 0


async def test_a_redis_whose_clock_is_ahead_hears_what_postgres_has_decided_alone(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last event seems to be of a later time than those that it lacks."""
    await city.online("d1")
    trip = await city.trip()
    async with LostSettles(city, monkeypatch):
        assert (await city.act(driver("d1"), "accept", trip)).status == 200
    ahead_ms = 3_600_000
    last = (await city.redis("XREVRANGE", city.keys().events, "+", "-", "COUNT", "1"))[0]
    await city.redis("XADD", city.keys().events, f"{now_ms() + ahead_ms}-0", "event", last[1][1])
    read_clock = ComparisonScripts.read_clock

    async def ahead(scripts: ComparisonScripts, keys: Any) -> tuple[int, str]:
        at_ms, epoch = await read_clock(scripts, keys)
        return at_ms + ahead_ms, epoch

    monkeypatch.setattr(ComparisonScripts, "read_clock", ahead)
    await city.parts.rehydration.rebuild("default")
    assert ("accepted", trip, 1) in await city.events()


async def test_a_zone_loads_whose_stream_was_written_by_hand(city: City) -> None:
    """An id of the first millisecond: no time lies before it."""
    trip, keys = await city.trip(), city.keys()
    await city.redis("DEL", keys.events, keys.epoch)
    await city.redis("XADD", keys.events, "1-1", "event", "{}")
    await city.parts.rehydration.warm("default")
    await city.redis("XDEL", keys.events, "1-1")
    assert await city.events() == [("created", trip, 0)]


async def lose_a_creation(city: City, monkeypatch: pytest.MonkeyPatch) -> str:
    """A trip that was created an hour ago, and of which Redis was not told."""
    async with LostSettles(city, monkeypatch):
        trip = await city.trip(customer="other")
    await city.postgres.execute(
        "UPDATE trip_events SET created_at = created_at - interval '1 hour' WHERE trip_id = $1", trip
    )
    keys = city.keys()
    await city.redis("DEL", keys.claims, keys.trip_claim(trip))
    return trip


@pytest.mark.parametrize("ahead_s", [600, 3_600])
async def test_a_stream_whose_last_id_lies_ahead_of_its_redis_says_nothing(
    city: City, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """The clock was ahead as it told its last event, and has been put right since."""
    first, keys = await city.trip(), city.keys()
    last = (await city.redis("XREVRANGE", keys.events, "+", "-", "COUNT", "1"))[0]
    await city.redis("XADD", keys.events, f"{now_ms() + ahead_s * 1000}-0", "event", last[1][1])
    trip = await lose_a_creation(city, monkeypatch)
    await city.redis("DEL", keys.epoch)
    await city.parts.rehydration.warm("default")
    told = await city.events()
    assert told.count(("created", trip, 0)) == 1
    assert told.count(("created", first, 0)) == 2, "what was told is not told again"


@pytest.mark.parametrize("ahead_s", [600, 3_600])
async def test_a_last_event_that_lies_ahead_of_postgres_says_nothing(
    city: City, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """A Redis whose clock was ahead gave it its time; an empty one has taken its place."""
    first = await city.trip()
    await city.postgres.execute(
        "UPDATE trip_events SET created_at = now() + $2 * interval '1 second' WHERE trip_id = $1",
        first, ahead_s,
    )  # fmt: skip
    trip = await lose_a_creation(city, monkeypatch)
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    assert ("created", trip, 0) in await city.events()


async def test_a_redis_that_comes_back_empty_hears_all_that_postgres_has_decided_alone(
    city: City,
) -> None:
    """Its stream says nothing of how long it was away, nor does the last event."""
    await city.postgres.execute(
        "UPDATE zone_authorities SET engine = 'postgres', fence = fence + 1, changed_at = now(),"
        " alone_since = now() - interval '1 hour'"
    )
    await city.parts.authorities.refresh()
    old, new = await city.trip(), await city.trip(customer="r2")
    await city.postgres.execute(
        "UPDATE trip_events SET created_at = created_at - interval '30 minutes' WHERE trip_id = $1", old
    )
    await city.redis("FLUSHDB")
    assert await city.parts.authorities._give_back("default")
    await city.parts.rehydration.warm("default")
    assert {("created", old, 0), ("created", new, 0)} <= set(await city.events())
    assert await city.postgres.fetchval("SELECT alone_since FROM zone_authorities") is None
