"""A batch of changes: each one as a whole or not at all, whatever its neighbours are."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.ledger.changes import Change
from tests.harness.services import open_city
from tests.ledger.harness import (
    Keyed,
    LedgerDatabase,
    accept,
    create,
    decline,
    driver,
    key_of,
    keyed,
    start_with,
    step,
)


async def test_a_batch_of_every_kind(ledger: LedgerDatabase) -> None:
    await start_with(
        ledger, *(create(f"z_{i}") for i in range(6)), *(driver(f"d{i}") for i in range(6)),
        accept("z_3", "d3"), step("z_3", 1, "arrived", driver_id="d3"), accept("z_4", "d4"),
        keyed(create("z_6"), key_of("old"), "stored"),
    )  # fmt: skip
    outcomes = await ledger.commit(
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
    assert await ledger.trip("z_3") == ("ongoing", 3, "d3")
    assert await ledger.trip("z_4") == ("cancelled", 2, "d4")
    assert await ledger.trip("z_7") is None
    assert await ledger.one("SELECT count(*) FROM trip_offers") == (1,)
    gaps = await ledger.connection.fetch(
        "SELECT id FROM trip_requests t WHERE version + 1 <>"
        " (SELECT count(*) FROM trip_events e WHERE e.trip_id = t.id)"
    )
    assert gaps == []


async def test_an_empty_batch(ledger: LedgerDatabase) -> None:
    assert await ledger.commit() == []


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
        keyed(create("z_5"), key_of(), "{}", status=409),
        driver("d5", set_available="maybe"),
        driver("d5", set_zone="No Zone"),
    ],
    ids=range(12),
)
async def test_a_poisoned_row_fails_alone(ledger: LedgerDatabase, poison: Change | Keyed) -> None:
    await start_with(ledger, create(), create("z_2"), driver(), driver("d2"))
    outcomes = await ledger.outcomes(accept("z_2", "d2"), poison, keyed(create("z_3"), key_of("good")))
    assert outcomes[0] == outcomes[2] == "ok"
    assert outcomes[1].startswith("error 23"), outcomes
    assert await ledger.trip("z_2") == ("accepted", 1, "d2")
    assert await ledger.trip("z_3") == ("pending", 0, None)
    # Whole or not at all: nothing of the poisoned one is there.
    assert await ledger.trip("z_5") is None
    assert await ledger.trip("z_1") == ("pending", 0, None)
    assert await ledger.history("z_1") == [(0, "created")]
    assert await ledger.count("idempotency_keys") == 1
    assert await ledger.one("SELECT user_id FROM driver_details WHERE user_id = 'd5'") is None


async def test_two_trips_for_one_driver_in_one_batch(ledger: LedgerDatabase) -> None:
    """The guards look before either is written; the unique index decides."""
    await start_with(ledger, create(), create("z_2"), driver())
    batch = (keyed(accept("z_1"), key_of("a")), keyed(accept("z_2"), key_of("b")))
    assert await ledger.outcomes(*batch) == ["ok", "stale"]
    assert await ledger.trip("z_2") == ("pending", 0, None)
    assert await ledger.count("idempotency_keys") == 1


async def test_one_key_twice_in_one_batch(ledger: LedgerDatabase) -> None:
    first, second = keyed(create("z_1"), key_of(), "1"), keyed(create("z_2"), key_of(), "2")
    assert await ledger.commit(first, second) == [("ok", None, None), ("replay", 200, "1")]
    assert await ledger.count("trip_requests") == 1


async def test_one_trip_twice_in_one_batch(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver(), driver("d2"))
    assert await ledger.outcomes(accept(), accept(driver="d2")) == ["ok", "stale"]
    assert await ledger.outcomes(create("z_2"), create("z_2")) == ["ok", "stale"]
    assert await ledger.history("z_1") == [(0, "created"), (1, "accepted")]


async def test_one_driver_twice_in_one_batch(ledger: LedgerDatabase) -> None:
    await start_with(ledger, driver())
    twice = (driver(version=0, set_available="unavailable"), driver(version=0, set_online=False))
    assert await ledger.outcomes(*twice) == ["ok", "stale"]
    assert await ledger.one("SELECT availability_status, is_online, version FROM driver_details") == (
        "unavailable",
        True,
        1,
    )


async def test_a_poisoned_change_of_the_services_fails_alone(redis_url: str, database_url: str) -> None:
    """A row that breaks a constraint does not take its neighbours of the batch along."""
    async with open_city(redis_url, database_url) as city:
        await city.postgres.execute(
            "ALTER TABLE trip_requests ADD CONSTRAINT poison CHECK (customer_id <> 'poison')"
        )
        results = await asyncio.gather(
            *(city.trip(customer="poison" if n == 3 else "rider") for n in range(10)),
            return_exceptions=True,
        )
        assert [isinstance(result, Exception) for result in results].count(True) == 1
        assert isinstance(results[3], Exception)
        assert await city.postgres.fetchval("SELECT count(*) FROM trip_requests") == 9
