"""commit_changes(): a batch in one statement, each change whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.ledger.commits import Change, Ledger, Outcome, _composite, send

AT_MS = 1_795_000_000_000
DAY_MS = 86_400_000
FAR_MS = 4_000_000_000_000


@dataclass
class Book:
    """The ledger's side of a database: changes go in, rows come out."""

    url: str
    connection: asyncpg.Connection

    async def commit(
        self, *changes: Change, by: asyncpg.Connection | None = None
    ) -> list[tuple[Any, ...]]:
        """What became of each change, in the order of the changes: (outcome, status, body)."""
        rows = [_composite(i, change) for i, change in enumerate(changes)]
        found = await send(by or self.connection, rows)
        ordered = sorted(found, key=lambda row: row["idx"])
        assert [row["idx"] for row in ordered] == list(range(len(changes))), "one row a change"
        return [(r["outcome"], r["stored_status"], r["stored_response"]) for r in ordered]

    async def outcomes(self, *changes: Change) -> list[str]:
        return [outcome for outcome, *_ in await self.commit(*changes)]

    async def one(self, sql: str, *args: Any) -> tuple[Any, ...] | None:
        row = await self.connection.fetchrow(sql, *args)
        return tuple(row) if row else None

    async def count(self, table: str) -> int:
        return int(await self.connection.fetchval(f"SELECT count(*) FROM {table}"))

    async def history(self, trip_id: str) -> list[tuple[int, str]]:
        rows = await self.connection.fetch(
            "SELECT version, event FROM trip_events WHERE trip_id = $1 ORDER BY version", trip_id
        )
        return [tuple(row) for row in rows]

    async def trip(self, trip_id: str) -> tuple[Any, ...] | None:
        return await self.one(
            "SELECT current_status, version, driver_id FROM trip_requests WHERE id = $1", trip_id
        )


@pytest.fixture
async def book(database_url: str) -> AsyncIterator[Book]:
    connection = await asyncpg.connect(database_url)
    yield Book(database_url, connection)
    await connection.close()


def key_of(text: str = "k1", asked: str = "x", user: str = "d1") -> IdempotencyKey:
    return IdempotencyKey(user, "/act", text, hashlib.sha256(asked.encode()).hexdigest(), b'{"a": 1}')


def keyed(change: Change, key: IdempotencyKey, body: str = "{}", ends_ms: int = FAR_MS) -> Change:
    return change._replace(key=key, response=body, status_code=200, expires_at_ms=ends_ms)


def create(trip_id: str = "z_1", **more: Any) -> Change:
    usual: dict[str, Any] = {
        "trip_id": trip_id, "is_creation": True, "to_status": "pending", "zone": "z",
        "customer_id": "c1", "vehicle_type": "car", "pickup": (8.6, 50.1), "event": "created",
        "actor_id": "c1", "actor_role": "customer", "payload": "{}", "at_ms": AT_MS,
    }  # fmt: skip
    return Change(**(usual | more))


def step(trip_id: str, version: int, event: str, **more: Any) -> Change:
    to_status, sources, driver = {
        "accepted": ("accepted", ("pending",), "d1"),
        "arrived": ("arrived", ("accepted",), "d1"),
        "started": ("ongoing", ("arrived",), "d1"),
        "completed": ("completed", ("ongoing",), "d1"),
        "released": ("pending", ("accepted", "arrived"), None),
        "cancelled": ("cancelled", ("pending", "accepted", "arrived"), None),
        "expired": ("expired", ("pending",), None),
    }[event]
    usual: dict[str, Any] = {
        "trip_id": trip_id, "expect_version": version, "sources": sources, "to_status": to_status,
        "driver_id": driver, "zone": "z", "event": event, "actor_id": "d1", "actor_role": "driver",
        "payload": "{}", "at_ms": AT_MS + version + 1,
    }  # fmt: skip
    return Change(**(usual | more))


def accept(trip_id: str = "z_1", driver: str = "d1", version: int = 0, **more: Any) -> Change:
    usual = {"driver_id": driver, "required_driver": driver, "actor_id": driver}
    return step(trip_id, version, "accepted", **(usual | more))


def driver(name: str = "d1", version: int = -1, **more: Any) -> Change:
    usual: dict[str, Any] = {
        "zone": "z", "at_ms": AT_MS, "set_driver": name, "set_zone": "z", "set_online": True,
        "set_available": "available", "set_vehicle": "car", "expect_driver_version": version,
    }  # fmt: skip
    return Change(**(usual | more))


def decline(trip_id: str = "z_1", name: str = "d1") -> Change:
    return Change(
        trip_id=trip_id, sources=("pending",), zone="z", declines=name, at_ms=AT_MS,
        actor_id=name, actor_role="driver",
    )  # fmt: skip


async def start_with(book: Book, *changes: Change) -> None:
    for change in changes:
        assert await book.outcomes(change) == ["ok"], change


# --- one change


async def test_a_trip_s_whole_life_is_its_history(book: Book) -> None:
    await start_with(book, create(), driver(), accept())
    for version, event in enumerate(("arrived", "started", "completed"), start=1):
        await start_with(book, step("z_1", version, event))
    assert await book.trip("z_1") == ("completed", 4, "d1")
    assert await book.history("z_1") == list(
        enumerate(("created", "accepted", "arrived", "started", "completed"))
    )
    stamps = await book.one(
        "SELECT created_at, accepted_at, locked_at, arrived_at, trip_start_time, completed_at,"
        " updated_at FROM trip_requests"
    )
    assert stamps is not None
    assert [round(s.timestamp() * 1000) - AT_MS for s in stamps] == [0, 1, 1, 2, 3, 4, 4]


async def test_a_released_trip_is_as_if_nobody_had_had_it(book: Book) -> None:
    await start_with(book, create(), driver(), accept(), step("z_1", 1, "arrived"))
    await start_with(book, step("z_1", 2, "released"))
    assert await book.one(
        "SELECT current_status, version, driver_id, locked_at, accepted_at, arrived_at"
        " FROM trip_requests"
    ) == ("pending", 3, None, None, None, None)
    await start_with(book, accept(version=3))


async def test_a_cancellation_keeps_its_reason(book: Book) -> None:
    await start_with(book, create(), step("z_1", 0, "cancelled", reason="rain", driver_id=None))
    assert await book.one(
        "SELECT current_status, cancel_reason, cancelled_at IS NOT NULL FROM trip_requests"
    ) == ("cancelled", "rain", True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (accept(version=1), "another version"),
        (step("z_1", 0, "arrived"), "another state"),
        (accept("z_9"), "no such trip"),
        (accept(driver="d9"), "no such driver"),
        (accept(driver="off"), "offline"),
        (accept(driver="pause"), "unavailable"),
        (accept(driver="away"), "of another zone"),
        (accept(driver="busy"), "has a trip"),
        (create(), "exists already"),
        (driver(version=1), "another version of the driver"),
        (driver(version=-1), "a driver who is known"),
        (driver("new", version=0), "a driver who is not known"),
        (driver("busy", version=0, set_online=False), "would strand their trip"),
        (driver("busy", version=0, set_zone="elsewhere"), "would take their trip along"),
        (step("z_1", 0, "released", set_driver="d1", set_online=False), "not the trip's state"),
        (decline("z_2"), "not pending"),
        (decline("z_9"), "no such trip"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
async def test_a_guard_that_does_not_hold(book: Book, change: Change, why: str) -> None:
    await start_with(
        book, create(), create("z_2"), driver(), driver("off", set_online=False),
        driver("pause", set_available="unavailable"), driver("away", set_zone="far"),
        driver("busy"), accept("z_2", "busy"),
    )  # fmt: skip
    tables = ("trip_requests", "trip_events", "driver_details", "trip_offers", "idempotency_keys")
    before = [await book.connection.fetch(f"SELECT * FROM {t} ORDER BY 1, 2") for t in tables]
    assert await book.commit(keyed(change, key_of())) == [("stale", None, None)], why
    after = [await book.connection.fetch(f"SELECT * FROM {t} ORDER BY 1, 2") for t in tables]
    assert after == before


async def test_an_ongoing_trip_stays_with_a_driver_who_goes_offline(book: Book) -> None:
    await start_with(book, create(), driver(), accept())
    await start_with(book, step("z_1", 1, "arrived"), step("z_1", 2, "started"))
    await start_with(book, driver(version=0, set_online=False))
    assert await book.trip("z_1") == ("ongoing", 3, "d1")


async def test_going_offline_releases_in_the_same_commit(book: Book) -> None:
    await start_with(book, create(), driver(), accept())
    release = step(
        "z_1", 1, "released", set_driver="d1", set_zone="z", set_online=False,
        set_available="available", set_vehicle="car", expect_driver_version=0,
    )  # fmt: skip
    assert await book.outcomes(keyed(release, key_of())) == ["ok"]
    assert await book.trip("z_1") == ("pending", 2, None)
    assert await book.one("SELECT is_online, version FROM driver_details") == (False, 1)
    assert await book.history("z_1") == [(0, "created"), (1, "accepted"), (2, "released")]
    assert await book.count("idempotency_keys") == 1


async def test_a_decline_is_kept_with_its_offer(book: Book) -> None:
    await start_with(book, create(), driver())
    await book.connection.execute(
        "INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at)"
        " VALUES ('z_1', 'd1', 1, now()), ('z_1', 'd1', 2, now()), ('z_1', 'd2', 1, now())"
    )
    await start_with(book, decline(), decline(), decline(name="d3"))
    rows = await book.connection.fetch("SELECT driver_id, wave, outcome FROM trip_offers ORDER BY 1, 2")
    assert [tuple(r) for r in rows] == [
        ("d1", 1, "open"), ("d1", 2, "declined"), ("d2", 1, "open"), ("d3", 0, "declined"),
    ]  # fmt: skip
    assert await book.trip("z_1") == ("pending", 0, None), "a decline is no change of the trip"
    assert await book.history("z_1") == [(0, "created")]


# --- keys


async def test_a_key_has_one_effect_and_its_answer_byte_for_byte(book: Book) -> None:
    await start_with(book, create(), driver())
    body = '{"b": 1,  "a":"ü\\u00fc\\n"}'
    change = keyed(accept(), key_of(), body)
    assert await book.commit(change) == [("ok", None, None)]
    # The trip has moved on, so the guards would refuse: the answer is given all the same.
    for _ in range(2):
        assert await book.commit(change) == [("replay", 200, body)]
    assert await book.trip("z_1") == ("accepted", 1, "d1")
    assert await book.history("z_1") == [(0, "created"), (1, "accepted")]
    assert await book.one(
        "SELECT user_id, endpoint, idempotency_key, zone, request_payload, request_fingerprint,"
        " response_payload, status_code FROM idempotency_keys"
    ) == ("d1", "/act", "k1", "z", '{"a": 1}', key_of().fingerprint, body, 200)


async def test_a_used_key_stops_a_change_whose_guards_hold(book: Book) -> None:
    await start_with(book, create(), create("z_2"), driver(), keyed(accept(), key_of()))
    await start_with(book, step("z_1", 1, "released"))
    again = keyed(accept("z_2"), key_of(asked="y"), "other")
    rows = await send(book.connection, [_composite(0, again)])
    assert tuple(rows[0])[1:] == ("replay", 200, "{}", key_of().fingerprint)
    assert await book.trip("z_2") == ("pending", 0, None)


async def test_keys_are_of_their_user_and_endpoint(book: Book) -> None:
    one, other = key_of(), key_of(user="d2")
    elsewhere = IdempotencyKey("d1", "/create", "k1", one.fingerprint, b"{}")
    changes = [keyed(create(f"z_{i}"), key) for i, key in enumerate((one, other, elsewhere))]
    assert await book.outcomes(*changes) == ["ok"] * 3
    assert await book.count("idempotency_keys") == 3


async def test_an_expired_key_is_a_new_one(book: Book) -> None:
    await start_with(book, keyed(create(), key_of(), "old", AT_MS - DAY_MS))
    fresh = keyed(create("z_2"), key_of(asked="y"), "new")
    assert await book.commit(fresh) == [("ok", None, None)]
    assert await book.one("SELECT response_payload, request_fingerprint FROM idempotency_keys") == (
        "new",
        key_of(asked="y").fingerprint,
    )
    assert await book.commit(fresh) == [("replay", 200, "new")]


async def test_an_expired_key_is_no_answer(book: Book) -> None:
    await start_with(book, keyed(create(), key_of(), "old", AT_MS - DAY_MS))
    assert await book.commit(keyed(create(), key_of())) == [("stale", None, None)]


# --- batches


async def test_a_batch_of_every_kind(book: Book) -> None:
    await start_with(
        book, *(create(f"z_{i}") for i in range(6)), *(driver(f"d{i}") for i in range(6)),
        accept("z_3", "d3"), step("z_3", 1, "arrived", driver_id="d3"), accept("z_4", "d4"),
        keyed(create("z_6"), key_of("old"), "stored"),
    )  # fmt: skip
    outcomes = await book.commit(
        accept("z_0", "d0"),
        keyed(accept("z_1", "d1"), key_of("new"), "fresh"),
        accept("z_2", "d2", version=5),
        step("z_3", 2, "started", driver_id="d3"),
        step("z_4", 1, "cancelled", driver_id="d4", actor_id="c1", actor_role="customer"),
        keyed(create("z_7"), key_of("old")),
        create("z_8"),
        decline("z_5", "d5"),
        driver("d6"),
    )
    assert outcomes == [
        ("ok", None, None), ("ok", None, None), ("stale", None, None), ("ok", None, None),
        ("ok", None, None), ("replay", 200, "stored"), ("ok", None, None), ("ok", None, None),
        ("ok", None, None),
    ]  # fmt: skip
    assert await book.trip("z_3") == ("ongoing", 3, "d3")
    assert await book.trip("z_4") == ("cancelled", 2, "d4")
    assert await book.trip("z_7") is None
    assert await book.one("SELECT count(*) FROM trip_offers") == (1,)
    gaps = await book.connection.fetch(
        "SELECT id FROM trip_requests t WHERE version + 1 <>"
        " (SELECT count(*) FROM trip_events e WHERE e.trip_id = t.id)"
    )
    assert gaps == []


async def test_an_empty_batch(book: Book) -> None:
    assert await book.commit() == []


@pytest.mark.parametrize(
    "poison",
    [
        create("z_5", pickup=(8.6, 95.0)),
        create("z_5", pickup=(float("nan"), 50.0)),
        create("no trip id"),
        create("z_5", customer_id=None),
        create("z_5", actor_role="nobody"),
        accept("z_1")._replace(event="vanished"),
        accept("z_1")._replace(to_status="lost"),
        accept("z_1", driver_id=None),
        keyed(create("z_5"), key_of(""), "{}"),
        keyed(create("z_5"), key_of(), "{}")._replace(status_code=409),
        driver("d5", set_available="maybe"),
        driver("d5", set_zone="No Zone"),
    ],
    ids=range(12),
)
async def test_a_poisoned_row_fails_alone(book: Book, poison: Change) -> None:
    await start_with(book, create(), create("z_2"), driver(), driver("d2"))
    outcomes = await book.outcomes(accept("z_2", "d2"), poison, keyed(create("z_3"), key_of("good")))
    assert outcomes[0] == outcomes[2] == "ok"
    assert outcomes[1].startswith("error 23"), outcomes
    assert await book.trip("z_2") == ("accepted", 1, "d2")
    assert await book.trip("z_3") == ("pending", 0, None)
    # Whole or not at all: nothing of the poisoned one is there.
    assert await book.trip("z_5") is None
    assert await book.trip("z_1") == ("pending", 0, None)
    assert await book.history("z_1") == [(0, "created")]
    assert await book.count("idempotency_keys") == 1
    assert await book.one("SELECT user_id FROM driver_details WHERE user_id = 'd5'") is None


async def test_two_trips_for_one_driver_in_one_batch(book: Book) -> None:
    """The guards look before either is written; the unique index decides."""
    await start_with(book, create(), create("z_2"), driver())
    batch = (keyed(accept("z_1"), key_of("a")), keyed(accept("z_2"), key_of("b")))
    assert await book.outcomes(*batch) == ["ok", "stale"]
    assert await book.trip("z_2") == ("pending", 0, None)
    assert await book.count("idempotency_keys") == 1


async def test_one_key_twice_in_one_batch(book: Book) -> None:
    first, second = keyed(create("z_1"), key_of(), "1"), keyed(create("z_2"), key_of(), "2")
    assert await book.commit(first, second) == [("ok", None, None), ("replay", 200, "1")]
    assert await book.count("trip_requests") == 1


async def test_one_trip_twice_in_one_batch(book: Book) -> None:
    await start_with(book, create(), driver(), driver("d2"))
    assert await book.outcomes(accept(), accept(driver="d2")) == ["ok", "stale"]
    assert await book.outcomes(create("z_2"), create("z_2")) == ["ok", "stale"]
    assert await book.history("z_1") == [(0, "created"), (1, "accepted")]


async def test_one_driver_twice_in_one_batch(book: Book) -> None:
    await start_with(book, driver())
    twice = (driver(version=0, set_available="unavailable"), driver(version=0, set_online=False))
    assert await book.outcomes(*twice) == ["ok", "stale"]
    assert await book.one("SELECT availability_status, is_online, version FROM driver_details") == (
        "unavailable",
        True,
        1,
    )


# --- several connections


async def _many(url: str, count: int) -> list[asyncpg.Connection]:
    return list(await asyncio.gather(*(asyncpg.connect(url) for _ in range(count))))


async def _waits_for_a_lock(book: Book, connection: asyncpg.Connection) -> None:
    """Until this one's statement is held up by another connection's transaction."""
    held_up = "SELECT cardinality(pg_blocking_pids($1)) > 0"
    async with asyncio.timeout(15):
        while not await book.connection.fetchval(held_up, connection.get_server_pid()):
            await asyncio.sleep(0.005)


async def test_one_key_from_many_connections_has_one_effect(book: Book) -> None:
    await start_with(book, create(), driver())
    servers = await _many(book.url, 12)
    change = keyed(accept(), key_of(), "the answer")
    found = await asyncio.gather(*(book.commit(change, by=s) for s in servers))
    counted = Counter(row for (row,) in found)
    assert counted == {("ok", None, None): 1, ("replay", 200, "the answer"): 11}
    fresh = keyed(create("z_2"), key_of("k2"), "made")
    found = await asyncio.gather(*(book.commit(fresh, by=s) for s in servers))
    assert Counter(row for (row,) in found) == {("ok", None, None): 1, ("replay", 200, "made"): 11}
    await asyncio.gather(*(s.close() for s in servers))
    assert await book.count("idempotency_keys") == 2
    assert await book.count("trip_events") == 3


async def test_a_second_connection_waits_for_the_first_one_s_end(book: Book) -> None:
    """What the first one does counts from its commit on, and not at all if there is none."""
    await start_with(book, create(), create("z_2"), driver())
    first, second = await _many(book.url, 2)
    for ends_well, outcome in ((False, "ok"), (True, "replay")):
        transaction = first.transaction()
        await transaction.start()
        name = "z_1" if ends_well else "z_2"
        change = keyed(step(name, 0, "expired"), key_of(name), name)
        assert (await book.commit(change, by=first))[0][0] == "ok"
        waiting = asyncio.create_task(book.commit(change, by=second))
        await _waits_for_a_lock(book, second)
        assert not waiting.done()
        await (transaction.commit() if ends_well else transaction.rollback())
        assert (await waiting)[0][0] == outcome
        assert await book.trip(name) == ("expired", 1, None)
    await asyncio.gather(first.close(), second.close())


async def test_many_drivers_on_many_connections_want_one_trip(book: Book) -> None:
    names = [f"d{i}" for i in range(12)]
    await start_with(book, create(), *(driver(name) for name in names))
    servers = await _many(book.url, len(names))
    calls = (
        book.commit(accept(driver=n), by=s) for n, s in zip(names, servers, strict=True)
    )  # fmt: skip
    found = await asyncio.gather(*calls)
    assert Counter(row[0][0] for row in found) == {"ok": 1, "stale": 11}
    await asyncio.gather(*(s.close() for s in servers))
    assert await book.history("z_1") == [(0, "created"), (1, "accepted")]


async def test_one_driver_on_many_connections_wants_many_trips(book: Book) -> None:
    await start_with(book, driver(), *(create(f"z_{i}") for i in range(12)))
    servers = await _many(book.url, 12)
    calls = (book.commit(accept(f"z_{i}"), by=s) for i, s in enumerate(servers))
    found = await asyncio.gather(*calls)
    assert Counter(row[0][0] for row in found) == {"ok": 1, "stale": 11}
    await asyncio.gather(*(s.close() for s in servers))


async def test_an_accept_and_going_offline_at_once(book: Book) -> None:
    """Whoever comes second is refused: no driver is offline with a trip that has not started."""
    servers = await _many(book.url, 2)
    seen = Counter()
    for i in range(40):
        name, trip_id = f"d{i}", f"z_{i}"
        await start_with(book, create(trip_id), driver(name))
        calls = [
            book.commit(accept(trip_id, name), by=servers[0]),
            book.commit(driver(name, version=0, set_online=False), by=servers[1]),
        ]
        results = await asyncio.gather(*(calls if i % 2 else calls[::-1]))
        seen[tuple(r[0][0] for r in results)] += 1
        assert Counter(r[0][0] for r in results) == {"ok": 1, "stale": 1}
    stranded = await book.connection.fetch(
        "SELECT FROM trip_requests JOIN driver_details ON user_id = driver_id WHERE NOT is_online"
    )
    assert stranded == []
    await asyncio.gather(*(s.close() for s in servers))


async def test_a_new_driver_s_first_states_on_two_connections(book: Book) -> None:
    """Both take the driver for unknown; the second one must see that they are not."""
    first, second = await _many(book.url, 2)
    transaction = first.transaction()
    await transaction.start()
    assert (await book.commit(driver("new"), by=first))[0][0] == "ok"
    waiting = asyncio.create_task(book.commit(driver("new", set_online=False), by=second))
    await _waits_for_a_lock(book, second)
    await transaction.commit()
    assert (await waiting)[0][0] == "stale"
    assert await book.one("SELECT is_online, version FROM driver_details") == (True, 0)
    await asyncio.gather(first.close(), second.close())


async def test_batches_that_cross_do_not_deadlock(book: Book) -> None:
    """Rows are locked in one order, whatever the order of a batch."""
    size, rounds = 30, 8
    await start_with(book, *(create(f"z_{i}") for i in range(size)))
    await start_with(book, *(driver(f"d{i}") for i in range(size)))
    servers = await _many(book.url, 6)

    async def server(at: int, connection: asyncpg.Connection) -> Counter[str]:
        seen: Counter[str] = Counter()
        for round_ in range(rounds):
            order = sorted(range(size), key=lambda i: hash((i, at, round_)))
            batch = [
                keyed(accept(f"z_{i}", f"d{(i + at) % size}"), key_of(f"{at}-{round_}-{i}"))
                for i in order
            ]
            seen.update(row[0] for row in await book.commit(*batch, by=connection))
        return seen

    counts = await asyncio.gather(*(server(i, s) for i, s in enumerate(servers)))
    total = sum(counts, Counter())
    assert set(total) <= {"ok", "stale"}
    assert total["ok"] == await book.count("idempotency_keys") <= size
    assert await book.one("SELECT max(version), min(version) FROM trip_events") == (1, 0)
    await asyncio.gather(*(s.close() for s in servers))


# --- the ledger in front of it


async def test_the_ledger_keeps_one_batch_s_changes_apart(book: Book) -> None:
    """What touches the same trip, driver or key waits for the next batch, in its order."""
    ledger = Ledger(book.url, timeout_s=5, most=256)
    await ledger.start()
    await start_with(book, create(), driver())
    changes = [accept(), step("z_1", 1, "arrived"), step("z_1", 2, "started")]
    results = await asyncio.gather(
        *(ledger.commit(keyed(c, key_of(str(i)))) for i, c in enumerate(changes)),
        ledger.commit(keyed(changes[0], key_of("0"))),
    )
    assert [r.code for r in results] == ["ok", "ok", "ok", "replay"]
    assert ledger.batches >= 3
    await ledger.close()
    with pytest.raises(StoreUnavailable):
        await ledger.commit(create("z_9"))


async def test_what_cannot_be_sent_fails_alone(book: Book) -> None:
    """Postgres, or the client, refuses these before any statement could set them apart."""
    ledger = Ledger(book.url, timeout_s=5, most=256)
    await ledger.start()
    poison = [
        create("z_p", customer_id="c" + chr(0)),
        create("z_p", customer_id="c" + chr(0xD800)),
        create("z_p", payload='{"reason": "\\u0000"}'),
        keyed(create("z_p"), IdempotencyKey("d1", "/act", "k", "0" * 64, b'{"a":"\\u0000"}')),
        accept("z_p", version=2**40),
    ]
    changes = [create(f"z_{i}") for i in range(5)]
    both = [change for pair in zip(changes, poison, strict=True) for change in pair]
    renamed = [c._replace(trip_id=f"{c.trip_id}{i}") for i, c in enumerate(both)]
    results = await asyncio.gather(*(ledger.commit(c) for c in renamed), return_exceptions=True)
    assert results[::2] == [Outcome("ok")] * 5
    assert [type(result) for result in results[1::2]] == [RuntimeError] * 5
    assert await ledger.commit(create("z_after")) == Outcome("ok")
    await ledger.close()
    assert await book.count("trip_requests") == 6


_HISTORY = """
    INSERT INTO trip_requests (id, zone, customer_id, driver_id, current_status, version, vehicle_type,
                               pickup_location, completed_at)
    SELECT 'z_old-' || n, 'z', 'c' || n, 'd' || n % 50, 'completed', 4, 'car', point(8.6, 50.1), now()
      FROM generate_series(1, 3000) n
"""
_READ = """
    SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
     WHERE relname IN ('trip_requests', 'driver_details')
"""


async def test_a_change_reads_as_little_as_ever_once_the_tables_have_grown(book: Book) -> None:
    # A quiet night: all that is live is gone, and autovacuum has noted how little there is.
    await book.connection.execute(_HISTORY)
    await book.connection.execute("VACUUM ANALYZE")
    before = await book.connection.fetchval(_READ)
    ledger = Ledger(book.url, timeout_s=5, most=16)
    await ledger.start()
    # The morning: plans are made with the first change, and kept.
    names = [str(n) for n in range(600)]
    made = [change for n in names for change in (driver(f"d{n}"), create(f"z_{n}"))]
    taken = [accept(f"z_{n}", f"d{n}") for n in names]
    outcomes = await asyncio.gather(*map(ledger.commit, made))
    outcomes += await asyncio.gather(*map(ledger.commit, taken))
    await ledger.close()
    assert {outcome.code for outcome in outcomes} == {"ok"}
    # A connection's counts are told when it ends, which is after the client has closed it.
    async with asyncio.timeout(10):
        while await book.connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dispatcher-ledger'"
            " AND datname = current_database()"
        ):
            await asyncio.sleep(0.01)
    read = await book.connection.fetchval(_READ) - before
    assert read / len(outcomes) < 40
