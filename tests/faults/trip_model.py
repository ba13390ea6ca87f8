"""What a trip may do, by the table of transitions, and the history of one as operations on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from dispatcher.core.transitions import TRANSITIONS, DriverEffect, Event
from tests.faults.evidence import Evidence
from tests.faults.intents import Intent
from tests.faults.linearizability import Operation, find_order

ACTIVE = ("accepted", "arrived", "ongoing")
FINAL = ("completed", "cancelled", "expired")
_STEPS = ("arrive", "start", "complete", "cancel")
_BY_NOBODY = ("system", "admin")


class TripState(NamedTuple):
    """Version -1 is a trip that there is not yet."""

    version: int = -1
    status: str = ""
    driver: str | None = None


_Apply = Callable[[TripState], Iterable[TripState]]


def check_trip(evidence: Evidence, trip: str, intents: Sequence[Intent]) -> str | None:
    """Why what the clients were told of a trip has no order that ends in the trip's row; None where it has."""
    row = evidence.trips[trip]
    end = TripState(row["version"], row["current_status"], row["driver_id"])
    written = {event.version: event for event in evidence.events.get(trip, ())}

    def by_itself(state: TripState) -> Iterator[TripState]:
        event = written.get(state.version + 1)
        if event is not None and event.role in _BY_NOBODY:
            yield from _taken(event.event, event.driver, state)

    operations = [op for intent in intents for op in _operations(evidence, trip, intent, intents)]
    verdict = find_order(TripState(), operations, by_itself=by_itself, is_end=end.__eq__)
    return None if verdict.is_possible else verdict.explain(end)


def _operations(
    evidence: Evidence, trip: str, intent: Intent, all_: Sequence[Intent]
) -> Iterator[Operation[TripState]]:
    driver = intent.user if intent.event in ("accepted", "arrived", "started", "completed") else None
    if intent.endpoint.endswith("/availability"):
        yield from _releases(trip, intent)
        return
    if intent.answer is not None:
        yield _operation(intent, partial(_succeed, intent.event, driver, intent.version, intent.user))
    is_contended = any(_claims(other) and other.is_at_work(intent) for other in all_)
    contended = is_contended or any(
        event.role in _BY_NOBODY for event in evidence.events.get(trip, ())
    )  # fmt: skip
    for refusal in intent.refusals:
        allowed = _refusal(intent, refusal.code, contended=contended)
        if allowed is not None:
            name = f"{intent.name}: {refusal.code}"
            look = partial(_look, allowed)
            yield Operation(name, intent.called, refusal.by, look, is_look=True)


def _operation(intent: Intent, apply: _Apply) -> Operation[TripState]:
    return Operation(intent.name, intent.called, intent.returned, apply)


def _releases(trip: str, intent: Intent) -> Iterator[Operation[TripState]]:
    """A driver goes offline, and gives back what has not started."""
    released = intent.answer["released_trip"] if intent.answer else None
    if released is not None and released["id"] == trip:
        yield _operation(intent, partial(_succeed, "released", None, released["version"], intent.user))


def _succeed(
    event: str, driver: str | None, version: int, user: str, state: TripState
) -> Iterator[TripState]:
    needs_no_driver = event in ("created", "accepted", "cancelled")
    if state.version + 1 == version and (needs_no_driver or state.driver == user):
        yield from _taken(event, driver, state)


def _taken(event: str, driver: str | None, state: TripState) -> Iterator[TripState]:
    """The state after an event, by the table of transitions; none where the table has no such row."""
    if event == "created":
        if state.version < 0:
            yield TripState(0, "pending")
        return
    for row in TRANSITIONS:
        if row.event == event and state.status in row.sources:
            holder = {DriverEffect.TAKES: driver, DriverEffect.CLEARED: None}.get(
                row.driver, state.driver
            )
            yield TripState(state.version + 1, row.target.value, holder)
            return


def _look(is_allowed: Callable[[TripState], bool], state: TripState) -> Iterator[TripState]:
    if is_allowed(state):
        yield state


def _claims(intent: Intent) -> bool:
    """Whether an intent may claim the trip: whoever meets the claim is told that another was faster."""
    return bool(intent.event) and intent.event != Event.CREATED


def _refusal(intent: Intent, code: str, *, contended: bool) -> Callable[[TripState], bool] | None:
    """What a refusal says of the trip; None where it says nothing."""
    match code:
        case "trip_already_assigned":
            return lambda state: state.status in ACTIVE or (contended and state.status == "pending")
        case "trip_not_pending":
            return lambda state: state.status in FINAL
        case "driver_not_online" | "driver_not_available":
            return lambda state: state.status == "pending"
        case "trip_not_found" if intent.body.get("action") in _STEPS:
            return lambda state: state.driver != intent.user
        case "trip_not_found":
            return lambda state: state.version < 0
        case "invalid_trip_status":
            sources = {
                status for row in TRANSITIONS if row.event == intent.event for status in row.sources
            }
            return lambda state: state.version >= 0 and state.status not in sources
    return None
