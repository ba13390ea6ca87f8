"""One change: what it writes, and the guards that keep it from being written."""

from __future__ import annotations

import pytest

from dispatcher.core.times import moment
from dispatcher.ledger.changes import Change
from tests.ledger.harness import (
    AT_MS,
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


async def test_a_trip_s_whole_life_is_its_history(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver(), accept())
    for version, event in enumerate(("arrived", "started", "completed"), start=1):
        await start_with(ledger, step("z_1", version, event))
    assert await ledger.trip("z_1") == ("completed", 4, "d1")
    assert await ledger.history("z_1") == list(
        enumerate(("created", "accepted", "arrived", "started", "completed"))
    )
    stamps = await ledger.one(
        "SELECT created_at, accepted_at, locked_at, arrived_at, trip_start_time, completed_at,"
        " updated_at FROM trip_requests"
    )
    assert stamps is not None
    assert [round(s.timestamp() * 1000) - AT_MS for s in stamps] == [0, 1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("at_ms", [0, 1, 946_684_799_999, 1_794_999_999_999, 253_402_300_799_999])
async def test_times_are_exact_to_the_millisecond(ledger: LedgerDatabase, at_ms: int) -> None:
    await start_with(ledger, keyed(create(at_ms=at_ms), key_of(), ends_ms=at_ms))
    times = await ledger.one(
        "SELECT created_at, (SELECT expires_at FROM idempotency_keys) FROM trip_requests"
    )
    assert times == (moment(at_ms),) * 2
    by_the_same = await ledger.committing.fetchval("SELECT created_at FROM trip_requests")
    assert by_the_same == moment(at_ms)


async def test_a_released_trip_is_as_if_nobody_had_had_it(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver(), accept(), step("z_1", 1, "arrived"))
    await start_with(ledger, step("z_1", 2, "released"))
    assert await ledger.one(
        "SELECT current_status, version, driver_id, locked_at, accepted_at, arrived_at"
        " FROM trip_requests"
    ) == ("pending", 3, None, None, None, None)
    await start_with(ledger, accept(version=3))


async def test_a_cancellation_keeps_its_reason(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), step("z_1", 0, "cancelled", reason="rain", driver_id=None))
    assert await ledger.one(
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
        (driver(version=0, zone="far"), "from a zone that the driver is not in"),
        (driver("busy", version=0, set_online=False), "would strand their trip"),
        (driver("busy", version=0, set_zone="elsewhere"), "would take their trip along"),
        (step("z_1", 0, "released", set_driver="d1", set_online=False), "not the trip's state"),
        (decline("z_2"), "not pending"),
        (decline("z_9"), "no such trip"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
async def test_a_guard_that_does_not_hold(ledger: LedgerDatabase, change: Change, why: str) -> None:
    await start_with(
        ledger, create(), create("z_2"), driver(), driver("off", set_online=False),
        driver("pause", set_available="unavailable"), driver("away", set_zone="far"),
        driver("busy"), accept("z_2", "busy"),
    )  # fmt: skip
    tables = ("trip_requests", "trip_events", "driver_details", "trip_offers", "idempotency_keys")
    before = [await ledger.connection.fetch(f"SELECT * FROM {t} ORDER BY 1, 2") for t in tables]
    assert await ledger.commit(keyed(change, key_of())) == [("stale", None, None)], why
    after = [await ledger.connection.fetch(f"SELECT * FROM {t} ORDER BY 1, 2") for t in tables]
    assert after == before


async def test_an_ongoing_trip_stays_with_a_driver_who_goes_offline(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver(), accept())
    await start_with(ledger, step("z_1", 1, "arrived"), step("z_1", 2, "started"))
    await start_with(ledger, driver(version=0, set_online=False))
    assert await ledger.trip("z_1") == ("ongoing", 3, "d1")


async def test_going_offline_releases_in_the_same_commit(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver(), accept())
    release = step(
        "z_1", 1, "released", set_driver="d1", set_zone="z", set_online=False,
        set_available="available", set_vehicle="car", expect_driver_version=0,
    )  # fmt: skip
    assert await ledger.outcomes(keyed(release, key_of())) == ["ok"]
    assert await ledger.trip("z_1") == ("pending", 2, None)
    assert await ledger.one("SELECT is_online, version FROM driver_details") == (False, 1)
    assert await ledger.history("z_1") == [(0, "created"), (1, "accepted"), (2, "released")]
    assert await ledger.count("idempotency_keys") == 1


async def test_a_decline_is_kept_with_its_offer(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver())
    await ledger.connection.execute(
        "INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at)"
        " VALUES ('z_1', 'd1', 1, now()), ('z_1', 'd1', 2, now()), ('z_1', 'd2', 1, now())"
    )
    await start_with(ledger, decline(), decline(), decline(name="d3"))
    rows = await ledger.connection.fetch(
        "SELECT driver_id, wave, outcome FROM trip_offers ORDER BY 1, 2"
    )
    assert [tuple(r) for r in rows] == [
        ("d1", 1, "open"), ("d1", 2, "declined"), ("d2", 1, "open"), ("d3", 0, "declined"),
    ]  # fmt: skip
    assert await ledger.trip("z_1") == ("pending", 0, None), "a decline is no change of the trip"
    assert await ledger.history("z_1") == [(0, "created")]
