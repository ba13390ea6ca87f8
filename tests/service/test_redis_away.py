"""Redis is away: accepts go on, decided by Postgres alone, and Redis decides again once it is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
import redis.asyncio
from redis.exceptions import RedisError

from dispatcher.background import degraded_zones_job
from dispatcher.comparison import drift_check
from dispatcher.core.actors import Actor, Role
from dispatcher.core.authority import Engine
from dispatcher.core.callers import Caller
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import now_ms
from dispatcher.core.trips import Status
from dispatcher.core.zones import Zone, Zones
from dispatcher.embedded.valkey import Valkey
from dispatcher.ledger.changes import Change, OutcomeCode
from dispatcher.ledger.database import QUERIES
from dispatcher.live.keys import keys_of
from dispatcher.service.answers import Answer
from dispatcher.service.drift import DriftCheck
from dispatcher.service.event_tail import EventTail
from tests.harness.services import PLACE, City, code_of, driver, key, open_city, rider


@pytest.fixture
def valkey(data_dir: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own, to be killed, frozen and filled."""
    engine = Valkey(data_dir / "valkey")
    engine.start()
    yield engine
    with contextlib.suppress(ProcessLookupError):
        os.kill(_pid(engine), signal.SIGCONT)
    engine.stop()


@pytest.fixture
async def city(valkey: Valkey, database_url: str) -> AsyncIterator[City]:
    async with open_server(valkey, database_url) as opened:
        yield opened


@contextlib.asynccontextmanager
async def open_server(valkey: Valkey, database_url: str, **more: Any) -> AsyncIterator[City]:
    async with open_city(valkey.url, database_url, **{"redis_timeout_s": 0.3, **more}) as city:
        city.parts.authorities.held_s = 0.2
        yield city


def _pid(engine: Valkey) -> int:
    assert engine.process is not None
    return engine.process.pid


def kill(valkey: Valkey) -> None:
    os.kill(_pid(valkey), signal.SIGKILL)


async def restart(valkey: Valkey) -> None:
    await asyncio.to_thread(valkey.stop)
    await asyncio.to_thread(valkey.start)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


async def give_back(*cities: City) -> None:
    """Runs the servers' jobs until Redis decides again, and is loaded."""
    jobs = [degraded_zones_job(city.parts) for city in cities]

    async def is_back() -> bool:
        for each in jobs:
            await each.run()
        return not any(city.parts.authorities.degraded() for city in cities)

    await until(is_back)
    await cities[0].parts.rehydration.warm("default")


async def drifts(city: City) -> list[Any]:
    check: DriftCheck = drift_check(city.parts.settings, city.parts.live, city.parts.ledger)
    return [drift async for drift in check.check("default", every_key=True)]


def count_questions(city: City, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the queries for rows that a server makes from now on."""
    asked: list[str] = []
    database = city.parts.ledger.database
    ask = database.rows

    async def counted(name: str, **arguments: Any) -> list[Any]:
        asked.append(name)
        return await ask(name, **arguments)

    monkeypatch.setattr(database, "rows", counted)
    return asked


async def take_all_steps(city: City, name: str, trip: str) -> None:
    for action in ("accept", "arrive", "start", "complete"):
        answer = await city.act(driver(name), action, trip, f"{name}-{action}")
        assert answer.status == 200, (action, answer)


async def test_every_action_goes_on_while_redis_is_dead(city: City, valkey: Valkey) -> None:
    await city.online("d1", "d2", location=PLACE)
    before = await city.trip()
    kill(valkey)
    await take_all_steps(city, "d1", before)
    assert city.parts.authorities.degraded() == ["default"]
    created = await city.trip()
    await take_all_steps(city, "d2", created)
    assert (await city.available("d1", is_online=False)).status == 200
    assert (await city.available("d1", is_online=True, location=PLACE)).status == 200
    cancelled, declined = await city.trip(), await city.trip()
    assert (await city.act(rider("rider"), "cancel", cancelled)).status == 200
    assert (await city.act(driver("d1"), "decline", declined)).status == 200
    assert await city.double_assignments() == 0
    await restart(valkey)
    await give_back(city)
    assert {(event, trip) for event, trip, _ in await city.events()} >= {
        ("completed", before), ("completed", created), ("cancelled", cancelled), ("created", declined),
    }  # fmt: skip
    assert (await city.act(driver("d1"), "accept", declined)).status == 200
    assert await drifts(city) == []


async def test_one_of_a_crowd_on_two_servers_wins(city: City, valkey: Valkey, database_url: str) -> None:
    names = [f"d{i}" for i in range(40)]
    await city.online(*names)
    trips = [await city.trip() for _ in range(4)]
    async with open_server(valkey, database_url) as other:
        kill(valkey)
        answers = await asyncio.gather(
            *(
                (city, other)[i % 2].act(driver(name), "accept", trip, f"{name}-{trip}")
                for trip in trips
                for i, name in enumerate(names)
            )
        )
        won = [answer for answer in answers if answer.status == 200]
        assert len(won) == len(trips)
        refused = {code_of(answer) for answer in answers if answer.status != 200}
        assert refused <= {"trip_already_assigned", "driver_not_available", "trip_busy"}
        assert await city.double_assignments() == 0
        await restart(valkey)
        await give_back(city, other)
    assert await drifts(city) == []


async def test_a_frozen_redis_delays_nobody_for_long(city: City, valkey: Valkey) -> None:
    await city.online("d1", "d2")
    first, second = await city.trip(), await city.trip()
    os.kill(_pid(valkey), signal.SIGSTOP)
    assert (await city.act(driver("d1"), "accept", first, "k")).status == 200
    os.kill(_pid(valkey), signal.SIGCONT)
    await give_back(city)
    # What it held when it was frozen is old; it was loaded before it decided.
    assert code_of(await city.act(driver("d2"), "accept", first)) == "trip_already_assigned"
    assert code_of(await city.act(driver("d1"), "accept", second)) == "driver_not_available"
    assert (await city.act(driver("d1"), "accept", first, "k")).replayed
    assert await drifts(city) == []


@pytest.mark.parametrize(
    ("ill", "well"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("ACL", "SETUSER", "default", "-evalsha"), ("ACL", "SETUSER", "default", "+evalsha")),
        (("ACL", "SETUSER", "default", "-zadd"), ("ACL", "SETUSER", "default", "+zadd")),
    ],
    ids=["out of memory", "demoted", "runs no script", "a right is missing within scripts"],
)
async def test_a_redis_that_is_no_help(
    city: City, valkey: Valkey, ill: tuple[str, ...], well: tuple[str, ...]
) -> None:
    await city.online("d1")
    trip = await city.trip()
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.execute_command(*ill)
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    assert city.parts.authorities.degraded() == ["default"]
    breaker = city.parts.live.pipeline.breaker
    assert breaker is not None
    with pytest.raises((RedisError, StoreUnavailable)):
        await city.parts.live.pipeline._probe()
    assert (breaker.is_open, breaker.opened) == (True, 1), "it is not asked before it is a help"
    await client.execute_command(*well)
    await client.aclose()
    await give_back(city)
    assert (await city.act(driver("d1"), "arrive", trip)).status == 200
    assert await drifts(city) == []


def kill_before_commit(city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis dies between the next claim and its commit."""
    commits = city.parts.ledger.commits
    commit = commits.commit

    async def killed(*args: Any, **options: Any) -> Any:
        kill(valkey)
        monkeypatch.undo()
        return await commit(*args, **options)

    monkeypatch.setattr(commits, "commit", killed)


async def test_a_success_outlives_what_another_server_refused_before(
    city: City, valkey: Valkey, database_url: str
) -> None:
    async with open_server(valkey, database_url) as other:
        trip = await city.trip()
        kill(valkey)
        refused = await city.act(driver("d1"), "accept", trip, "k1")
        assert code_of(refused) == "driver_not_online"
        await other.online("d1")
        accepted = await other.act(driver("d1"), "accept", trip, "k1")
        assert accepted.status == 200
        again = await city.act(driver("d1"), "accept", trip, "k1")
        assert (again.replayed, again.body) == (True, accepted.body)
        await restart(valkey)
        await give_back(city, other)
        again = await city.act(driver("d1"), "accept", trip, "k1")
        assert (again.replayed, again.body) == (True, accepted.body)


async def test_a_success_outlives_what_redis_refused_before(city: City, valkey: Valkey) -> None:
    trip = await city.trip()
    refused = await city.act(driver("d1"), "accept", trip, "k1")
    assert code_of(refused) == "driver_not_online"
    await city.redis("SAVE")
    kill(valkey)
    await city.online("d1")
    accepted = await city.act(driver("d1"), "accept", trip, "k1")
    assert accepted.status == 200
    await restart(valkey)
    await give_back(city)
    again = await city.act(driver("d1"), "accept", trip, "k1")
    assert (again.replayed, again.body) == (True, accepted.body)


async def test_redis_dies_between_a_claim_and_a_stale_commit(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1")
    trip = await city.trip()
    # As if another server had changed it, and Redis not been told.
    await city.postgres.execute("UPDATE trip_requests SET version = 1 WHERE id = $1", trip)
    kill_before_commit(city, valkey, monkeypatch)
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    assert city.parts.authorities.degraded() == ["default"]
    assert (await city.row(trip))["version"] == 2


async def test_redis_dies_between_a_claim_and_a_replay(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = key(driver("d1"), "k1")
    first = await city.available("d1", is_online=True, key=again)
    # As after a failover that has lost it.
    await city.redis("DEL", city.keys().idem(again.user_id, again.endpoint, again.key))
    kill_before_commit(city, valkey, monkeypatch)
    answer = await city.available("d1", is_online=True, key=again)
    assert (answer.replayed, answer.body) == (True, first.body)


async def test_keys_have_one_effect_and_one_answer_on_both_roads(city: City, valkey: Valkey) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    first = await city.act(driver("d1"), "accept", trip, "k1")
    kill(valkey)
    again = await city.act(driver("d1"), "accept", trip, "k1")
    assert (again.replayed, again.body) == (True, first.body)
    assert code_of(await city.act(driver("d1"), "arrive", trip, "k1")) == "idempotency_key_reused"
    crowd = await asyncio.gather(*(city.act(driver("d1"), "arrive", trip, "k2") for _ in range(20)))
    arrived = [answer for answer in crowd if answer.status == 200]
    assert arrived
    assert {a.body for a in arrived} == {arrived[0].body}
    assert {code_of(a) for a in crowd if a.status != 200} <= {"request_in_progress"}
    refused = await city.act(driver("d2"), "accept", trip, "k3")
    assert code_of(refused) == "trip_already_assigned"
    assert (await city.act(driver("d2"), "accept", trip, "k3")).replayed
    await restart(valkey)
    await give_back(city)
    again = await city.act(driver("d1"), "arrive", trip, "k2")
    assert (again.replayed, again.body) == (True, arrived[0].body)
    assert await city.double_assignments() == 0


async def test_a_server_that_believes_in_the_other_road_is_refused(
    city: City, valkey: Valkey, database_url: str
) -> None:
    """It has claimed in Redis; meanwhile another server, which cannot reach Redis, has Postgres decide."""
    await city.online("d1", "d2")
    trip = await city.trip()
    authorities = city.parts.authorities
    before = authorities.of("default")
    assert before.engine is Engine.REDIS
    async with open_server(valkey, database_url) as other:
        parts = other.parts
        assert parts.live.pipeline.breaker is not None
        parts.live.pipeline.breaker.trip("cut off")
        assert (await other.act(driver("d2"), "accept", trip)).status == 200
        # The first server has heard nothing of it: its Redis still says that the trip is pending.
        assert authorities.of("default") == before
        change = Change(
            trip_id=trip, expect_version=1, sources=(Status.ACCEPTED,), to_status="arrived",
            driver_id="d2", zone="default", event="arrived", actor_id="d2", actor_role="driver",
            payload="{}", at_ms=1, fence=before.fence,
        )  # fmt: skip
        assert (await city.parts.ledger.commits.commit(change)).code is OutcomeCode.FENCED
        assert code_of(await city.act(driver("d1"), "accept", trip)) == "trip_already_assigned"
        assert authorities.of("default").is_degraded
        fallback = authorities.of("default")
        await give_back(city, other)
        late = change._replace(fence=fallback.fence, is_fallback=True)
        assert (await city.parts.ledger.commits.commit(late)).code is OutcomeCode.FENCED
        assert (await city.row(trip))["version"] == 1
    assert await drifts(city) == []


async def test_redis_is_given_a_zone_once_what_was_decided_without_it_is_committed(
    city: City, database_url: str
) -> None:
    """The lock of the change is what the giving waits for."""
    session = await asyncpg.connect(database_url)
    await session.execute(
        "UPDATE zone_authorities SET engine = 'postgres', fence = fence + 1, changed_at = now()"
    )
    await city.parts.authorities.refresh()
    async with session.transaction():
        await session.execute("SELECT 1 FROM zone_authorities WHERE zone = 'default' FOR SHARE")
        giving = asyncio.create_task(city.parts.authorities.tend())
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%UPDATE zone_authorities%'"
        await until(lambda: _is_waiting(city, waits))
        assert not giving.done()
    assert await giving == ["default"]
    await session.close()


async def test_many_zones_are_given_back_some_at_a_time(
    valkey: Valkey, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other servers change, and commit in the zones that are left, is heard in between."""
    monkeypatch.setattr("dispatcher.service.authorities._GIVE_BACK_S", 0.0)
    names = {"north", "south", "default"}
    zones = Zones([Zone(name) for name in names])
    async with open_server(valkey, database_url, zones=zones) as city:
        await _change_hands(city, Engine.POSTGRES)
        given: list[str] = []
        for left in (2, 1, 0):
            given += await city.parts.authorities.tend()
            assert len(city.parts.authorities.degraded()) == left
        assert set(given) == names


async def _is_waiting(city: City, query: str) -> bool:
    return bool(await city.postgres.fetchval(query))


async def _change_hands(city: City, engine: Engine, *, at: str = "now()") -> None:
    """What another server does."""
    await city.postgres.execute(
        f"UPDATE zone_authorities SET engine = $1, fence = fence + 1, changed_at = {at}", engine
    )


async def test_what_other_servers_change_is_heard_and_nothing_else_is_read(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities, database = city.parts.authorities, city.parts.ledger.database
    read: list[list[Any]] = []
    ask = database.rows

    async def counted(name: str, **arguments: Any) -> list[Any]:
        rows = await ask(name, **arguments)
        read.append(rows)
        return rows

    monkeypatch.setattr(database, "rows", counted)
    await city.postgres.execute("UPDATE zone_authorities SET changed_at = now() - interval '1 hour'")
    await authorities.refresh()
    assert read == [[]]
    await _change_hands(city, Engine.POSTGRES)
    await authorities.refresh()
    assert authorities.degraded() == ["default"]


async def test_a_change_is_heard_though_the_clock_of_postgres_was_set_back(city: City) -> None:
    authorities = city.parts.authorities
    await _change_hands(city, Engine.POSTGRES, at="now() + interval '1 hour'")
    await authorities.refresh()
    assert authorities.degraded() == ["default"]
    await _change_hands(city, Engine.REDIS)
    await authorities.refresh()
    assert authorities.degraded() == []


async def test_a_zone_is_not_loaded_while_postgres_decides(city: City) -> None:
    await city.postgres.execute(
        "UPDATE zone_authorities SET engine = 'postgres', fence = fence + 1, changed_at = now()"
    )
    await city.redis("FLUSHDB")
    with pytest.raises(StoreUnavailable):
        await city.parts.rehydration.warm("default")
    assert await city.redis("EXISTS", city.keys().epoch) == 0


async def test_limits_hold_without_redis(valkey: Valkey, database_url: str) -> None:
    async with open_server(valkey, database_url, limit_trip_accept="10/60") as city:
        await city.online("d1")
        trips = [await city.trip(customer=f"r{i}") for i in range(2)]
        kill(valkey)
        answers = await asyncio.gather(
            *(city.act(driver("d1"), "accept", trips[i % 2]) for i in range(30))
        )
        limited = [answer for answer in answers if answer.status == 429]
        assert len(limited) == 20
        assert all(answer.retry_after_s for answer in limited)
        assert sum(answer.status == 200 for answer in answers) == 1


async def test_a_call_counts_once_and_a_replay_not_at_all(valkey: Valkey, database_url: str) -> None:
    async with open_server(valkey, database_url, limit_trip_accept="3/60") as city:
        await city.online("d1")
        trip = await city.trip()
        kill(valkey)
        answers = [await city.act(driver("d1"), "accept", trip, "k") for _ in range(3)]
        answers.append(await city.act(driver("d1"), "accept", trip, "k", version=9))
        assert [answer.status for answer in answers] == [200] * 3 + [200]
        assert [answer.limit.remaining for answer in answers if answer.limit] == [2] * 4
        statuses = [(await city.act(driver("d1"), "accept", trip)).status for _ in range(3)]
        assert statuses == [409, 409, 429]


async def test_a_replay_needs_no_allowance(valkey: Valkey, database_url: str) -> None:
    async with open_server(valkey, database_url, limit_trip_accept="2/60") as city:
        await city.online("d1")
        trip, other = await city.trip(), await city.trip()
        accepted = await city.act(driver("d1"), "accept", trip, "k")
        assert (await city.act(driver("d1"), "accept", trip)).status == 409
        kill(valkey)
        await city.trip()  # from here on Postgres decides
        answers = [await city.act(driver("d1"), "accept", trip, "k") for _ in range(3)]
        assert [(answer.replayed, answer.body) for answer in answers] == [(True, accepted.body)] * 3
        assert code_of(await city.act(driver("d1"), "accept", other, "k")) == "idempotency_key_reused"
        for text in ("new", None):
            assert (await city.act(driver("d1"), "accept", trip, text)).status == 429


async def test_claims_of_one_moment_ask_postgres_once(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"d{i}" for i in range(30)]
    await city.online(*names)
    trips = [await city.trip(customer=f"r{i}") for i in range(2)]
    kill(valkey)
    await city.trip()  # from here on Postgres decides
    asked = count_questions(city, monkeypatch)
    answers = await asyncio.gather(
        *(city.act(driver(name), "accept", trips[i % 2], "k") for i, name in enumerate(names))
    )
    assert sorted(answer.status for answer in answers) == [200] * 2 + [409] * 28
    assert asked == ["rows_to_claim"]


class Socket:
    """A socket that remembers its frames."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def send(self, frame: bytes, *, replaces: str | None = None) -> None:
        import orjson

        self.frames.append(orjson.loads(frame))

    def resync(self) -> None:
        pass

    def heard(self, kind: str) -> list[Any]:
        return [frame for frame in self.frames if frame["type"] == kind]


async def test_sockets_of_both_servers_hear_and_drivers_are_offered_trips(
    city: City, valkey: Valkey, database_url: str
) -> None:
    await city.online("d1", "d2", location=PLACE)
    await city.parts.positions.save()
    customer, offered = Socket(), Socket()
    async with open_server(valkey, database_url) as other:
        city.parts.hub.add("driver:d1", offered)
        other.parts.hub.add("customer:rider", customer)
        kill(valkey)
        trip = await city.trip()
        jobs = [degraded_zones_job(each.parts) for each in (city, other)]
        for job in jobs:
            await job.run()
        (offer,) = offered.heard("offer")
        assert (offer["trip"]["id"], offer["wave"]) == (trip, 1)
        (snapshot,) = (await city.parts.snapshots.of(driver("d1")))["offers"]
        assert snapshot["trip"]["id"] == trip
        for job in jobs:
            await job.run()
        assert len(offered.heard("offer")) == 1, "once, while it is open"
        assert (await city.act(driver("d1"), "accept", trip)).status == 200
        for job in jobs * 2:
            await job.run()
        assert [frame["event"] for frame in customer.heard("trip")] == ["created", "accepted"]
    row = await city.postgres.fetchrow("SELECT driver_id, outcome FROM trip_offers")
    assert row is not None
    assert row["driver_id"] == "d1"


async def test_an_operator_offers_a_trip_to_a_driver_of_their_choice(city: City, valkey: Valkey) -> None:
    """Also to one who is far away; what refuses them is what refuses them with Redis."""
    far = (PLACE[0] + 0.2, PLACE[1])
    await city.online("far", location=far)
    await city.online("declines", "off", "van", location=PLACE)
    await city.online("nowhere")
    await city.available("off", is_online=False)
    await city.available("van", vehicle_type="van")
    await city.parts.positions.save()
    shown = Socket()
    city.parts.hub.add("driver:far", shown)
    operator = Caller(Actor("op-1", Role.ADMIN))

    async def offer(trip_id: str, name: str) -> Answer:
        return await city.parts.operator_offers.offer(operator, trip_id, name)

    kill(valkey)
    trip = await city.trip()
    answer = await offer(trip, "far")
    assert answer.status == 200, answer
    body = orjson.loads(answer.body)
    assert body["offer"]["expires_in_ms"] > 0
    (frame,) = shown.heard("offer")
    assert frame["trip"]["id"] == trip
    again = orjson.loads((await offer(trip, "far")).body)
    assert again["offer"]["deadline"] == body["offer"]["deadline"], "it is the same offer"
    assert len(shown.heard("offer")) == 1
    (row,) = await city.postgres.fetch("SELECT driver_id, offered_by, outcome FROM trip_offers")
    assert tuple(row) == ("far", "op-1", "open")

    assert (await city.act(driver("declines"), "decline", trip)).status == 200
    await city.parts.effects.offer_log.save(city.parts.ledger.database)
    codes = {name: code_of(await offer(trip, name)) for name in ("declines", "off", "van", "nowhere")}
    assert codes == {
        "declines": "driver_not_eligible", "off": "driver_not_online", "van": "driver_not_eligible",
        "nowhere": "driver_not_eligible",
    }  # fmt: skip
    assert (await city.act(driver("far"), "accept", trip)).status == 200
    assert code_of(await offer(trip, "far")) == "trip_already_assigned"


async def test_a_server_that_has_not_heard_refuses_nothing_by_what_redis_remembers(
    city: City, valkey: Valkey, database_url: str
) -> None:
    """An app goes from a server that does without Redis to one that still reaches it."""
    await city.online("d1")
    trip, next_trip = await city.trip(), await city.trip(customer="r2")
    for action in ("accept", "arrive"):
        assert (await city.act(driver("d1"), action, trip)).status == 200
    async with open_server(valkey, database_url) as other:
        await other.parts.authorities._take_from_redis(["default"])
        assert (await other.act(driver("d1"), "start", trip)).status == 200
        assert not city.parts.authorities.of("default").is_degraded
        assert (await city.act(driver("d1"), "complete", trip)).status == 200

        city.parts.authorities._known.clear()  # once more, for what an accept is refused for
        assert (await city.act(driver("d1"), "accept", next_trip)).status == 200


async def test_no_refusal_by_redis_is_told_while_postgres_is_silent(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may decide without Redis; once Postgres answers again, it stands, and is kept for its key."""
    trip = await city.trip()

    async def silent(*_: Any) -> Any:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr("dispatcher.service.authorities._LOOK_S", 0.05)
        patch.setattr(city.parts.authorities._looks, "find", silent)
        with pytest.raises(StoreUnavailable):
            await city.act(driver("d1"), "arrive", trip, "k1")
        # A crowd's losers do without Postgres, and so do replays of successes.
        assert code_of(await city.act(rider("rider"), "cancel", trip)) == "trip_cancelled"
        assert code_of(await city.act(driver("d1"), "accept", trip)) == "trip_not_pending"
    assert code_of(await city.act(driver("d1"), "arrive", trip, "k1")) == "trip_not_found"


async def test_a_key_has_one_answer_though_a_server_has_not_heard(
    city: City, valkey: Valkey, database_url: str
) -> None:
    """What Redis refused, and Postgres allowed, is not replayed as refused."""
    await city.online("d1")
    trip = await city.trip()
    for action in ("accept", "arrive"):
        assert (await city.act(driver("d1"), action, trip)).status == 200
    assert code_of(await city.act(driver("d1"), "complete", trip, "k0")) == "invalid_trip_status"
    async with (
        open_server(valkey, database_url) as other,
        open_server(valkey, database_url) as third,
    ):
        await other.parts.authorities._take_from_redis(["default"])
        assert (await other.act(driver("d1"), "start", trip)).status == 200
        answers = [
            await each.act(driver("d1"), "complete", trip, "k0") for each in (city, third, other, city)
        ]
        assert [answer.status for answer in answers] == [200] * 4
        assert len({answer.body for answer in answers}) == 1
        record = city.keys().idem("d1", "/api/driver/ride/trip-action", "k0")
        assert not str(await city.redis("GET", record) or "").startswith("N ")


async def test_a_refusal_of_two_fences_ago_is_not_told(
    city: City, valkey: Valkey, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stood still between the claim's reply and the look; Redis decides again by then."""
    await city.online("d1")
    trip = await city.trip()
    for action in ("accept", "arrive"):
        assert (await city.act(driver("d1"), action, trip)).status == 200
    async with open_server(valkey, database_url) as other:
        still_has_redis = city.parts.authorities.still_has_redis

        async def stand_still(*asked: Any) -> bool:
            monkeypatch.setattr(city.parts.authorities, "still_has_redis", still_has_redis)
            await other.parts.authorities._take_from_redis(["default"])
            assert (await other.act(driver("d1"), "start", trip)).status == 200
            await other.postgres.execute("UPDATE zone_authorities SET held_until = now()")
            assert await other.parts.authorities._give_back("default")
            return await still_has_redis(*asked)

        monkeypatch.setattr(city.parts.authorities, "still_has_redis", stand_still)
        assert (await city.act(driver("d1"), "complete", trip)).status == 200


async def test_what_a_server_has_committed_itself_is_not_read_again(
    city: City, valkey: Valkey, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server(valkey, database_url) as other:
        kill(valkey)
        await city.trip()
        await other.parts.authorities.refresh()
        asked: dict[City, list[str]] = {}
        for each in (city, other):
            job = degraded_zones_job(each.parts)
            names = asked[each] = count_questions(each, monkeypatch)
            await job.run()
            assert "events_of_others" in names
        assert "trips_by_id" not in asked[city]
        assert "trips_by_id" in asked[other]


@contextlib.contextmanager
def clock_off(s: int) -> Iterator[None]:
    """The servers' clock is off by so many seconds; those of the engines are right."""
    right = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: right() + s * 1_000_000_000)
        yield


@pytest.mark.parametrize("off_s", [-3600, 3600])
async def test_events_of_a_server_whose_clock_is_wrong_are_told_once(
    city: City, valkey: Valkey, database_url: str, off_s: int
) -> None:
    await city.online("d1", location=PLACE)
    customer, offered = Socket(), Socket()
    async with open_server(valkey, database_url) as other:
        other.parts.hub.add("customer:rider", customer)
        city.parts.hub.add("driver:d1", offered)
        job = degraded_zones_job(other.parts)
        kill(valkey)
        with clock_off(off_s):
            trip = await city.trip()
            report = await city.parts.positions.report(Caller(driver("d1")), [(*PLACE, None)])
            assert report.status == 202
            await city.parts.positions.save()
            await degraded_zones_job(city.parts).run()
            assert (await city.act(driver("d1"), "accept", trip)).status == 200
        assert len(offered.heard("offer")) == 1
        assert await city.postgres.fetchval(
            "SELECT deadline > now() AND offered_at <= now() FROM trip_offers"
        )
        await job.run()
        with clock_off(60):  # a later look, by the clock of the server that looks
            for _ in range(3):
                await job.run()
        assert [frame["event"] for frame in customer.heard("trip")] == ["created", "accepted"]
        await restart(valkey)
        await give_back(city, other)
    assert [event for event, told, _ in await city.events() if told == trip] == ["created", "accepted"]
    assert await drifts(city) == []


async def test_what_others_commit_is_asked_for_all_zones_together(
    valkey: Valkey, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"zones": Zones([Zone("north"), Zone("south")])}
    customer = Socket()
    async with (
        open_server(valkey, database_url, **options) as city,
        open_server(valkey, database_url, **options) as other,
    ):
        city.parts.hub.add("customer:rider", customer)
        kill(valkey)
        for zone in ("north", "south"):
            await other.trip(zone=zone)
        asked = count_questions(city, monkeypatch)
        await degraded_zones_job(city.parts).run()
        assert asked.count("events_of_others") == 1
    told = [frame["trip"]["zone"] for frame in customer.heard("trip")]
    assert sorted(told) == ["north", "south"]


async def test_only_zones_are_looked_at_where_a_trip_waits_and_a_driver_is_connected(
    valkey: Valkey, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zones = Zones([Zone("north"), Zone("south"), Zone("east")])
    async with open_server(valkey, database_url, zones=zones) as city:
        for name, zone in (("d1", "north"), ("d2", "south")):
            await city.online(name, zone=zone, location=PLACE)
            city.parts.hub.add(f"driver:{name}", Socket())
        await city.parts.positions.save()
        kill(valkey)
        for zone in ("north", "east"):
            await city.trip(zone=zone)
        asked = count_questions(city, monkeypatch)
        await degraded_zones_job(city.parts).run()
        assert asked.count("offers_to_make") == 1
        assert await city.postgres.fetchval("SELECT array_agg(driver_id) FROM trip_offers") == ["d1"]


async def test_an_event_that_lies_ahead_is_told_once(city: City, valkey: Valkey) -> None:
    """Redis' clock, which was ahead, has given it its time."""
    trip = await city.trip()
    kill(valkey)
    await city.trip(customer="other")  # from here on Postgres decides
    await city.postgres.execute(
        "UPDATE trip_events SET created_at = now() + interval '1 hour' WHERE trip_id = $1", trip
    )
    told: list[Any] = []
    tail = EventTail(
        outbox=city.parts.outbox, database=city.parts.ledger.database,
        deliver=lambda _, frame: told.append(frame), node="another",
    )  # fmt: skip
    for later_s in range(0, 120, 20):
        with clock_off(later_s):
            await tail.tell(["default"])
    assert sum(frame["trip"]["id"] == trip for frame in told) == 1


async def test_what_was_told_is_not_told_again_where_fewer_zones_are_looked_at(
    valkey: Valkey, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More was committed than a look reads; then some of the zones are given back."""
    monkeypatch.setattr("dispatcher.service.event_tail._MAX_EVENTS", 2)
    zones = ["north", "south"]
    options = {"zones": Zones([Zone(name) for name in zones])}
    async with open_server(valkey, database_url, **options) as city:
        kill(valkey)
        told: list[Any] = []
        tail = EventTail(
            outbox=city.parts.outbox, database=city.parts.ledger.database,
            deliver=lambda _, frame: told.append(frame), node="another",
        )  # fmt: skip
        await city.trip(zone="north")
        assert await tail.tell(zones) == 1
        for customer in ("c1", "c2"):
            await city.trip(zone="south", customer=customer)
        assert await tail.tell(zones) == 2
        assert await tail.tell(["north"]) == 0
    assert len(told) == 3


async def test_positions_are_taken_and_saved(city: City, valkey: Valkey) -> None:
    await city.online("d1")
    kill(valkey)
    answer = await city.parts.positions.report(Caller(driver("d1")), [(*PLACE, None)])
    assert answer.status == 202
    stranger = await city.parts.positions.report(Caller(driver("nobody")), [(*PLACE, None)])
    assert code_of(stranger) == "driver_not_online"
    assert await city.parts.positions.save() == 1
    trip = await city.trip()
    near = await city.parts.reads.pending_near(driver("d1"), 10)
    assert [each["id"] for each in near] == [trip]


async def test_positions_outlive_a_deadlock(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    await city.online("d1")
    await city.parts.positions.report(Caller(driver("d1")), [(*PLACE, None)])

    async def deadlocked(*_: Any, **__: Any) -> str:
        raise asyncpg.DeadlockDetectedError("deadlock detected")

    with monkeypatch.context() as patch:
        patch.setattr(QUERIES, "save_positions", deadlocked)
        with pytest.raises(StoreUnavailable, match="deadlock"):
            await city.parts.positions.save()
    assert await city.parts.positions.save() == 1


async def test_an_emptied_redis_opens_no_second_window(city: City) -> None:
    async with open_city(
        str(city.parts.settings.redis_url),
        str(city.parts.settings.database_url),
        limit_trip_accept="10/60",
    ) as server:
        trip = await server.trip()
        codes = []
        for i in range(30):
            if i % 5 == 4:
                await server.redis("FLUSHDB")
            codes.append((await server.act(driver("d1"), "accept", trip)).status)
        assert codes.count(429) == 20


async def test_every_server_tells_an_emptied_redis_what_it_has_admitted(city: City) -> None:
    urls = str(city.parts.settings.redis_url), str(city.parts.settings.database_url)
    async with (
        open_city(*urls, limit_trip_accept="10/60") as first,
        open_city(*urls, limit_trip_accept="10/60") as second,
    ):
        trip = await first.trip()
        for server in (first, second) * 4:
            began_ms = now_ms()
            while now_ms() == began_ms:  # two admissions of one ms cannot be told apart
                await asyncio.sleep(0)
            assert (await server.act(driver("d1"), "accept", trip)).status == 409
        log = keys_of("default").limit("trip_accept", "d1")
        await city.redis("FLUSHDB")
        # The other one neither loads the zone nor waits for that.
        assert (await first.act(driver("d1"), "accept", trip)).status == 409

        async def all_are_counted() -> bool:
            return await city.redis("LLEN", log) == 9

        await until(all_are_counted)
        statuses = [(await second.act(driver("d1"), "accept", trip)).status for _ in range(3)]
        assert statuses == [409, 429, 429]


async def test_what_was_admitted_without_redis_counts_when_it_is_back(
    valkey: Valkey, database_url: str
) -> None:
    async with open_server(valkey, database_url, limit_trip_accept="10/60") as city:
        trip = await city.trip()
        statuses = [(await city.act(driver("d1"), "accept", trip)).status for _ in range(4)]
        kill(valkey)
        statuses += [(await city.act(driver("d1"), "accept", trip)).status for _ in range(4)]
        await restart(valkey)
        await give_back(city)
        statuses += [(await city.act(driver("d1"), "accept", trip)).status for _ in range(4)]
        assert statuses == [409] * 10 + [429] * 2
