"""`dispatcher replay`: the history of a trip in order, and the state that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dispatcher.core.errors import Refusal
from dispatcher.core.times import iso, millis
from dispatcher.core.transitions import Event
from dispatcher.core.trips import Status, Trip
from dispatcher.operations.tables import table
from dispatcher.operations.workbench import Workbench
from dispatcher.service.commands.actions import zone_of_trip
from dispatcher.service.outbox import TRANSITION_OF, PastEvent
from dispatcher.service.outbox import replay as states_of

#: Not a column of the trip's row.
_OF_THE_DRIVER = "driver_vehicle_type"


async def replay(bench: Workbench, trip_id: str) -> dict[str, Any]:
    """`steps`: events, offers and lost races in their order; `faults`: what the rules do not allow;
    `differences`: columns in which the row is not what follows. Raises Refusal trip_not_found."""
    zone_of_trip(bench.zones, trip_id)
    database = bench.ledger.database
    trip = await database.trip(trip_id)
    if trip is None:
        raise Refusal("trip_not_found", f"There is no trip {trip_id}.")
    history = [PastEvent.from_row(row) for row in await database.rows("timeline", trip_id=trip_id)]
    offers = await database.rows("offers_of_trip", trip_id=trip_id, driver_id=None)
    races = await database.rows("races_of_trip", trip_id=trip_id, driver_id=None)
    follows = states_of(trip, history).get(history[-1].version) if history else None
    return {
        "trip_id": trip_id,
        "steps": _steps(history, offers, races),
        "follows": follows.to_json() if follows else None,
        "row": trip.to_json(),
        "faults": _faults(trip, history),
        "differences": _differences(trip, follows),
    }


def _steps(
    history: Sequence[PastEvent], offers: Sequence[Any], races: Sequence[Any]
) -> list[dict[str, Any]]:
    steps: list[tuple[int, int, dict[str, Any]]] = []
    for event in history:
        state, holder = event.payload.get("current_status"), event.payload.get("driver_id")
        what = f"is {state}" + (f" with driver {holder}" if holder else "")
        if reason := event.payload.get("reason"):
            what += f" ({reason})"
        steps.append((event.at_ms, event.version, _step(
            event.at_ms, event.event, f"{event.actor.role} {event.actor.user_id}", what, event.version,
        )))  # fmt: skip
    for row in offers:
        driver, wave = f"driver {row['driver_id']}", f"wave {row['wave']}"
        at_ms = millis(row["offered_at"]) or 0
        distance = "" if row["distance_m"] is None else f", {row['distance_m']:.0f} m away"
        if row["wave"]:  # wave 0 is a decline without an offer
            steps.append((at_ms, -1, _step(at_ms, "offered", driver, wave + distance)))
        if row["outcome"] != "open":
            ended_ms = millis(row["outcome_at"]) or at_ms
            steps.append((ended_ms, -1, _step(ended_ms, f"offer {row['outcome']}", driver, wave)))
    won_ms = {event.version: event.at_ms for event in history}
    for row in races:
        at_ms, version = millis(row["tried_at"]) or 0, row["version"]
        late = f"{at_ms - won_ms[version]} ms after version {version}" if version in won_ms else ""
        # After the accept of the same moment.
        steps.append((at_ms, version, _step(at_ms, "came too late", f"driver {row['driver_id']}", late)))
    # Of one moment, what had been offered comes before the event that it led to.
    return [step for *_, step in sorted(steps, key=lambda step: step[:2])]


def _step(at_ms: int, what: str, who: str, detail: str, version: int | None = None) -> dict[str, Any]:
    return {"at": iso(at_ms), "version": version, "what": what, "who": who, "detail": detail}


def _faults(trip: Trip, history: Sequence[PastEvent]) -> list[str]:
    """What the table of transitions does not allow, and versions that are missing."""
    faults = []
    versions = [event.version for event in history]
    if versions != list(range(trip.version + 1)):
        faults.append(f"versions are {versions}, and the row has version {trip.version}")
    state: Status | None = None
    for event in history:
        told = Status(event.payload["current_status"])
        if event.event is Event.CREATED:
            is_allowed = state is None and told is Status.PENDING
        else:
            transition = TRANSITION_OF[event.event]
            is_allowed = state in transition.sources and told is transition.target
        if not is_allowed:
            faults.append(f"version {event.version}: {event.event} does not lead from {state} to {told}")
        state = told
    return faults


def _differences(row: Trip, follows: Trip | None) -> list[dict[str, Any]]:
    if follows is None:
        return [{"column": "*", "follows": None, "row": "there is a row, and no event"}]
    return [
        {"column": name, "follows": ours, "row": theirs}
        for name, ours, theirs in zip(Trip._fields, follows, row, strict=True)
        if ours != theirs and name != _OF_THE_DRIVER
    ]


def replay_lines(result: dict[str, Any]) -> list[str]:
    """The steps as a table, and below it whether the row is what follows."""
    rows = [(s["at"], s["version"], s["what"], s["who"], s["detail"]) for s in result["steps"]]
    lines = [*table(("at", "version", "what", "who", "detail"), rows), ""]
    lines += [f"not allowed: {fault}" for fault in result["faults"]]
    lines += [
        f"{d['column']}: {d['follows']} follows, {d['row']} is in the row" for d in result["differences"]
    ]
    if not result["faults"] and not result["differences"]:
        lines.append(f"the row is what follows: {result['row']['current_status']}")
    return lines
