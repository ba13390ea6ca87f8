"""Commits of several servers at once: one winner, no deadlock, nobody left between two states."""

from __future__ import annotations

import asyncio
from collections import Counter

import asyncpg

from tests.ledger.harness import LedgerDatabase, accept, create, driver, key_of, keyed, start_with, step


async def _many(url: str, count: int) -> list[asyncpg.Connection]:
    return list(await asyncio.gather(*(asyncpg.connect(url) for _ in range(count))))


async def _waits_for_a_lock(ledger: LedgerDatabase, connection: asyncpg.Connection) -> None:
    """Until this one's statement is held up by another connection's transaction."""
    held_up = "SELECT cardinality(pg_blocking_pids($1)) > 0"
    async with asyncio.timeout(15):
        while not await ledger.connection.fetchval(held_up, connection.get_server_pid()):
            await asyncio.sleep(0.005)


async def test_one_key_from_many_connections_has_one_effect(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver())
    servers = await _many(ledger.url, 12)
    change = keyed(accept(), key_of(), "the answer")
    found = await asyncio.gather(*(ledger.commit(change, by=s) for s in servers))
    counted = Counter(row for (row,) in found)
    assert counted == {("ok", None, None): 1, ("replay", 200, "the answer"): 11}
    fresh = keyed(create("z_2"), key_of("k2"), "made")
    found = await asyncio.gather(*(ledger.commit(fresh, by=s) for s in servers))
    assert Counter(row for (row,) in found) == {("ok", None, None): 1, ("replay", 200, "made"): 11}
    await asyncio.gather(*(s.close() for s in servers))
    assert await ledger.count("idempotency_keys") == 2
    assert await ledger.count("trip_events") == 3


async def test_a_second_connection_waits_for_the_first_one_s_end(ledger: LedgerDatabase) -> None:
    """What the first one does counts from its commit on, and not at all if there is none."""
    await start_with(ledger, create(), create("z_2"), driver())
    first, second = await _many(ledger.url, 2)
    for ends_well, outcome in ((False, "ok"), (True, "replay")):
        transaction = first.transaction()
        await transaction.start()
        name = "z_1" if ends_well else "z_2"
        change = keyed(step(name, 0, "expired"), key_of(name), name)
        assert (await ledger.commit(change, by=first))[0][0] == "ok"
        waiting = asyncio.create_task(ledger.commit(change, by=second))
        await _waits_for_a_lock(ledger, second)
        assert not waiting.done()
        await (transaction.commit() if ends_well else transaction.rollback())
        assert (await waiting)[0][0] == outcome
        assert await ledger.trip(name) == ("expired", 1, None)
    await asyncio.gather(first.close(), second.close())


async def test_many_drivers_on_many_connections_want_one_trip(ledger: LedgerDatabase) -> None:
    names = [f"d{i}" for i in range(12)]
    await start_with(ledger, create(), *(driver(name) for name in names))
    servers = await _many(ledger.url, len(names))
    calls = (
        ledger.commit(accept(driver=n), by=s) for n, s in zip(names, servers, strict=True)
    )  # fmt: skip
    found = await asyncio.gather(*calls)
    assert Counter(row[0][0] for row in found) == {"ok": 1, "stale": 11}
    await asyncio.gather(*(s.close() for s in servers))
    assert await ledger.history("z_1") == [(0, "created"), (1, "accepted")]


async def test_one_driver_on_many_connections_wants_many_trips(ledger: LedgerDatabase) -> None:
    await start_with(ledger, driver(), *(create(f"z_{i}") for i in range(12)))
    servers = await _many(ledger.url, 12)
    calls = (ledger.commit(accept(f"z_{i}"), by=s) for i, s in enumerate(servers))
    found = await asyncio.gather(*calls)
    assert Counter(row[0][0] for row in found) == {"ok": 1, "stale": 11}
    await asyncio.gather(*(s.close() for s in servers))


async def test_an_accept_and_going_offline_at_once(ledger: LedgerDatabase) -> None:
    """Whoever comes second is refused: no driver is offline with a trip that has not started."""
    servers = await _many(ledger.url, 2)
    seen = Counter()
    for i in range(40):
        name, trip_id = f"d{i}", f"z_{i}"
        await start_with(ledger, create(trip_id), driver(name))
        calls = [
            ledger.commit(accept(trip_id, name), by=servers[0]),
            ledger.commit(driver(name, version=0, set_online=False), by=servers[1]),
        ]
        results = await asyncio.gather(*(calls if i % 2 else calls[::-1]))
        seen[tuple(r[0][0] for r in results)] += 1
        assert Counter(r[0][0] for r in results) == {"ok": 1, "stale": 1}
    stranded = await ledger.connection.fetch(
        "SELECT FROM trip_requests JOIN driver_details ON user_id = driver_id WHERE NOT is_online"
    )
    assert stranded == []
    await asyncio.gather(*(s.close() for s in servers))


async def test_a_new_driver_s_first_states_on_two_connections(ledger: LedgerDatabase) -> None:
    """Both take the driver for unknown; the second one must see that they are not."""
    first, second = await _many(ledger.url, 2)
    transaction = first.transaction()
    await transaction.start()
    assert (await ledger.commit(driver("new"), by=first))[0][0] == "ok"
    waiting = asyncio.create_task(ledger.commit(driver("new", set_online=False), by=second))
    await _waits_for_a_lock(ledger, second)
    await transaction.commit()
    assert (await waiting)[0][0] == "stale"
    assert await ledger.one("SELECT is_online, version FROM driver_details") == (True, 0)
    await asyncio.gather(first.close(), second.close())


async def test_batches_that_cross_do_not_deadlock(ledger: LedgerDatabase) -> None:
    """Rows are locked in one order, whatever the order of a batch."""
    size, rounds = 30, 8
    await start_with(ledger, *(create(f"z_{i}") for i in range(size)))
    await start_with(ledger, *(driver(f"d{i}") for i in range(size)))
    servers = await _many(ledger.url, 6)

    async def server(at: int, connection: asyncpg.Connection) -> Counter[str]:
        seen: Counter[str] = Counter()
        for round_ in range(rounds):
            order = sorted(range(size), key=lambda i: hash((i, at, round_)))
            batch = [
                keyed(accept(f"z_{i}", f"d{(i + at) % size}"), key_of(f"{at}-{round_}-{i}"))
                for i in order
            ]
            seen.update(row[0] for row in await ledger.commit(*batch, by=connection))
        return seen

    counts = await asyncio.gather(*(server(i, s) for i, s in enumerate(servers)))
    total = sum(counts, Counter())
    assert set(total) <= {"ok", "stale"}
    assert total["ok"] == await ledger.count("idempotency_keys") <= size
    assert await ledger.one("SELECT max(version), min(version) FROM trip_events") == (1, 0)
    await asyncio.gather(*(s.close() for s in servers))
