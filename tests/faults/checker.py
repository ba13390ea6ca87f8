"""Proves from the evidence that every promise was kept; each check yields a sentence for each breach."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson

from tests.faults.driver_model import check_driver
from tests.faults.evidence import Evidence
from tests.faults.history import Attempt
from tests.faults.intents import EVENTS, Intent, intents
from tests.faults.limits import limits_are_kept
from tests.faults.trip_model import ACTIVE, FINAL, check_trip


def one_winner(evidence: Evidence) -> Iterator[str]:
    """No trip has two drivers, no driver two trips, in the rows, the histories and the answers."""
    holding: dict[str, str] = {}
    for trip_id, trip in evidence.trips.items():
        if trip["current_status"] in ACTIVE:
            other = holding.setdefault(trip["driver_id"], trip_id)
            if other != trip_id:
                yield f"{trip['driver_id']} holds {other} and {trip_id}"
    for trip_id, events in evidence.events.items():
        holder = ""
        for event in events:
            if event.event == "accepted":
                if holder:
                    yield f"{trip_id} was accepted by {event.actor} while {holder} had it"
                holder = event.actor
            elif event.event in ("released", *FINAL):
                holder = ""
    won: dict[tuple[str, int], Attempt] = {}
    for attempt in _successes(evidence):
        effect = _effect(attempt)
        if effect is None:
            continue
        first = won.setdefault(effect[:2], attempt)
        if (first.user, first.key) != (attempt.user, attempt.key):
            yield f"{effect[0]} version {effect[1]} was answered to {first.user} and to {attempt.user}"


def successes_are_durable(evidence: Evidence) -> Iterator[str]:
    """What was answered with success is in the history of the trip, and so is the key's answer."""
    for attempt in _successes(evidence):
        name = (attempt.user, attempt.endpoint, attempt.key)
        if name not in evidence.answers:
            yield f"{attempt.user} got {attempt.status} for {attempt.key}, and Postgres has no answer of it"
        effect = _effect(attempt)
        if effect is None:
            continue
        trip_id, version, event = effect
        rows = [row for row in evidence.events.get(trip_id, ()) if row.version == version]
        if not rows or (rows[0].event, rows[0].actor) != (event, attempt.user):
            yield f"{attempt.user} was told {event} of {trip_id} version {version}, the history has {rows}"


def one_answer_a_key(evidence: Evidence) -> Iterator[str]:
    """All successes of a key are the same answer, the stored one; after a success nothing else is answered."""
    for (user, endpoint, key), attempts in evidence.history.by_key().items():
        successes = [attempt for attempt in attempts if attempt.is_success]
        if not successes:
            continue
        answers = [attempt.answer for attempt in successes]
        if stored := evidence.answers.get((user, endpoint, key)):
            answers.append(orjson.loads(stored))
        if any(answer != answers[0] for answer in answers):
            yield f"{key} has several answers"
        if len({attempt.raw for attempt in successes if not attempt.is_frame}) > 1:
            yield f"{key} has answers of other bytes"
        known_at = min(attempt.answered_at or 0.0 for attempt in successes)
        for attempt in attempts:
            if attempt.is_final and not attempt.is_success and attempt.sent_at > known_at:
                yield f"{key} had succeeded, and was then answered {attempt.status} {attempt.code}"


def versions_are_gapless(evidence: Evidence) -> Iterator[str]:
    """Each version of a trip from 0 to the present one has one event, and nothing has a history alone."""
    for trip_id, trip in evidence.trips.items():
        versions = [event.version for event in evidence.events.get(trip_id, ())]
        if versions != list(range(trip["version"] + 1)):
            yield f"{trip_id} is at version {trip['version']}, its history is {versions}"
    for trip_id in evidence.events.keys() - evidence.trips.keys():
        yield f"{trip_id} has a history and no row"


def trips_have_an_order(evidence: Evidence) -> Iterator[str]:
    """For each trip, what its clients were told has an order that the table of transitions allows."""
    by_trip: dict[str, list[Intent]] = {}
    by_user: dict[str, list[Intent]] = {}
    for intent in intents(evidence):
        if intent.trip:
            by_trip.setdefault(intent.trip, []).append(intent)
        else:  # a creation whose answer nobody knows, or a change of availability
            by_user.setdefault(intent.user, []).append(intent)
    for trip, row in evidence.trips.items():
        about = by_trip.get(trip, [])
        users = {row["customer_id"], *(intent.user for intent in about)}
        about += [intent for user in sorted(users) for intent in by_user.get(user, ())]
        if why_not := check_trip(evidence, trip, about):
            yield f"{trip}: {why_not}"
    for trip in by_trip.keys() - evidence.trips.keys():
        if any(intent.answer for intent in by_trip[trip]):
            yield f"{trip} was answered, and is in no table"


def drivers_have_an_order(evidence: Evidence) -> Iterator[str]:
    """For each driver, what they were told has an order: one trip at a time, and only while online."""
    all_ = list(intents(evidence))
    cancels: dict[str, list[Intent]] = {}
    for intent in all_:
        if intent.event == "cancelled":
            cancels.setdefault(intent.trip, []).append(intent)
    for driver in sorted({intent.user for intent in all_ if "/driver/" in intent.endpoint}):
        own = [intent for intent in all_ if intent.user == driver]
        trips = {intent.trip for intent in own if intent.event == "accepted"}
        about = own + [cancel for trip in sorted(trips) for cancel in cancels.get(trip, ())]
        if why_not := check_driver(evidence, driver, about):
            yield f"{driver}: {why_not}"


def every_event_is_heard(evidence: Evidence) -> Iterator[str]:
    """The stream told of each version; the rider's socket did, or came back to a snapshot later."""
    heard = {(item.user, item.trip, item.version) for item in evidence.history.heard}
    welcomes: dict[str, float] = {}
    for item in evidence.history.heard:
        if not item.trip:
            welcomes[item.user] = max(item.at, welcomes.get(item.user, 0.0))
    for trip_id, events in evidence.events.items():
        rider = evidence.trips[trip_id]["customer_id"] if trip_id in evidence.trips else ""
        for event in events:
            if (trip_id, event.version) not in evidence.history.told:
                yield f"the stream never told {event.event} of {trip_id} version {event.version}"
            is_news = event.actor != rider and rider in welcomes
            if is_news and (rider, trip_id, event.version) not in heard and welcomes[rider] < event.at:
                yield f"{rider} never heard {event.event} of {trip_id} version {event.version}"


def redis_equals_postgres(evidence: Evidence) -> Iterator[str]:
    """Once quiet, the live state says of every live trip and every driver what Postgres says."""
    for trip_id, trip in evidence.trips.items():
        live = evidence.live_trips.get(trip_id)
        if live is None and trip["current_status"] in FINAL:
            continue
        if live is None or not live.get("version"):
            yield f"{trip_id} is {trip['current_status']}, and Redis does not know it"
            continue
        theirs = (int(live["version"]), live.get("current_status"), live.get("driver_id") or None)
        ours = (trip["version"], trip["current_status"], trip["driver_id"])
        if theirs != ours:
            yield f"{trip_id} is {ours} in Postgres and {theirs} in Redis"
    for trip_id in evidence.live_trips.keys() - evidence.trips.keys():
        yield f"{trip_id} is in Redis alone"
    yield from _drivers(evidence)


def _drivers(evidence: Evidence) -> Iterator[str]:
    trips = {
        trip["driver_id"]: trip_id
        for trip_id, trip in evidence.trips.items()
        if trip["current_status"] in ACTIVE
    }
    for (zone, driver), live in evidence.live_drivers.items():
        row = evidence.drivers.get(driver)
        is_here = row is not None and row["zone"] == zone
        if live.get("is_online") == "1" and not (is_here and row and row["is_online"]):
            yield f"{driver} is online in {zone} in Redis, and not in Postgres"
        if is_here and live.get("trip_id", "") != trips.get(driver, ""):
            yield f"{driver} has {trips.get(driver)} in Postgres and {live.get('trip_id')} in Redis"
    for driver, row in evidence.drivers.items():
        live = evidence.live_drivers.get((row["zone"], driver), {})
        if not row["is_online"] and not live:
            continue
        names = ("availability_status", "vehicle_type")
        ours = (*(row[name] for name in names), row["is_online"], row["version"])
        theirs = (
            *(live.get(name) for name in names), live.get("is_online") == "1", int(live.get("version", -1))
        )  # fmt: skip
        if ours != theirs:
            yield f"{driver} is {ours} in Postgres and {theirs} in Redis"
    for zone, vehicle, driver in evidence.on_map:
        row = evidence.drivers.get(driver)
        if row is None or (row["zone"], row["vehicle_type"]) != (zone, vehicle) or driver in trips:
            yield f"{driver} is on the map of {zone} as {vehicle}, where they are not free"


def nothing_is_stuck(evidence: Evidence) -> Iterator[str]:
    """Once quiet, no trip is live, and no claim, offer or wave stands."""
    for trip_id, trip in evidence.trips.items():
        if trip["current_status"] not in FINAL:
            yield f"{trip_id} is still {trip['current_status']}"
    for kind, zone, name in evidence.pending_work:
        yield f"a {kind} of {zone} is left: {name}"


#: The promises, in the order in which a breach is best read.
def offers_end_after_they_were_made(evidence: Evidence) -> Iterator[str]:
    """No offer has the outcome of an earlier one."""
    for trip_id, driver, wave in evidence.offers_too_late:
        yield f"the offer of {trip_id} to {driver} in wave {wave} ended before it was made"


CHECKS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    one_winner,
    successes_are_durable,
    one_answer_a_key,
    versions_are_gapless,
    trips_have_an_order,
    drivers_have_an_order,
    every_event_is_heard,
    limits_are_kept,
    redis_equals_postgres,
    nothing_is_stuck,
    offers_end_after_they_were_made,
)


def check(evidence: Evidence) -> list[str]:
    """Every breach of every promise, each with the name of its check."""
    return [f"{check.__name__}: {breach}" for check in CHECKS for breach in check(evidence)]


def _successes(evidence: Evidence) -> Iterator[Attempt]:
    return (attempt for attempt in evidence.history.attempts if attempt.is_success)


def _effect(attempt: Attempt) -> tuple[str, int, str] | None:
    """The trip, its version and the event that an answered success says to be its own."""
    if attempt.endpoint.endswith("/create"):
        event: str | None = "created"
    elif attempt.endpoint.endswith("/cancel"):
        event = "cancelled"
    else:
        event = EVENTS.get(attempt.body.get("action", ""))
    if event is None:
        return None
    trip = attempt.answer["trip"]
    return trip["id"], trip["version"], event
