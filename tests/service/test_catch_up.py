"""What Postgres has decided alone is told to Redis before it decides again, and so requests wait less."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis.asyncio

from dispatcher.core.errors import StoreUnavailable
from dispatcher.embedded.valkey import Valkey
from dispatcher.live import catch_up_notes
from dispatcher.live.keys import home_channel
from dispatcher.live.pubsub import Listener
from dispatcher.service import catch_up, saved_answers
from dispatcher.service.outbox import Outbox
from tests.harness.services import City, driver
from tests.service.test_redis_away import (
    drifts,
    give_back,
    kill,
    open_server,
    restart,
    take_all_steps,
    until,
)

ZONE = "default"


@pytest.fixture(autouse=True)
def _however_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "_FEW", -1)


@pytest.fixture
def valkey(data_dir: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own, to be killed."""
    engine = Valkey(data_dir / "valkey")
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def city(valkey: Valkey, database_url: str) -> AsyncIterator[City]:
    async with open_server(valkey, database_url) as opened:
        yield opened


async def caught_up(city: City) -> None:
    """Waits until this server would give the zone back."""
    async with asyncio.timeout(20):
        while not city.parts.catch_up.is_done(ZONE):
            await asyncio.wait([city.parts.catch_up._work[ZONE].look])


async def reached(city: City) -> None:
    """Waits until this server reaches its Redis again."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(StoreUnavailable):
                await city.redis("PING")
                return
            await asyncio.sleep(0.02)


async def back(city: City, valkey: Valkey) -> None:
    """Redis is started again, and this server reaches it."""
    await restart(valkey)
    await reached(city)


async def flush(valkey: Valkey) -> None:
    """Redis loses all that it holds."""
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.flushall()
    await client.aclose()


async def look_once(city: City) -> float | None:
    """What comes of a look that this server begins."""
    assert not city.parts.catch_up.is_done(ZONE)
    look = city.parts.catch_up._work[ZONE].look
    await asyncio.wait([look])
    return look.result()


def count_settles(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What loads settle from now on: events by trip."""
    settled: Counter[str] = Counter()
    settle = Outbox._settle

    async def counted(outbox: Outbox, keys: Any, trip: Any, history: Any, missed: Any) -> None:
        settled[trip.id] += len(missed)
        await settle(outbox, keys, trip, history, missed)

    monkeypatch.setattr(Outbox, "_settle", counted)
    return settled


async def ordered_once(city: City) -> None:
    """Each version of each trip is in the stream once, and in order."""
    versions: dict[str, list[int]] = {}
    for _, trip, version in await city.events():
        versions.setdefault(trip, []).append(version)
    rows = await city.postgres.fetch("SELECT id, version FROM trip_requests")
    assert versions == {row["id"]: [*range(row["version"] + 1)] for row in rows}


async def away(city: City, valkey: Valkey) -> list[str]:
    """Trips that Postgres decides about alone: one that is over, one that is under way, one that waits."""
    await city.online("d1", "d2")
    before = await city.trip()
    kill(valkey)
    await take_all_steps(city, "d1", before)
    under_way, waiting = await city.trip(), await city.trip()
    assert (await city.act(driver("d2"), "accept", under_way, "d2-accept")).status == 200
    return [before, under_way, waiting]


async def test_events_and_answers_are_told_before_the_load(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, under_way, _ = await away(city, valkey)
    await back(city, valkey)
    await caught_up(city)
    assert city.parts.authorities.degraded() == [ZONE]
    await ordered_once(city)
    settled = count_settles(monkeypatch)
    await give_back(city)
    assert not settled
    await ordered_once(city)
    assert await drifts(city) == []
    replay = await city.act(driver("d1"), "accept", before, "d1-accept")
    assert (replay.status, replay.replayed) == (200, True)
    for action in ("arrive", "start", "complete"):
        assert (await city.act(driver("d2"), action, under_way)).status == 200
    await ordered_once(city)
    assert await city.redis("EXISTS", city.keys().unheard_since, city.keys().caught_up) == 0


async def test_the_servers_of_a_customer_hear_where_their_trip_was_created(
    city: City, valkey: Valkey
) -> None:
    """Else they would not listen in that zone once Redis decides, and the customer hear nothing more."""
    await away(city, valkey)
    await back(city, valkey)
    stands, heard = asyncio.Event(), asyncio.Queue[bytes]()
    listener = Listener(heard.put_nowait, stands.set)
    city.parts.subscriber.subscribe(home_channel("customer:rider"), listener)
    async with asyncio.timeout(20):
        await stands.wait()
        await caught_up(city)
        message = await heard.get()
    zone, frame = orjson.loads(message)
    assert (zone, frame["event"]) == (ZONE, "created")


async def test_what_is_decided_after_it_comes_with_the_load(city: City, valkey: Valkey) -> None:
    _, under_way, waiting = await away(city, valkey)
    await back(city, valkey)
    await caught_up(city)
    assert (await city.act(driver("d2"), "arrive", under_way, "d2-last")).status == 200
    assert (await city.act(driver("d1"), "accept", waiting, "d1-last")).status == 200
    await give_back(city)
    await ordered_once(city)
    assert await drifts(city) == []
    for name, action, trip in (("d2", "arrive", under_way), ("d1", "accept", waiting)):
        assert (await city.act(driver(name), action, trip, f"{name}-last")).replayed


async def test_a_redis_that_has_lost_it_is_told_again(city: City, valkey: Valkey) -> None:
    """The note of what was told is lost with it."""
    before, *_ = await away(city, valkey)
    await back(city, valkey)
    await caught_up(city)
    await flush(valkey)
    await give_back(city)
    await has_all(city, before)


async def test_one_of_two_servers_tells(
    city: City, valkey: Valkey, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server(valkey, database_url) as other:
        await away(city, valkey)
        await restart(valkey)
        telling: set[Outbox] = set()
        tell = Outbox.tell_unheard

        async def slow(outbox: Outbox, *args: Any, **more: Any) -> int:
            telling.add(outbox)
            assert telling == {outbox}, "the other one is about it"
            told = await tell(outbox, *args, **more)
            await asyncio.sleep(0.3)  # and meanwhile the other one looks
            return told

        monkeypatch.setattr(Outbox, "tell_unheard", slow)
        await give_back(city, other)
        await ordered_once(city)
        assert telling
        assert await drifts(city) == []


def after_telling(monkeypatch: pytest.MonkeyPatch, then: Any) -> None:
    """What happens within a look, once: the stream and the answers are told, and not noted yet."""
    tell, times = Outbox.tell_unheard, 0

    async def told(outbox: Outbox, *args: Any, **more: Any) -> int:
        nonlocal times
        count = await tell(outbox, *args, **more)
        times += 1
        if times == 1:
            await then()
        return count

    monkeypatch.setattr(Outbox, "tell_unheard", told)


async def an_hour_ago(city: City) -> None:
    """All that was decided was decided then: no look goes back so far by itself."""
    for table in ("trip_events", "idempotency_keys"):
        await city.postgres.execute(f"UPDATE {table} SET created_at = created_at - interval '1 hour'")
    await city.postgres.execute(
        "UPDATE zone_authorities SET alone_since = alone_since - interval '1 hour'"
    )


async def lose(city: City) -> None:
    """Redis loses what it was told, as one that has followed another, and keeps what was noted."""
    await city.redis("DEL", city.keys().events, *await city.redis("KEYS", city.keys().prefix + "idem:*"))


async def has_all(city: City, before: str) -> None:
    await ordered_once(city)
    assert await drifts(city) == []
    assert (await city.redis("GET", city.keys().idem("d1", "/act", "d1-accept"))).startswith("D ")
    assert (await city.act(driver("d1"), "accept", before, "d1-accept")).replayed


@pytest.mark.parametrize("is_started_again", [False, True])
async def test_what_a_redis_loses_within_a_look_is_not_noted(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, is_started_again: bool
) -> None:
    before, *_ = await away(city, valkey)
    await an_hour_ago(city)
    await back(city, valkey)

    async def lose_it() -> None:
        await flush(valkey)
        if is_started_again:
            await restart(valkey)

    after_telling(monkeypatch, lose_it)
    await give_back(city)
    await has_all(city, before)


@pytest.mark.parametrize("part", ["run id", "time", "fence"])
async def test_a_note_that_is_of_another_redis_or_time_says_nothing(
    city: City, valkey: Valkey, part: str
) -> None:
    """A stale replica may have the note, and not all that it is about; clocks are set."""
    before, *_ = await away(city, valkey)
    await an_hour_ago(city)
    await back(city, valkey)
    await caught_up(city)
    fence, at_ms, answer, horizon, run_id = (await city.redis("GET", city.keys().caught_up)).split()
    note = {
        "run id": (fence, at_ms, answer, horizon, "0" * 40),
        "time": (fence, "9" * 15, answer, horizon, run_id),
        "fence": (int(fence) - 1, at_ms, answer, horizon, run_id),
    }[part]
    await until(lambda: city.parts.authorities._give_back(ZONE))
    await city.redis("SET", city.keys().caught_up, " ".join(map(str, note)))
    await lose(city)
    await city.parts.rehydration.warm(ZONE)
    await has_all(city, before)


async def test_a_look_that_goes_on_keeps_no_zone_from_being_loaded(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may give the zone back meanwhile."""
    before, *_ = await away(city, valkey)
    await back(city, valkey)
    stands, goes_on = asyncio.Event(), asyncio.Event()

    async def stand() -> None:
        stands.set()
        await goes_on.wait()

    after_telling(monkeypatch, stand)
    assert not city.parts.catch_up.is_done(ZONE)
    look = city.parts.catch_up._work[ZONE].look
    await stands.wait()
    await until(lambda: city.parts.authorities._give_back(ZONE))
    async with asyncio.timeout(5):
        await city.parts.rehydration.warm(ZONE)
    goes_on.set()
    await asyncio.wait([look])
    assert look.result() is None
    assert await city.redis("EXISTS", city.keys().caught_up, city.keys().catching_up) == 0
    city.parts.catch_up.forget_all_but(())
    assert not city.parts.catch_up._work
    assert (await city.act(driver("d1"), "accept", before, "d1-accept")).replayed
    assert await drifts(city) == []


async def test_the_oldest_of_too_many_answers_ask_postgres(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, *_ = await away(city, valkey)
    await city.postgres.execute(
        "UPDATE idempotency_keys SET created_at = created_at - interval '1 hour',"
        " expires_at = expires_at - interval '1 hour' WHERE idempotency_key = 'd1-accept'"
    )
    await back(city, valkey)
    with monkeypatch.context() as patch:
        patch.setattr(saved_answers, "MAX_ANSWERS", 2)
        patch.setattr(catch_up, "_ON_THEIR_WAY", 0)
        await caught_up(city)
    await give_back(city)
    assert await city.redis("EXISTS", city.keys().idem("d1", "/act", "d1-accept")) == 0
    assert (await city.act(driver("d1"), "accept", before, "d1-accept")).replayed


@pytest.mark.parametrize("hangs", [False, True])
async def test_what_cannot_be_told_keeps_no_zone_from_its_redis(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    async def fail(*_: Any) -> int:
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr(catch_up, "_MAX_S", 0.5)
    await away(city, valkey)
    await restart(valkey)
    if hangs:
        after_telling(monkeypatch, asyncio.Event().wait)
    else:
        monkeypatch.setattr(Outbox, "tell_unheard", fail)
    await give_back(city)
    city.parts.catch_up.forget_all_but(())
    await ordered_once(city)
    assert await drifts(city) == []


async def test_a_redis_that_dies_as_it_is_told_is_told_again(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips = await away(city, valkey)
    await back(city, valkey)
    tell, deaths = Outbox._tell, 0

    async def die(outbox: Outbox, keys: Any, trip: Any, history: Any, first: int) -> int:
        nonlocal deaths
        told = await tell(outbox, keys, trip, history, first)
        if trip.id == trips[0] and not deaths:
            deaths += 1
            kill(valkey)
        return told

    monkeypatch.setattr(Outbox, "_tell", die)
    monkeypatch.setattr(catch_up_notes, "_LOCK_MS", 1_000)  # the lock of who was telling
    assert await look_once(city) is None
    assert deaths == 1
    await restart(valkey)
    await give_back(city)
    told = {event[1:] for event in await city.events()}
    rows = await city.postgres.fetch("SELECT trip_id, version FROM trip_events")
    assert told == {(row["trip_id"], row["version"]) for row in rows}
    assert await drifts(city) == []


async def test_a_look_that_fails_leaves_no_error_for_nobody(city: City, valkey: Valkey) -> None:
    """Nobody may ask for its result: another server may have given the zone back."""
    await away(city, valkey)  # and Redis is still away
    assert await look_once(city) is None
    assert not city.parts.catch_up.is_done(ZONE)


async def test_a_look_that_hangs_is_not_that_of_the_next_time(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await away(city, valkey)
    await back(city, valkey)
    after_telling(monkeypatch, asyncio.Event().wait)
    monkeypatch.setattr(catch_up, "_MAX_S", 0.5)
    await give_back(city)
    monkeypatch.setattr(catch_up, "_MAX_S", 60.0)
    kill(valkey)
    await city.trip()
    assert city.parts.authorities.degraded() == [ZONE]
    await restart(valkey)
    await give_back(city)
    await ordered_once(city)


async def test_what_no_socket_was_told_is_told_again(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream has an event only once the sockets have it."""
    await away(city, valkey)
    await back(city, valkey)
    pipeline = city.parts.live.pipeline
    send = pipeline.command

    def cut(*command: Any) -> Any:
        if command[0] != "SPUBLISH":
            return send(*command)
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(StoreUnavailable("cut"))
        return failed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "command", cut)
        assert await look_once(city) is None
    told = await city.events()
    rows = await city.postgres.fetch("SELECT trip_id FROM trip_events")
    assert len(told) < len(rows)
    await give_back(city)
    await ordered_once(city)


async def test_a_look_at_a_zone_that_was_given_back_gives_up_its_turn(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await away(city, valkey)
    await back(city, valkey)
    stands = asyncio.Event()

    async def hang() -> None:
        stands.set()
        await asyncio.Event().wait()

    after_telling(monkeypatch, hang)
    parts = city.parts.catch_up
    assert not parts.is_done(ZONE)
    await stands.wait()
    look = parts._work[ZONE].look
    parts.forget_all_but(())
    async with asyncio.timeout(5):
        await asyncio.wait([look])
    assert look.cancelled()
    assert await city.redis("EXISTS", city.keys().catching_up, city.keys().caught_up) == 0
    parts.forget_all_but(())
    assert not parts._work
    await give_back(city)
    assert await drifts(city) == []
