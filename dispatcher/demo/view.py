"""What the demo shows: a live picture in a terminal, plain lines elsewhere, and a table at the end."""

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

_LINE_S: Final = 10.0
_TRIPS: Final = (
    "pending", "accepted", "arrived", "ongoing", "completed", "cancelled", "expired", "requested",
    "not created",
)  # fmt: skip
_DRIVERS: Final = ("free", "to pickup", "riding", "on a break", "away")
_LATENCIES: Final = ("create", "creation to offer", "accept", "accept to customer", "time to assignment")


class View:
    """Shows the states of the city as they come; a context manager."""

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

    def say(self, text: str) -> None:
        """One line of what is going on."""
        self._console.print(text, soft_wrap=True, highlight=False)

    def show(self, state: State) -> None:
        """The present state."""
        if self._live is not None:
            self._live.update(self._picture(state))
        elif time.monotonic() - self._last_line >= _LINE_S and state["simulated_s"] is not None:
            self._last_line = time.monotonic()
            self.say(self._line(state))

    def _clock(self, state: State) -> str:
        if state["simulated_s"] is None:
            return "drivers come online"
        return f"{self._begins + timedelta(seconds=state['simulated_s']):%a %H:%M}"

    def _line(self, state: State) -> str:
        parts = [
            self._clock(state),
            f"trips {state['replayed']}/{self._trips}: {_listed(state['trips'], _TRIPS)}",
            f"drivers: {_listed(state['drivers'], _DRIVERS)}",
            f"offers {state['counts'].get('offers', 0)}",
            f"accepts {state['accepts_per_s']:.1f}/s",
        ]
        for name in ("creation to offer", "accept"):
            if name in state["latencies"]:
                _, p50, p99 = state["latencies"][name]
                parts.append(f"{name} {_time(p50)}/{_time(p99)}")
        return " | ".join(parts)

    def _picture(self, state: State) -> RenderableType:
        count = state["counts"].get
        grid = Table.grid(padding=(0, 2))
        for name, value, more in (
            ("trips", f"{state['replayed']} of {self._trips}", _listed(state["trips"], _TRIPS)),
            ("drivers", sum(state["drivers"].values()), _listed(state["drivers"], _DRIVERS)),
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
            Group(grid, Text(""), _latencies(state)), title=title, box=box.ROUNDED, expand=False
        )

    def report(self, state: State, findings: Sequence[Finding]) -> None:
        """The table at the end."""
        rows = _rows(state, findings)
        if self._console.is_terminal:
            table = Table(box=box.SIMPLE_HEAD, show_header=False)
            for name, value, is_bad in rows:
                table.add_row(name, value, style="bold red" if is_bad else "")
            self._console.print(table)
        else:
            for name, value, _ in rows:
                self.say(f"{name:<40} {value}")
        for finding in findings:
            for example in finding.examples:
                self.say(f"broken: {finding.name}: {example}")
        for example in state["outcome"]["mismatched"]:
            self.say(f"broken: replay: {example}")


def _rows(state: State, findings: Sequence[Finding]) -> list[tuple[str, str, bool]]:
    counts, outcome = state["counts"], state["outcome"]
    count = counts.get
    assigned, reachable, created = outcome["assigned"], outcome["reachable"], outcome["created"]
    rows = [
        ("trips", f"{created} created: {_listed(state['trips'], _TRIPS)}"),
        ("assigned", f"{assigned} ({_share(assigned, created)})"),
        ("  of those in reach of a free driver", f"{_share(assigned, reachable)} of {reachable}"),
        ("  by wave", _waves(outcome["waves"])),
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
        *((name, f"p50 {_time(p50)}, p99 {_time(p99)} ({n})")
          for name, (n, p50, p99) in _known(state)),
    ]  # fmt: skip
    marked = [(name, value, False) for name, value in rows]
    marked.append(("replay mismatches", str(state["mismatches"]), state["mismatches"] > 0))
    marked += [(f.name, str(f.violations), f.violations > 0) for f in findings]
    return marked


def _latencies(state: State) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("", "samples", "p50", "p99"):
        table.add_column(column, justify="right" if column else "left")
    for name, (n, p50, p99) in _known(state):
        table.add_row(name, str(n), _time(p50), _time(p99))
    return table


def _known(state: State) -> list[tuple[str, tuple[int, float, float]]]:
    return [(name, state["latencies"][name]) for name in _LATENCIES if name in state["latencies"]]


def _listed(counts: dict[str, int], order: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in order if counts.get(name)) or "none"


def _waves(waves: dict[str, int]) -> str:
    by_number = sorted((int(wave), trips) for wave, trips in waves.items())
    return ", ".join(
        f"{trips} {f'in wave {wave}' if wave else 'before any'}" for wave, trips in by_number
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
