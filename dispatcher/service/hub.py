"""The sockets of this server, by whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson


class Listener(Protocol):
    """A socket: takes frames without waiting, and can be told the state anew."""

    def send(self, frame: bytes, *, replaces: str | None = None) -> None:
        """Queues a frame; one that `replaces` the same thing takes its place while it waits."""

    def resync(self) -> None:
        """Frames may have been lost: tell the client its state."""


class Hub:
    """Hands frames to the sockets of their addressees, if they are on this server."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Listener]] = {}

    def add(self, address: str, listener: Listener) -> None:
        """A socket of this user is open."""
        self._listeners.setdefault(address, set()).add(listener)

    def discard(self, address: str, listener: Listener) -> None:
        """It is closed."""
        listeners = self._listeners.get(address)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._listeners[address]

    def addresses(self) -> list[str]:
        """Whose sockets are open."""
        return list(self._listeners)

    def deliver(self, addresses: Sequence[str], frame: Mapping[str, Any]) -> None:
        """Sends a frame to every socket of every addressee; most have theirs on other servers."""
        here = [address for address in addresses if address in self._listeners]
        if here:
            text = orjson.dumps(frame)
            for address in here:
                self.hand_on(address, text)

    def hand_on(self, address: str, frame: bytes) -> None:
        """Sends a frame to every socket of a user. Raises ValueError, LookupError or TypeError where it
        is none."""
        listeners = self._listeners.get(address)
        if not listeners:
            return
        about = orjson.loads(frame)
        # Positions of one trip replace each other, and so do numbers in a queue; all others are kept.
        replaces = None
        if about["type"] == "driver_location":
            replaces = about["trip_request_id"]
        elif about["type"] == "queue":
            replaces = "queue"
        for listener in listeners:
            listener.send(frame, replaces=replaces)

    def resync(self, address: str) -> None:
        """What a user was told may have been lost: they get their state anew."""
        for listener in list(self._listeners.get(address, ())):
            listener.resync()
