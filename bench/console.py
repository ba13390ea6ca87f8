"""What a console costs that watches moving drivers: the server's CPU, and long tasks of its page."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from random import Random
from statistics import median
from typing import Any

from harness import engines, options
from harness.encoding import address, text_frame
from harness.fixtures import DRIVERS_AT, Fixtures
from harness.http_generator import HttpGenerator
from harness.load_process import LoadProcess
from harness.socket_load import SocketLoad
from report import Report

#: A longer task of the page is felt, in ms; more of the server's CPU, in %, is too much.
LONG_TASK_MS, RISE_PERCENT = 200, 5
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
#: Degrees that a car drives in a second: 10 m.
STEP = 0.0001
SETTLING_S = 3.0
#: Tasks from 50 ms on are told of by browsers.
WATCH_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.longTasks.push(task.duration);
}).observe({ type: "longtask", buffered: true });
"""


class MovingDrivers:
    """Drivers with a socket each, who drive straight on and report where they are once a second."""

    def __init__(self, fixtures: Fixtures, amount: int) -> None:
        random = Random(7)
        self.server = fixtures.server
        self.places = [
            (
                DRIVERS_AT["lat"] + random.uniform(-0.1, 0.1),
                DRIVERS_AT["lng"] + random.uniform(-0.1, 0.1),
                random.uniform(0, 2 * math.pi),
            )
            for _ in range(amount)
        ]  # fmt: skip
        self.seconds = 0
        self.generator = LoadProcess(SocketLoad)
        bearers = [fixtures.bearer("driver", name) for name in fixtures.drivers(amount)]
        opened = self.generator.call("open", *address(self.server.url), bearers)
        if opened.codes["welcome"] != amount:
            raise RuntimeError(f"not every driver was welcome: {dict(opened.codes)}")

    def drive(self, seconds: float) -> dict[str, float]:
        """Drives for so long; returns the CPU that it took, in % of a core, by process."""
        before, started = self.server.processes.cpu(), time.monotonic()
        while time.monotonic() - started < seconds:
            self.generator.call("pace", self._frames(), len(self.places), min(1.0, seconds))
        used, took_s = self.server.processes.cpu() - before, time.monotonic() - started
        return {part: 100 * getattr(used, part) / took_s for part in ("server", "redis", "postgres")}

    def _frames(self) -> list[bytes]:
        self.seconds += 1
        way = STEP * self.seconds
        ways = [(lat + way * math.sin(to), lng + way * math.cos(to)) for lat, lng, to in self.places]
        return [text_frame({"type": "location", "lat": lat, "lng": lng}) for lat, lng in ways]


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium, or None where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        yield None
        return
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not needed without a browser

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@contextlib.contextmanager
def open_console(chromium: Any, fixtures: Fixtures, drivers: int) -> Iterator[Any]:
    """A page that shows all drivers."""
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script(WATCH_TASKS)
    token = fixtures.bearer("admin", "operator")
    page.goto(f"{fixtures.server.url}/console#token={token}")
    page.locator(".figure", has_text="Free").get_by_text(f"/ {drivers}").wait_for(timeout=60_000)
    time.sleep(SETTLING_S)
    page.evaluate("window.longTasks.length = 0")
    yield page
    page.close()


def figures(alone: list[dict[str, float]], watched: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds, in % of a core, and what a watcher adds."""
    parts = alone[0].keys()
    before = {part: median(each[part] for each in alone) for part in parts}
    after = {part: median(each[part] for each in watched) for part in parts}
    rise = {part: after[part] - before[part] for part in parts}
    return {"nobody watches": before, "watched": after, "rise": rise}


def draw(found: dict[str, Any]) -> Any:
    def onto(axes: Any) -> None:
        names = list(found)
        bars = axes.bar(names, [found[name]["server"] for name in names])
        axes.bar_label(bars, fmt="%.1f")
        axes.set_ylabel("% of a core, the server")

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=30.0, rounds=2, connections=0)
    parser.add_argument("--drivers", type=int, default=1_000, help="drivers who move")
    args = options.parse(parser, seconds=2.0, rounds=1, drivers=50)
    report = Report("console", "A console that watches", options.shown(args), folder=args.results)
    alone, watched, tasks = [], [], []
    with options.target(args) as server, HttpGenerator() as http:
        if server.redis_url and server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        fixtures = Fixtures(server, http)
        drivers = MovingDrivers(fixtures, args.drivers)
        drivers.drive(SETTLING_S)
        for _ in range(args.rounds):
            alone.append(drivers.drive(args.seconds))
            with browser() as chromium:
                if chromium is None:
                    continue
                with open_console(chromium, fixtures, args.drivers) as page:
                    watched.append(drivers.drive(args.seconds))
                    tasks += page.evaluate("window.longTasks")
    if not watched:
        report.note("there is no Chromium here, so nobody watched")
    found = figures(alone, watched or alone)
    report.results("cpu", found)
    report.results("long tasks", {"watched s": args.seconds * len(watched), "ms": sorted(tasks)})
    report.table(
        "% of a core", ["", "server", "Redis", "Postgres"],
        [[name, *(f"{value:.1f}" for value in values.values())] for name, values in found.items()],
    )  # fmt: skip
    rise = found["rise"]["server"]
    report.note(f"the server's CPU rises by {rise:.1f} % of a core (at most {RISE_PERCENT})")
    report.note(
        f"tasks of the page over 50 ms: {len(tasks)}, the longest {max(tasks, default=0):.0f} ms"
        f" (at most {LONG_TASK_MS})"
    )
    report.write(draw(found))


if __name__ == "__main__":
    main()
