"""What a driver may do: one trip at a time, and only online and available; and the history of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from tests.faults.evidence import Evidence
from tests.faults.intents import Intent
from tests.faults.linearizability import Operation, find_order
from tests.faults.trip_model import ACTIVE


class DriverState(NamedTuple):
    """Version -1 is a driver who was never online. `has_started` is of the trip that they have."""

    version: int = -1
    is_online: bool = False
    status: str = "unavailable"
    zone: str = ""
    trip: str | None = None
    has_started: bool = False


_Apply = Callable[[DriverState], Iterable[DriverState]]


def check_driver(evidence: Evidence, driver: str, intents: Sequence[Intent]) -> str | None:
    """Why what a driver was told has no order that ends in the driver's row; None where it has.

    `intents` are the driver's own, and those of others that may take a trip away from them.
    """
    end = _end(evidence, driver)

    def by_itself(state: DriverState) -> Iterator[DriverState]:
        """A driver who seems to be gone is taken offline. The row's version says how often at most."""
        if state.is_online and state.version < end.version:
            yield _released(state)._replace(version=state.version + 1, is_online=False)

    operations = [op for intent in intents for op in _operations(driver, intent, intents)]
    verdict = find_order(DriverState(), operations, by_itself=by_itself, is_end=end.__eq__)
    return None if verdict.is_possible else verdict.explain(end)


def _end(evidence: Evidence, driver: str) -> DriverState:
    """What the rows say of a driver; that they have one trip at most is another check's matter."""
    row = evidence.drivers.get(driver)
    if row is None:
        return DriverState()
    held = [
        (trip_id, trip["current_status"] == "ongoing")
        for trip_id, trip in evidence.trips.items()
        if trip["driver_id"] == driver and trip["current_status"] in ACTIVE
    ]
    columns = (row["version"], row["is_online"], row["availability_status"], row["zone"])
    return DriverState(*columns, *(held[0] if held else (None, False)))


def _operations(driver: str, intent: Intent, all_: Sequence[Intent]) -> Iterator[Operation[DriverState]]:
    apply = _apply(driver, intent)
    if apply is not None and intent.answer is not None:
        yield Operation(intent.name, intent.called, intent.returned, apply)
    if intent.user != driver:
        return
    is_contended = any(other.user == driver and other.is_at_work(intent) for other in all_)
    for refusal in intent.refusals:
        allowed = _refusal(intent, refusal.code, is_contended=is_contended)
        if allowed is not None:
            name = f"{intent.name}: {refusal.code}"
            look = partial(_look, allowed)
            yield Operation(name, intent.called, refusal.by, look, is_look=True)


def _apply(driver: str, intent: Intent) -> _Apply | None:
    """What a success does to the driver."""
    if intent.user != driver:
        return partial(_lose, intent.trip) if intent.event == "cancelled" else None
    if intent.endpoint.endswith("/availability"):
        return partial(_change, intent.body, intent.answer)
    return partial(_act, intent.event, intent.trip)


def _act(event: str, trip: str, state: DriverState) -> Iterator[DriverState]:
    if event == "accepted":
        if _works_at(trip, state) and state.status == "available" and state.trip is None:
            yield state._replace(trip=trip, has_started=False)
    elif state.trip != trip or state.has_started != (event == "completed"):
        return
    elif event in ("completed", "released"):
        yield state._replace(trip=None, has_started=False)
    else:
        yield state._replace(has_started=event == "started")


def _lose(trip: str, state: DriverState) -> Iterator[DriverState]:
    """The trip is cancelled by its customer; nothing happens to a driver who has another one, or none."""
    if state.trip != trip:
        yield state
    elif not state.has_started:
        yield state._replace(trip=None)


def _change(
    body: dict[str, Any], answer: dict[str, Any] | None, state: DriverState
) -> Iterator[DriverState]:
    is_online = body.get("is_online", state.is_online)
    after = (state if is_online else _released(state))._replace(
        version=state.version + 1,
        is_online=is_online,
        status=body.get("availability_status", state.status),
        zone=body.get("zone", state.zone),
    )
    if state.trip is not None and after.zone != state.zone:
        return
    if answer is not None:
        told, released = answer["driver"], answer["released_trip"]
        if (told["is_online"], told["availability_status"], told["zone"], told["trip_id"]) != (
            after.is_online, after.status, after.zone, after.trip,
        ):  # fmt: skip
            return
        if (released and released["id"]) != (state.trip if after.trip is None else None):
            return
    yield after


def _released(state: DriverState) -> DriverState:
    return state if state.has_started else state._replace(trip=None)


def _works_at(trip: str, state: DriverState) -> bool:
    """Whether the driver is online where the trip is."""
    return state.is_online and state.zone == trip.partition("_")[0]


def _look(is_allowed: Callable[[DriverState], bool], state: DriverState) -> Iterator[DriverState]:
    if is_allowed(state):
        yield state


def _refusal(intent: Intent, code: str, *, is_contended: bool) -> Callable[[DriverState], bool] | None:
    """What a refusal says of the driver; None where it says nothing."""
    match code:
        case "driver_not_online":
            return lambda state: not _works_at(intent.trip, state)
        case "driver_not_available":
            return lambda state: (
                is_contended
                or (
                    _works_at(intent.trip, state)
                    and (state.trip is not None or state.status != "available")
                )
            )
        case "driver_has_active_trip":
            return lambda state: state.trip is not None
    return None
