"""What the attempts of one process hold, to keep them apart: trips, drivers and keys, by lease."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from dispatcher.core.errors import StoreUnavailable

#: Subjects that are held at most: three for each change that may wait for its commit.
_MAX_HELD: Final = 30_000


class HeldSubjects:
    """Who holds what. All leases are of one length, so those that began first end first."""

    def __init__(self) -> None:
        # The token of the attempt, and the end of its lease by the monotonic clock.
        self._held: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def make_room(self) -> None:
        """Forgets leases that are over. Raises StoreUnavailable where too much is held."""
        now = time.monotonic()
        while self._held:
            subject, (_, until) = next(iter(self._held.items()))
            if until > now:
                break
            del self._held[subject]
        if len(self._held) >= _MAX_HELD:
            raise StoreUnavailable("too many claims wait for postgres")

    def hold(self, token: str, subjects: Iterable[str], *, lease_ms: int) -> None:
        """Has the attempt of this token hold subjects that nobody holds."""
        until = time.monotonic() + lease_ms / 1000
        for subject in subjects:
            self._held[subject] = (token, until)

    def is_held(self, subject: str) -> bool:
        """Whether an attempt holds it, and its lease is not over."""
        held = self._held.get(subject)
        if held is None:
            return False
        if held[1] <= time.monotonic():
            del self._held[subject]
            return False
        return True

    def holder(self, subject: str) -> str:
        """The token of the attempt that holds it, or empty."""
        return self._held[subject][0] if self.is_held(subject) else ""

    def drop(self, token: str, subjects: Iterable[str]) -> None:
        """Lets go of those of the subjects that the attempt of this token holds."""
        for subject in subjects:
            if self._held.get(subject, ("",))[0] == token:
                del self._held[subject]
