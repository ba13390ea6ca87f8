"""The output of the demo: a live dashboard in a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dispatcher.demo.invariants import Finding

State = dict[str, Any]

#: Between two lines of a plain output.
_LINE_INTERVAL_S: Final = 10.0
_TRIP_STATES: Final = (
    "pending", "accepted", "arrived", "ongoing", "completed", "cancelled", "expired", "requested",
    "not created",
)  # fmt: skip
_DRIVER_STATES: Final = ("free", "to pickup", "riding", "on a break", "away")
_LATENCIES: Final = ("create", "creation to offer", "accept", "accept to customer", "time to assignment")


class View:
    """Shows the states of the city as they arrive; a context manager."""

    def __init__(self, console: Console, *, begins: datetime, speed: float, trips: int) -> None:
        self._console = console
        self._begins = begins
        self._speed = speed
        self._trips = trips
        self._live: Live | None = None
        self._last_line = 0.0

    def __enter__(self) -> View:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def print_line(self, text: str) -> None:
        """Prints one line about the progress."""
        self._console.print(text, soft_wrap=True, highlight=False)

    def update(self, state: State) -> None:
        """Shows the present state of the city."""
        if self._live is not None:
            self._live.update(self._dashboard(state))
        elif time.monotonic() - self._last_line >= _LINE_INTERVAL_S and state["simulated_s"] is not None:
            self._last_line = time.monotonic()
            self.print_line(self._status_line(state))

    def _clock(self, state: State) -> str:
        if state["simulated_s"] is None:
            return "drivers come online"
        return f"{self._begins + timedelta(seconds=state['simulated_s']):%a %H:%M}"

    def _status_line(self, state: State) -> str:
        parts = [
            self._clock(state),
            f"trips {state['replayed']}/{self._trips}: {_format_counts(state['trips'], _TRIP_STATES)}",
            f"drivers: {_format_counts(state['drivers'], _DRIVER_STATES)}",
            f"offers {state['counts'].get('offers', 0)}",
            f"accepts {state['accepts_per_s']:.1f}/s",
        ]
        for name in ("creation to offer", "accept"):
            if name in state["latencies"]:
                _, p50, p99 = state["latencies"][name]
                parts.append(f"{name} {_format_time(p50)}/{_format_time(p99)}")
        return " | ".join(parts)

    def _dashboard(self, state: State) -> RenderableType:
        count = state["counts"].get
        grid = Table.grid(padding=(0, 2))
        for name, value, more in (
            ("trips", f"{state['replayed']} of {self._trips}",
             _format_counts(state["trips"], _TRIP_STATES)),
            ("drivers", sum(state["drivers"].values()),
             _format_counts(state["drivers"], _DRIVER_STATES)),
            ("offers", count("offers", 0),
             f"declined {count('declines', 0)}, ignored {count('offers ignored', 0)}"),
            ("accepts", f"{state['accepts_per_s']:.1f}/s",
             f"won {count('winners', 0)}, refused {count('refused', 0)}"),
            ("requests", count("requests", 0),
             f"replayed {count('replayed', 0)}, mismatched {state['mismatches']}"),
            ("connections", count("connections", 0),
             f"dropped {count('drops', 0)}, drivers lost {count('drivers lost', 0)}"),
        ):  # fmt: skip
            grid.add_row(name, str(value), more)
        title = f"{self._clock(state)}, {self._speed:g} times real speed; Ctrl-C ends it"
        return Panel(
            Group(grid, Text(""), _latency_table(state)), title=title, box=box.ROUNDED, expand=False
        )

    def report(self, state: State, findings: Sequence[Finding]) -> None:
        """Prints the table at the end, and examples of what is broken."""
        rows = _report_rows(state, findings)
        if self._console.is_terminal:
            table = Table(box=box.SIMPLE_HEAD, show_header=False)
            for name, value, is_broken in rows:
                table.add_row(name, value, style="bold red" if is_broken else "")
            self._console.print(table)
        else:
            for name, value, _ in rows:
                self.print_line(f"{name:<40} {value}")
        for finding in findings:
            for example in finding.examples:
                self.print_line(f"broken: {finding.name}: {example}")
        for example in state["outcome"]["mismatched"]:
            self.print_line(f"broken: replay: {example}")


def _report_rows(state: State, findings: Sequence[Finding]) -> list[tuple[str, str, bool]]:
    counts, outcome = state["counts"], state["outcome"]
    count = counts.get
    assigned, reachable, created = outcome["assigned"], outcome["reachable"], outcome["created"]
    rows = [
        ("trips", f"{created} created: {_format_counts(state['trips'], _TRIP_STATES)}"),
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
        *((name, f"p50 {_format_time(p50)}, p99 {_format_time(p99)} ({n})")
          for name, (n, p50, p99) in _measured(state)),
    ]  # fmt: skip
    marked = [(name, value, False) for name, value in rows]
    marked.append(("replay mismatches", str(state["mismatches"]), state["mismatches"] > 0))
    marked += [(f.name, str(f.violations), f.violations > 0) for f in findings]
    return marked


def _latency_table(state: State) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("", "samples", "p50", "p99"):
        table.add_column(column, justify="right" if column else "left")
    for name, (n, p50, p99) in _measured(state):
        table.add_row(name, str(n), _format_time(p50), _format_time(p99))
    return table


def _measured(state: State) -> list[tuple[str, tuple[int, float, float]]]:
    return [(name, state["latencies"][name]) for name in _LATENCIES if name in state["latencies"]]


def _format_counts(counts: dict[str, int], order: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in order if counts.get(name)) or "none"


def _format_waves(waves: dict[str, int]) -> str:
    by_number = sorted((int(wave), trips) for wave, trips in waves.items())
    return ", ".join(
        f"{trips} {f'in wave {wave}' if wave else 'before any'}" for wave, trips in by_number
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _format_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
