"""What the demo says at the end: a verdict in one sentence, the table, and what its words mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dispatcher.demo.invariants import Finding

State = dict[str, Any]

TRIP_STATES: Final = (
    "pending", "accepted", "arrived", "ongoing", "completed", "cancelled", "expired", "requested",
    "not created",
)  # fmt: skip
LATENCIES: Final = ("create", "creation to offer", "accept", "accept to customer", "time to assignment")
#: The words of the table that a reader cannot guess.
WORDS: Final = (
    ("offer", "a trip shown to one driver until a deadline"),
    ("wave", "the offers of a trip that go out together; each next wave reaches further"),
    ("winner", "the one driver whose accept was committed; a trip given back has another one later"),
    ("refused", "accepts that came too late: the other drivers of a crowd"),
    ("replayed", "requests sent again with their key and answered again, byte for byte, without effect"),
    ("double assignment", "a trip with two drivers, or a driver with two trips: what may never be"),
    ("lost answer", "a success that an app was told of and that Postgres does not have"),
)


def verdict(state: State, findings: Sequence[Finding]) -> tuple[str, bool]:
    """One sentence, and whether every invariant held."""
    created, winners = state["outcome"]["created"], state["counts"].get("winners", 0)
    broken = [f"{f.violations} {f.name}" for f in findings if f.violations]
    broken += [f"{state['mismatches']} replay mismatches"] * bool(state["mismatches"])
    figures = [f"{created} trips", f"{winners} winners"]
    figures += broken or ["0 double assignments", "0 lost answers", "0 replay mismatches"]
    head = "an invariant is broken" if broken else "every invariant held"
    return f"{head}: {', '.join(figures)}", not broken


def report_rows(state: State, findings: Sequence[Finding]) -> list[tuple[str, str, bool]]:
    """Name, value, and whether it breaks an invariant."""
    counts, outcome = state["counts"], state["outcome"]
    count = counts.get
    assigned, reachable, created = outcome["assigned"], outcome["reachable"], outcome["created"]
    rows = [
        ("trips", f"{created} created: {format_counts(state['trips'], TRIP_STATES)}"),
        ("assigned", f"{assigned} ({_percent(assigned, created)})"),
        ("  of those in reach of a free driver", f"{_percent(assigned, reachable)} of {reachable}"),
        ("  by wave", _format_waves(outcome["waves"])),
        ("winners", f"{count('winners', 0)} of {count('accepts', 0)} accepts; "
                    f"{count('trips fought for', 0)} trips fought for by a crowd"),
        ("refused", str(count("refused", 0))),
        ("requests", f"{count('requests', 0)}, {count('repeated', 0)} repeated with the same key"),
        ("replayed", f"{count('replayed', 0)}; {count('passing', 0)} told to come again, "
                     f"{count('unanswered', 0)} cut off"),
        ("offers", f"{count('offers', 0)}: {count('declines', 0)} declined, "
                   f"{count('offers ignored', 0)} ignored"),
        ("connections", f"{count('connections', 0)}, {count('drops', 0)} dropped; "
                        f"{count('drivers lost', 0)} drivers lost and back"),
        *((name, f"p50 {format_time(p50)}, p99 {format_time(p99)} ({n})")
          for name, (n, p50, p99) in measured(state)),
    ]  # fmt: skip
    marked = [(name, value, False) for name, value in rows]
    marked.append(("replay mismatches", str(state["mismatches"]), state["mismatches"] > 0))
    marked += [(f.name, str(f.violations), f.violations > 0) for f in findings]
    return marked


def measured(state: State) -> list[tuple[str, tuple[int, float, float]]]:
    """Latencies by name: samples, median and 99th percentile in s."""
    return [(name, state["latencies"][name]) for name in LATENCIES if name in state["latencies"]]


def format_counts(counts: dict[str, int], order: Sequence[str]) -> str:
    """Counts that are not 0, in this order."""
    return ", ".join(f"{counts[name]} {name}" for name in order if counts.get(name)) or "none"


def _format_waves(waves: dict[str, int]) -> str:
    by_number = sorted((int(wave), trips) for wave, trips in waves.items())
    return ", ".join(
        f"{trips} {f'in wave {wave}' if wave else 'before any'}" for wave, trips in by_number
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def format_time(seconds: float) -> str:
    """A time in s or ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
