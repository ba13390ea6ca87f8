"""The sockets of this server, by whose they are."""

from __future__ import annotations

from typing import Protocol


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

    def deliver(self, addresses: list[str], frame: bytes) -> None:
        """Sends a frame to every socket of every addressee."""
        for address in addresses:
            for listener in self._listeners.get(address, ()):
                listener.send(frame, replaces=_position_of(frame))

    def resync(self) -> None:
        """The link between the servers was down: everybody gets their state anew."""
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener.resync()


_POSITION = b'{"type":"driver_location","trip_request_id":"'


def _position_of(frame: bytes) -> str | None:
    """Positions of one trip replace each other; every other frame is kept."""
    if not frame.startswith(_POSITION):
        return None
    return frame[len(_POSITION) : frame.index(b'"', len(_POSITION))].decode()
