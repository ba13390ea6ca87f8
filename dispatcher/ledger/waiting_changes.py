"""Changes on their way to Postgres: those that wait for a batch, and those whose row is locked."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from dispatcher.core.idempotency import KeyedAnswer
from dispatcher.ledger.changes import Change, Outcome

#: How often held changes are looked at: soon after their row is free, and at no cost to speak of.
_LOOK_AGAIN_S: Final = 0.05


@dataclass(slots=True, eq=False)
class WaitingChange:
    """A change, the answer to keep for its key, and the future of what becomes of it."""

    change: Change
    answer: KeyedAnswer | None
    #: Until when it may be sent to Postgres, by the monotonic clock.
    send_by: float = math.inf
    outcome: asyncio.Future[Outcome] = field(default_factory=asyncio.Future)
    #: Whether it is at Postgres now, or was and nobody knows what became of it.
    is_sent: bool = False
    #: Until when its row may stay locked by others, by the monotonic clock; None: it is not.
    give_up_at: float | None = None

    def subjects(self) -> list[Any]:
        """What no other change of the same batch may touch."""
        change = self.change
        found: list[Any] = []
        if change.trip_id:
            found.append(("trip", change.trip_id))
        if driver := change.set_driver or change.required_driver:
            found.append(("driver", driver))
        if self.answer is not None:
            key = self.answer.key
            found.append(("key", key.user_id, key.endpoint, key.key))
        return found


class HeldChanges:
    """Changes whose row another session has locked. They wait apart, so that no neighbour does."""

    def __init__(self) -> None:
        self._changes: list[WaitingChange] = []
        self._subjects: set[Any] = set()
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def changes(self) -> list[WaitingChange]:
        """All of them, in the order in which they came."""
        return list(self._changes)

    def add(self, changes: Iterable[WaitingChange], *, wait_s: float) -> None:
        """Holds changes back, for `wait_s` from the first time that they were."""
        for change in changes:
            if change.give_up_at is None:
                change.give_up_at = min(time.monotonic() + wait_s, change.send_by)
            self._changes.append(change)
            self._subjects.update(change.subjects())
        self._look_at = time.monotonic() + _LOOK_AGAIN_S

    def touches(self, subjects: Iterable[Any]) -> bool:
        """Whether a change of these subjects must not overtake one that is held."""
        return not self._subjects.isdisjoint(subjects)

    def due_in_s(self) -> float | None:
        """When to look at them again; None where there are none."""
        return max(0.0, self._look_at - time.monotonic()) if self._changes else None

    def take_overdue(self) -> list[WaitingChange]:
        """Those that have waited for long enough; they are held no more."""
        now = time.monotonic()
        overdue = [c for c in self._changes if c.give_up_at is not None and c.give_up_at <= now]
        gone = {id(change) for change in overdue}
        self._keep([c for c in self._changes if id(c) not in gone and not c.outcome.done()])
        return overdue

    def take_free(self, locked: set[Any]) -> list[WaitingChange]:
        """Those that touch nothing locked, and no change before them that does; held no more."""
        touched, free, kept = set(locked), [], []
        for change in self._changes:
            subjects = change.subjects()
            if touched.isdisjoint(subjects):
                free.append(change)
            else:
                touched.update(subjects)
                kept.append(change)
        self._keep(kept)
        return free

    def _keep(self, changes: list[WaitingChange]) -> None:
        self._changes = changes
        self._subjects = {subject for change in changes for subject in change.subjects()}
        self._look_at = time.monotonic() + _LOOK_AGAIN_S
