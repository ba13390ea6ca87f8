"""The transition table of the code and the SQL of the commit say the same.

Each transition is walked from each state: a row in that state is written, the change is committed, and every column
is compared with what `Transition.apply` makes of the trip.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from dispatcher.core import transitions
from dispatcher.core.actors import Role
from dispatcher.core.drivers import AvailabilityStatus
from dispatcher.core.transitions import (
    ACCEPT,
    ARRIVE,
    CANCEL,
    TRANSITIONS,
    DriverEffect,
    Event,
    Transition,
)
from dispatcher.core.trips import ACTIVE, Status, Trip
from dispatcher.ledger.changes import Change
from dispatcher.ledger.database import Database
from dispatcher.resources import SQL_DIR
from tests.ledger.harness import (
    AT_MS,
    TIME_COLUMNS,
    LedgerDatabase,
    driver,
    open_commits,
    put_trip,
    start_with,
)

STEPS = [
    pytest.param(transition, source, id=f"{transition.action}-{transition.event}-from-{source}")
    for transition in TRANSITIONS
    for source in sorted(transition.sources)
]


@pytest.fixture
async def database(ledger: LedgerDatabase) -> AsyncIterator[Database]:
    """The class that reads trips, on the database of this test."""
    database = await Database.open(ledger.url, size=1)
    yield database
    await database.close()


def trip_in(status: Status, *, every_column: bool) -> Trip:
    """A trip in a state; with a value in every column that the state allows, or only in those it needs.

    With every column filled, a test sees a column that is not cleared; with few, one that is written wrongly.
    """
    holder = None if status in (Status.PENDING, Status.EXPIRED) else "holder"
    trip = Trip(
        id=f"z_{status}", zone="z", customer_id="c1", vehicle_type="car", pickup_lat=50.1, pickup_lng=8.6,
        created_at=AT_MS, updated_at=AT_MS + 1, current_status=status, version=7, driver_id=holder,
        driver_vehicle_type="van" if holder else None,
    )  # fmt: skip
    if not every_column:
        return trip
    times = {name: AT_MS + 2 + i for i, name in enumerate(TIME_COLUMNS)}
    return trip._replace(**times, dropoff_lat=50.2, dropoff_lng=8.7, cancel_reason="an older reason")


def apply(transition: Transition, trip: Trip) -> Trip:
    """The trip after the transition, as the code has it."""
    more: dict[str, Any] = {}
    if transition.driver is DriverEffect.TAKES:
        more = {"driver_id": "taker", "driver_vehicle_type": "bike"}
    if transition is CANCEL:
        more = {"cancel_reason": "a new reason"}
    return transition.apply(trip, AT_MS + 1_000, **more)


def _actor_of(transition: Transition) -> str:
    """Only its holder gives a trip back."""
    return "holder" if transition.event is Event.RELEASED else "someone"


def change_to(transition: Transition, trip: Trip, after: Trip) -> Change:
    """The transition as the ledger takes it. A reason is always given: only a cancellation may keep it."""
    return Change(
        trip_id=trip.id, expect_version=trip.version, sources=tuple(transition.sources),
        to_status=after.current_status, driver_id=after.driver_id, zone=trip.zone,
        required_driver="taker" if transition.driver is DriverEffect.TAKES else None,
        reason="a new reason", event=transition.event,
        actor_id=_actor_of(transition),
        actor_role=min(transition.roles), payload='{"a": 1}', at_ms=after.updated_at,
    )  # fmt: skip


async def put_drivers(ledger: LedgerDatabase) -> None:
    """The driver of every trip that has one, and the driver who accepts; both are free to accept."""
    await start_with(ledger, driver("holder", set_vehicle="van"), driver("taker", set_vehicle="bike"))


async def differing_columns(
    ledger: LedgerDatabase, database: Database, transition: Transition, trip: Trip
) -> dict[str, tuple[Any, Any]]:
    """Commits the transition of a trip that is put there; what Postgres and the code do not agree on."""
    await put_drivers(ledger)
    await put_trip(ledger.connection, trip)
    assert await database.trip(trip.id) == trip, "the row is as it was meant"
    expected = apply(transition, trip)
    async with open_commits(ledger.url) as commits:
        outcome = await commits.commit(change_to(transition, trip, expected))
    assert outcome.code == "ok"
    found = await database.trip(trip.id)
    assert found is not None
    pairs = zip(Trip._fields, found, expected, strict=True)
    return {name: (sql, code) for name, sql, code in pairs if sql != code}


@pytest.mark.parametrize("every_column", [True, False], ids=["every-column", "few-columns"])
@pytest.mark.parametrize(("transition", "source"), STEPS)
async def test_a_transition_writes_what_the_code_says(
    ledger: LedgerDatabase,
    database: Database,
    transition: Transition,
    source: Status,
    every_column: bool,
) -> None:
    trip = trip_in(source, every_column=every_column)
    assert await differing_columns(ledger, database, transition, trip) == {}
    assert await ledger.one(
        "SELECT version, event, actor_id, actor_role, payload FROM trip_events WHERE trip_id = $1",
        trip.id,
    ) == (trip.version + 1, transition.event, _actor_of(transition), min(transition.roles), '{"a": 1}')


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda t: f"{t.action}-{t.event}")
async def test_from_any_other_state_a_transition_is_refused_as_stale(
    ledger: LedgerDatabase, database: Database, transition: Transition
) -> None:
    await put_drivers(ledger)
    for source in sorted(set(Status) - transition.sources):
        trip = trip_in(source, every_column=True)
        await put_trip(ledger.connection, trip)
        async with open_commits(ledger.url) as commits:
            outcome = await commits.commit(change_to(transition, trip, apply(transition, trip)))
        assert outcome.code == "stale", source
        assert await database.trip(trip.id) == trip, source
        assert await ledger.history(trip.id) == [], source
        await ledger.connection.execute("DELETE FROM trip_requests")


@pytest.mark.parametrize(
    ("invented", "columns"),
    [
        (replace(ARRIVE, stamp="completed_at"), {"arrived_at", "completed_at"}),
        (replace(ARRIVE, driver=DriverEffect.TAKES), {"locked_at"}),
        (
            replace(ACCEPT, event=Event.CANCELLED),
            {"accepted_at", "locked_at", "cancelled_at", "cancel_reason"},
        ),
    ],
    ids=["another-stamp", "another-effect", "another-event"],
)
async def test_a_transition_that_the_sql_does_not_know_is_seen(
    ledger: LedgerDatabase, database: Database, invented: Transition, columns: set[str]
) -> None:
    (source,) = invented.sources
    trip = trip_in(source, every_column=True)
    assert (await differing_columns(ledger, database, invented, trip)).keys() == columns


def test_every_transition_and_every_event_is_walked() -> None:
    named = [value for value in vars(transitions).values() if isinstance(value, Transition)]
    assert sorted(TRANSITIONS, key=id) == sorted(named, key=id)
    assert {transition.event for transition in TRANSITIONS} == set(Event) - {Event.CREATED}


async def test_a_trip_has_every_column_of_the_table(ledger: LedgerDatabase) -> None:
    rows = await ledger.connection.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'trip_requests'::regclass AND attnum > 0"
    )
    in_code = {re.sub(r"_(lat|lng)$", "_location", name) for name in Trip._fields}
    assert {row[0] for row in rows} == in_code - {"driver_vehicle_type"}


@pytest.mark.parametrize(
    ("definition", "values"),
    [
        ("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'trip_events_event_check'", Event),
        ("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'trip_events_actor_role_check'", Role),
        ("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid = 'trip_status'::regtype", Status),
        ("SELECT pg_get_constraintdef(oid) FROM pg_constraint"
         " WHERE conname = 'driver_details_availability_status_check'", AvailabilityStatus),
        ("SELECT pg_get_indexdef('trip_requests_one_active_per_driver'::regclass)", ACTIVE),
    ],
    ids=["events", "roles", "states", "availability", "active-states"],
)  # fmt: skip
async def test_the_schema_lists_exactly_what_the_code_lists(
    ledger: LedgerDatabase, definition: str, values: Any
) -> None:
    ((found,),) = await ledger.connection.fetch(definition)
    quoted = re.findall(r"'([^']*)'", found)
    assert sorted(quoted) == sorted(values)


def test_every_list_of_states_in_the_sql_is_one_that_the_code_has() -> None:
    """Active, live (active or pending) and not started: no query has a list of its own."""
    not_started = transitions.RELEASE.sources
    known = {ACTIVE, ACTIVE | {Status.PENDING}, not_started}
    files = [
        file
        for part in ("functions", "queries", "monitoring")
        for file in (SQL_DIR / part).glob("*.sql")
    ]
    lists = {
        (file.name, frozenset(re.findall(r"'(\w+)'", states)))
        for file in files
        for states in re.findall(r"current_status IN \(([^)]*)\)", file.read_text())
    }
    assert len(lists) > 5
    assert {(name, states) for name, states in lists if states not in known} == set()
