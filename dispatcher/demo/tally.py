"""What the apps of the city saw: counts, latencies, and the story of each trip."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

#: Live rates are over this many seconds.
_RATE_S: Final = 5.0


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The sample that `share` of all samples do not exceed (nearest rank); None without any."""
    if not samples:
        return None
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


@dataclass(slots=True)
class TripStory:
    """One trip as its apps saw it. Times are of the monotonic clock; None: not yet."""

    requested_at: float
    status: str = "requested"
    version: int = -1
    offered_at: float | None = None
    accept_sent_at: dict[str, float] = field(default_factory=dict)
    assigned_at: float | None = None
    wave: int = 0
    #: A driver who was free was within reach at some time while the trip waited.
    reachable: bool = False


@dataclass(slots=True)
class Tally:
    """Everything that is counted."""

    counts: Counter[str] = field(default_factory=Counter)
    #: By name, in seconds.
    latencies: dict[str, list[float]] = field(default_factory=dict)
    trips: dict[str, TripStory] = field(default_factory=dict)
    #: Answered successes: (trip id, version). Each must be in Postgres.
    answered: list[tuple[str, int]] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    #: Errors of the apps themselves: the demo is broken, whatever the server did.
    bugs: list[BaseException] = field(default_factory=list)
    accepts_at: list[float] = field(default_factory=list)

    def took(self, name: str, seconds: float) -> None:
        """One more sample of a latency."""
        self.latencies.setdefault(name, []).append(seconds)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Callback of an app's task: keeps the error that it ended with."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.bugs.append(error)

    def accepted(self) -> None:
        """A driver got a trip."""
        self.counts["winners"] += 1
        self.accepts_at.append(time.monotonic())

    def accepts_per_s(self) -> float:
        """Trips that drivers got a second, of late."""
        now = time.monotonic()
        self.accepts_at = [at for at in self.accepts_at if now - at < _RATE_S]
        return len(self.accepts_at) / _RATE_S

    def trip_states(self) -> dict[str, int]:
        """Trips by state."""
        return dict(Counter(story.status for story in self.trips.values()))

    def summary(self) -> dict[str, Any]:
        """Counts and percentiles, as they go to the view."""
        return {
            "counts": dict(self.counts),
            "trips": self.trip_states(),
            "latencies": {
                name: [len(samples), percentile(samples, 0.50), percentile(samples, 0.99)]
                for name, samples in self.latencies.items()
            },
            "accepts_per_s": self.accepts_per_s(),
            "mismatches": len(self.mismatches),
        }

    def outcome(self) -> dict[str, Any]:
        """The summary, and what only the end tells."""
        stories = list(self.trips.values())
        assigned = [story for story in stories if story.assigned_at is not None]
        reachable = [story for story in stories if story.reachable or story.assigned_at is not None]
        return self.summary() | {
            "created": sum(story.version >= 0 for story in stories),
            "assigned": len(assigned),
            "reachable": len(reachable),
            "waves": dict(Counter(str(story.wave) for story in assigned)),
            "answered": self.answered,
            "mismatched": self.mismatches[:10],
        }
