"""The one table of transitions: who may take a trip from which states to which, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from dispatcher.core.actors import Role
from dispatcher.core.limits import LimitClass
from dispatcher.core.trips import Status, Trip


class Event(StrEnum):
    """`trip_events.event`: what happened to a trip."""

    CREATED = "created"
    ACCEPTED = "accepted"
    ARRIVED = "arrived"
    STARTED = "started"
    COMPLETED = "completed"
    RELEASED = "released"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def response_code(self) -> str:
        """The `response_code` of the answer to the change."""
        return f"trip_{self}"


class DriverEffect(StrEnum):
    """What a transition does to the trip's driver."""

    NONE = "none"
    TAKES = "takes"
    KEEPS = "keeps"
    FREED = "freed"  # the driver is free again, the trip keeps their name for the record
    CLEARED = "cleared"  # the driver is free again and the trip has no driver any more


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table: who may take a trip from which states to which, and what it means.

    `stamp` is the column that takes the time.
    """

    action: str
    roles: frozenset[Role]
    sources: frozenset[Status]
    target: Status
    driver: DriverEffect
    event: Event
    stamp: str | None
    limit_class: LimitClass = LimitClass.GENERAL

    @property
    def frees_driver(self) -> bool:
        """Whether the trip's driver is free again afterwards."""
        return self.driver is DriverEffect.FREED or self.driver is DriverEffect.CLEARED

    def apply(self, trip: Trip, at_ms: int, **changes: Any) -> Trip:
        """The trip once this has happened at `at_ms`; `changes` are further columns."""
        changes |= {
            "current_status": self.target,
            "version": trip.version + 1,
            "updated_at": at_ms,
        }
        if self.driver is DriverEffect.CLEARED:
            changes |= {
                "driver_id": None,
                "driver_vehicle_type": None,
                "locked_at": None,
                "accepted_at": None,
                "arrived_at": None,
            }
        elif self.driver is DriverEffect.TAKES:
            changes["locked_at"] = at_ms
        if self.stamp:
            changes[self.stamp] = at_ms
        return trip.changed(changes)


_DRIVER: Final = frozenset({Role.DRIVER})
_PENDING: Final = frozenset({Status.PENDING})
_NOT_STARTED: Final = frozenset({Status.ACCEPTED, Status.ARRIVED})

ACCEPT: Final = Transition(
    "accept", _DRIVER, _PENDING, Status.ACCEPTED,
    DriverEffect.TAKES, Event.ACCEPTED, "accepted_at", LimitClass.TRIP_ACCEPT,
)  # fmt: skip
#: An operator gives the trip to a driver of their choice, who has to be as free as to accept it.
ASSIGN: Final = Transition(
    "assign", frozenset({Role.ADMIN}), _PENDING, Status.ACCEPTED,
    DriverEffect.TAKES, Event.ACCEPTED, "accepted_at",
)  # fmt: skip
ARRIVE: Final = Transition(
    "arrive", _DRIVER, frozenset({Status.ACCEPTED}), Status.ARRIVED,
    DriverEffect.KEEPS, Event.ARRIVED, "arrived_at",
)  # fmt: skip
START: Final = Transition(
    "start", _DRIVER, frozenset({Status.ARRIVED}), Status.ONGOING,
    DriverEffect.KEEPS, Event.STARTED, "trip_start_time",
)  # fmt: skip
COMPLETE: Final = Transition(
    "complete", _DRIVER, frozenset({Status.ONGOING}), Status.COMPLETED,
    DriverEffect.FREED, Event.COMPLETED, "completed_at",
)  # fmt: skip
#: The driver of a trip that is under way has vanished, and it is ended without them. It is completed and
#: not cancelled, since the ride was begun and is owed; who ended it, and why, is in the event. It counts
#: like a cancellation: nobody ends many trips in a minute.
END: Final = Transition(
    "end", frozenset({Role.CUSTOMER, Role.ADMIN}), frozenset({Status.ONGOING}), Status.COMPLETED,
    DriverEffect.FREED, Event.COMPLETED, "completed_at", LimitClass.TRIP_CANCEL,
)  # fmt: skip
#: The driver cancels: the trip is offered to others.
GIVE_BACK: Final = Transition(
    "cancel", _DRIVER, _NOT_STARTED, Status.PENDING,
    DriverEffect.CLEARED, Event.RELEASED, None, LimitClass.TRIP_CANCEL,
)  # fmt: skip
#: The customer or an admin cancels: the trip is over.
CANCEL: Final = Transition(
    "cancel", frozenset({Role.CUSTOMER, Role.ADMIN}), _PENDING | _NOT_STARTED, Status.CANCELLED,
    DriverEffect.FREED, Event.CANCELLED, "cancelled_at", LimitClass.TRIP_CANCEL,
)  # fmt: skip
#: The driver goes offline, is taken offline or is lost: part of a change of availability.
RELEASE: Final = Transition(
    "release", frozenset({Role.DRIVER, Role.SYSTEM, Role.ADMIN}), _NOT_STARTED, Status.PENDING,
    DriverEffect.CLEARED, Event.RELEASED, None,
)  # fmt: skip
EXPIRE: Final = Transition(
    "expire", frozenset({Role.SYSTEM}), _PENDING, Status.EXPIRED,
    DriverEffect.NONE, Event.EXPIRED, "expired_at",
)  # fmt: skip

TRANSITIONS: Final = (ACCEPT, ASSIGN, ARRIVE, START, COMPLETE, END, GIVE_BACK, CANCEL, RELEASE, EXPIRE)
#: Part of another change, the dispatcher's own, or with a driver to name: nobody asks for them by word.
_INTERNAL: Final = (ASSIGN, RELEASE, EXPIRE)
#: What each role may ask for; `decline` changes an offer, not a trip.
ACTIONS: Final = {(role, t.action): t for t in TRANSITIONS if t not in _INTERNAL for role in t.roles}
