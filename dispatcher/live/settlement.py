"""What one change tells the live state and the sockets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from dispatcher.core.drivers import Driver
from dispatcher.core.trips import Trip


class SettleEffect(StrEnum):
    """What a change does to its driver in the live state."""

    TAKE = "take"  # the trip is theirs, and they get no offers
    FREE = "free"  # of the trip
    STATE = "state"  # their availability changes


class Message(NamedTuple):
    """A frame (JSON) for the sockets of users, by address (role:id)."""

    to: Sequence[str]
    frame: str


# Not frozen: that takes four times as long to make, and each change makes one.
@dataclass(slots=True)
class Settlement:
    """What the live state is to be told of one change, all of it optional.

    `before` is the trip as it was claimed: only what differs is sent. `driver` is the driver's new
    availability, `driver_vehicle_type` names the geo set they leave or join. `event` is JSON for the
    stream, `messages` go to sockets. `inboxes` are drivers who hold an offer. `arrives` is the address
    of a user whose sockets' servers may not listen to this zone yet: they are told first.
    """

    trip: Trip | None = None
    before: Trip | None = None
    driver_id: str = ""
    driver_vehicle_type: str = ""
    effect: SettleEffect | None = None
    driver: Driver | None = None
    barred_driver: str = ""
    inboxes: Sequence[str] = ()
    event: str = ""
    messages: Sequence[Message] = ()
    arrives: str = ""

    @property
    def first_frame(self) -> str:
        """What whoever arrives is told first, or empty."""
        first = self.messages[0] if self.messages else None
        return first.frame if first is not None and self.arrives in first.to else ""
