"""The output of the demo: where to look, a live dashboard in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dispatcher.demo.invariants import Finding
from dispatcher.demo.report import (
    LATENCIES,
    TRIP_STATES,
    WORDS,
    State,
    format_counts,
    format_time,
    measured,
    report_rows,
    verdict,
)

#: Between two lines of a plain output.
_LINE_INTERVAL_S: Final = 10.0
#: Columns of the dashboard, whatever it says; a terminal may be narrower.
_WIDTH: Final = 100
#: Of its first columns: "connections", and "99999 of 99999".
_NAME_WIDTH: Final = 11
_NUMBER_WIDTH: Final = 14
_DRIVER_STATES: Final = ("free", "to pickup", "riding", "on a break", "away")
_ENDED: Final = ("completed", "cancelled", "expired", "not created")


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
        self.close()

    def close(self) -> None:
        """Ends the dashboard; what is printed from now on stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def print_line(self, text: str) -> None:
        """Prints one line about the progress."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

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
        now = f"{self._begins + timedelta(seconds=state['simulated_s']):%a %H:%M}"
        left = state["replayed"] - self._ended(state)
        return f"{now}, the last {left} trips end" if state["phase"] == "tail" else now

    def _ended(self, state: State) -> int:
        return sum(state["trips"].get(name, 0) for name in _ENDED)

    def _status_line(self, state: State) -> str:
        parts = [
            self._clock(state),
            f"trips {state['replayed']}/{self._trips}: {format_counts(state['trips'], TRIP_STATES)}",
            f"drivers: {format_counts(state['drivers'], _DRIVER_STATES)}",
            f"offers {state['counts'].get('offers', 0)}",
            f"accepts {state['accepts_per_s']:.1f}/s",
        ]
        for name in ("creation to offer", "accept"):
            if name in state["latencies"]:
                _, p50, p99 = state["latencies"][name]
                parts.append(f"{name} {format_time(p50)}/{format_time(p99)}")
        return " | ".join(parts)

    def _dashboard(self, state: State) -> RenderableType:
        count = state["counts"].get
        width = min(_WIDTH, self._console.width)
        grid = Table.grid(padding=(0, 2))
        # As wide as they are told: a column that gives way would wrap, and the panel would jump.
        for columns in (_NAME_WIDTH, _NUMBER_WIDTH, max(1, width - _NAME_WIDTH - _NUMBER_WIDTH - 8)):
            grid.add_column(width=columns, no_wrap=True, overflow="ellipsis")
        for name, value, more in (
            ("trips", f"{state['replayed']} of {self._trips}",
             format_counts(state["trips"], TRIP_STATES)),
            ("drivers", sum(state["drivers"].values()),
             format_counts(state["drivers"], _DRIVER_STATES)),
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
        return Panel(
            Group(self._progress(state, width), Text(""), grid, Text(""), _latency_table(state)),
            title=f"a city at {self._speed:g} times real speed; Ctrl-C ends it", box=box.ROUNDED,
            width=width,
        )  # fmt: skip

    def _progress(self, state: State, width: int) -> RenderableType:
        """How many of the day's trips have been asked for; then, how many of them have ended."""
        is_tail = state["phase"] == "tail"
        done = self._ended(state) if is_tail else state["replayed"]
        line = Table.grid(padding=(0, 2))
        line.add_column(width=38)
        line.add_row(
            self._clock(state), ProgressBar(total=max(1, self._trips), completed=done, width=width - 46)
        )
        return line

    def report(self, state: State, findings: Sequence[Finding]) -> None:
        """Prints the verdict, the table, what its words mean, and examples of what is broken."""
        sentence, holds = verdict(state, findings)
        rows = report_rows(state, findings)
        if self._console.is_terminal:
            style = "bold green" if holds else "bold red"
            self._console.print(Text(sentence, style=style), soft_wrap=True)
            table = Table(box=box.SIMPLE_HEAD, show_header=False)
            for name, value, is_broken in rows:
                table.add_row(name, value, style="bold red" if is_broken else "")
            self._console.print(table)
        else:
            self.print_line(sentence)
            for name, value, _ in rows:
                self.print_line(f"{name:<40} {value}")
        for finding in findings:
            for example in finding.examples:
                self.print_line(f"broken: {finding.name}: {example}")
        for example in state["outcome"]["mismatched"]:
            self.print_line(f"broken: replay: {example}")
        for word, meaning in WORDS:
            self._console.print(Text(f"{word}: {meaning}", style="dim"), soft_wrap=True)


def _latency_table(state: State) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column, width in (("", 20), ("samples", 9), ("p50", 10), ("p99", 10)):
        table.add_column(column, justify="right" if column else "left", width=width)
    known = dict(measured(state))
    for name in LATENCIES:  # also those that have no sample yet, so that the panel keeps its height
        n, *times = known.get(name, (0,))
        table.add_row(name, str(n), *map(format_time, times))
    return table
