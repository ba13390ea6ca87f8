"""What a change tells others: the row's payload, the stream's event, the messages to sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from dispatcher.core.actors import Actor, Role, address_of
from dispatcher.core.drivers import Driver
from dispatcher.core.obstacles import Obstacle
from dispatcher.core.times import iso
from dispatcher.core.transitions import Event
from dispatcher.core.trips import Trip
from dispatcher.live.settlement import Message


def event_payload(token: str, trip: Trip, **more: Any) -> str:
    """The payload of a `trip_events` row: what replaying the history needs, and whose attempt."""
    payload: dict[str, Any] = {
        "attempt": token,
        "current_status": trip.current_status,
        "driver_id": trip.driver_id,
        **more,
    }
    return orjson.dumps(payload).decode()


def trip_json(trip: Trip) -> orjson.Fragment:
    """The trip as JSON, made once for the answer, the stream and the sockets."""
    return orjson.Fragment(orjson.dumps(trip.to_json()))


def trip_body(response_code: str, trip: orjson.Fragment) -> bytes:
    """The body of a success that concerns a trip."""
    return orjson.dumps({"response_code": response_code, "trip": trip})


def driver_body(driver: Driver, released: Trip | None, obstacles: Sequence[Obstacle]) -> bytes:
    """The body of a change of availability; `obstacles` are what keeps offers away."""
    return orjson.dumps(
        {
            "response_code": "availability_updated",
            "driver": driver.to_json(),
            "released_trip": released.to_json() if released else None,
            "keeps_offers_away": obstacles,
        }
    )


def stream_event(event: Event, actor: Actor, at_ms: int, trip: orjson.Fragment) -> str:
    """The entry in the zone's stream, for other services."""
    return orjson.dumps(
        {
            "event": event,
            "actor_id": actor.user_id,
            "actor_role": actor.role,
            "at": iso(at_ms),
            "trip": trip,
        }
    ).decode()


def trip_messages(
    event: Event,
    trip: Trip,
    as_json: orjson.Fragment,
    *,
    former_driver: str | None = None,
    offered: Sequence[str] = (),
) -> list[Message]:
    """What sockets are told of a trip.

    The customer and the driver (who may be the former one) get the trip; whoever still holds an
    offer of it learns that it is withdrawn.
    """
    to = [address_of(Role.CUSTOMER, trip.customer_id)]
    driver = trip.driver_id or former_driver
    if driver:
        to.append(address_of(Role.DRIVER, driver))
    messages = [_message(to, {"type": "trip", "event": event, "trip": as_json})]
    others = [address_of(Role.DRIVER, d) for d in offered if d != trip.driver_id]
    if others and event is not Event.RELEASED:
        frame = {"type": "offer_withdrawn", "trip_request_id": trip.id, "reason": event}
        messages.append(_message(others, frame))
    return messages


def driver_message(driver: Driver) -> Message:
    """Tells a driver their new state: somebody else has changed it."""
    frame = {"type": "driver", "driver": driver.to_json()}
    return _message([address_of(Role.DRIVER, driver.user_id)], frame)


def _message(to: Sequence[str], frame: Mapping[str, Any]) -> Message:
    return Message(to, orjson.dumps(frame).decode())
