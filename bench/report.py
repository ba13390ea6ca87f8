"""The output of a bench script: the machine, a progress bar, tables, then JSON and a plot."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from harness.figures import Run, Summary
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PACKAGES = ("aiohttp", "uvloop", "redis", "hiredis", "asyncpg", "orjson", "PyJWT", "limits", "scipy")


def processor() -> str:
    """The CPU's name; `platform.processor` is empty on most Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    return {
        "processor": processor(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{psutil.getloadavg()[0]:.2f}",
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Report:
    """One script's output. Construct it first: it prints before anything is measured."""

    def __init__(self, name: str, title: str, settings: dict[str, Any], *, folder: Path) -> None:
        self.name = name
        self.title = title
        self.folder = folder
        # Into a file or a pipe, rich would take 80 columns, and the tables need more.
        self.console = Console(width=None if sys.stdout.isatty() else 120)
        self.document: dict[str, Any] = {
            "name": name,
            "title": title,
            "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "machine": machine(),
            "versions": versions(),
            "settings": settings,
            "results": {},
        }
        self.console.print(f"[bold]{title}[/]")
        for section in ("machine", "versions", "settings"):
            self._print_section(section)

    def add(self, section: str, values: dict[str, Any]) -> None:
        """Say more about the set-up (engines and their settings) once it is known."""
        self.document.setdefault(section, {}).update(values)
        self._print_section(section, values)

    def _print_section(self, section: str, values: dict[str, Any] | None = None) -> None:
        shown = self.document[section] if values is None else values
        line = ", ".join(f"{name} {value}" for name, value in shown.items())
        self.console.print(f"[dim]{section}:[/] {line}", highlight=False)

    def progress(self) -> Progress:
        """Without a thread of its own: between steps this process must not use the CPU."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            auto_refresh=False,
        )

    def run_interleaved(
        self, variants: dict[str, Callable[[int], Run]], rounds: int, *, what: str = ""
    ) -> dict[str, Summary]:
        """Run the variants A B C A B C …, each called with the number of its round."""
        summaries = {name: Summary(name) for name in variants}
        with self.progress() as progress:
            task = progress.add_task(what, total=rounds * len(variants))
            for number in range(rounds):
                for name, run in variants.items():
                    progress.update(task, description=f"{what} {name}".strip(), refresh=True)
                    summaries[name].runs.append(run(number))
                    progress.update(task, advance=1, refresh=True)
        return summaries

    def results(self, section: str, values: Any) -> None:
        self.document["results"][section] = values

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def write(self, draw: Callable[[Any], None] | None = None, *, panels: int = 1) -> Path:
        """Write the JSON and, with `draw(figure's axes)`, the plot beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(self.document, indent=1) + "\n")
        if draw is not None:
            plot = path.with_suffix(".png")
            _plot(draw, panels, self._caption(), plot)
            self.console.print(f"wrote {path} and {plot.name}", highlight=False, soft_wrap=True)
        return path

    def _caption(self) -> str:
        about = self.document["machine"]
        return f"{self.title}\n{about['cores']} x {about['processor']}, {self.document['date']}"


def _plot(draw: Callable[[Any], None], panels: int, caption: str, path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - half a second that load generators need not pay

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(1, panels, figsize=(5.5 * panels, 4.2), squeeze=False)
    draw(axes[0] if panels > 1 else axes[0][0])
    figure.suptitle(caption, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def load_columns() -> list[str]:
    latency = ["p50 ms", "p90 ms", "p99 ms", "p99.9 ms"]
    return ["", "per second", *latency, "µs server", "µs Redis", "µs Postgres"]


def load_row(summary: Summary) -> list[str]:
    latency, cpu = summary.latency_ms, summary.cpu_us
    return [
        summary.name,
        f"{summary.rate:,.0f}",
        *(f"{latency[p]:.2f}" if p in latency else "" for p in ("p50", "p90", "p99", "p99.9")),
        *(f"{cpu[part]:.1f}" if part in cpu else "" for part in ("server", "redis", "postgres")),
    ]
