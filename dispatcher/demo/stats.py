"""Statistics of the simulated apps: counts, latencies, and a record of each trip."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

#: The live rate of accepts is over this many seconds.
_RATE_WINDOW_S: Final = 5.0


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The sample that `share` of all samples do not exceed (nearest rank); None without any."""
    if not samples:
        return None
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


@dataclass(slots=True)
class TripRecord:
    """One trip as its apps saw it. Times are seconds of the monotonic clock, None if not yet."""

    requested_at: float
    status: str = "requested"
    version: int = -1
    offered_at: float | None = None
    accept_sent_at: dict[str, float] = field(default_factory=dict)
    assigned_at: float | None = None
    wave: int = 0
    #: Whether a free driver was within the widest wave while the trip waited.
    reachable: bool = False


@dataclass(slots=True)
class Stats:
    """All counters and samples of one city."""

    counts: Counter[str] = field(default_factory=Counter)
    #: Samples in seconds, by name.
    latencies: dict[str, list[float]] = field(default_factory=dict)
    trips: dict[str, TripRecord] = field(default_factory=dict)
    #: Successes that the server answered, as (trip id, version). Each must be in Postgres.
    answered: list[tuple[str, int]] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    #: Errors of the apps' own code: the demo is broken, whatever the server did.
    app_errors: list[BaseException] = field(default_factory=list)
    accepts_at: list[float] = field(default_factory=list)

    def add_latency(self, name: str, seconds: float) -> None:
        """Adds a sample of a latency."""
        self.latencies.setdefault(name, []).append(seconds)

    def keep_error(self, task: asyncio.Task[None]) -> None:
        """Done callback of an app's task: keeps the error that it ended with."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.app_errors.append(error)

    def count_accept(self) -> None:
        """Counts an accept that won its trip."""
        self.counts["winners"] += 1
        self.accepts_at.append(time.monotonic())

    def accepts_per_s(self) -> float:
        """Won accepts a second, over the last few seconds."""
        now = time.monotonic()
        self.accepts_at = [at for at in self.accepts_at if now - at < _RATE_WINDOW_S]
        return len(self.accepts_at) / _RATE_WINDOW_S

    def trip_states(self) -> dict[str, int]:
        """Trips by state."""
        return dict(Counter(record.status for record in self.trips.values()))

    def summary(self) -> dict[str, Any]:
        """Counts and percentiles, as the view shows them."""
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
        """The summary, with the totals that are known at the end."""
        records = list(self.trips.values())
        assigned = [record for record in records if record.assigned_at is not None]
        reachable = [record for record in records if record.reachable or record.assigned_at is not None]
        return self.summary() | {
            "created": sum(record.version >= 0 for record in records),
            "assigned": len(assigned),
            "reachable": len(reachable),
            "waves": dict(Counter(str(record.wave) for record in assigned)),
            "answered": self.answered,
            "mismatched": self.mismatches[:10],
        }
