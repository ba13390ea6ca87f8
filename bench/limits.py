"""What a rate-limit check costs, and how exact it is, against the `limits` package.

Both keep an exact sliding log in the same Redis: the dispatcher's script (Redis' own clock, calls
of one turn of the event loop in one pipeline) and the package's moving window (the client's clock,
a call at a time). Each works from a process of its own, with the same number of tasks.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).parent):
    # This file has the name of the package that it measures; let the installed one be found first.
    sys.path.append(sys.path.pop(0))

import os
from contextlib import ExitStack
from typing import Any

from harness import engines, options
from harness.accounting import Accounts
from harness.figures import Run, Summary, ratio_of_rounds
from harness.generator import Generator
from harness.limiters import Dispatcher, Package, Ping, worst_window
from report import Report, load_columns, load_row

VARIANTS = {"PING": Ping, "limits package": Package, "dispatcher": Dispatcher}
# Exactness: a window short enough to go by many times in a run of a few seconds.
LIMIT, WINDOW_S = 10, 1
SUBJECTS = 1_000


class Bench:
    """A process for each limiter, all on one Redis."""

    def __init__(self, chosen: Any, redis_url: str, stack: ExitStack) -> None:
        self.chosen = chosen
        self.redis_url = redis_url
        self.generators = {name: stack.enter_context(Generator(made)) for name, made in VARIANTS.items()}
        self.run_id = os.getpid()

    def cost(self, name: str, number: int) -> Run:
        """Checks that are admitted, which is what nearly all are."""
        generator = self.generators[name]
        accounts = Accounts(generator.pid, engines.redis_pid(self.redis_url))
        subjects = [f"cost-{self.run_id}-{number}-{n}" for n in range(SUBJECTS)]
        chosen = self.chosen
        before = accounts.read()
        sample = generator.call(
            "cost", self.redis_url, 100_000, 60, chosen.connections, subjects, chosen.seconds
        )
        return Run.of(sample, accounts.read() - before)

    def exactness(self, name: str) -> dict[str, Any]:
        subject = f"crowd-{self.run_id}"
        admissions, calls = self.generators[name].call(
            "crowd", self.redis_url, LIMIT, WINDOW_S, 50, subject, self.chosen.seconds
        )
        worst = worst_window(admissions, WINDOW_S)
        return {"calls": calls, "admitted": len(admissions), "most in a window": worst}


def draw(found: dict[str, Summary]) -> Any:
    def onto(axes: Any) -> None:
        names, bottom = list(found), [0.0] * len(found)
        for part, label in (("server", "the caller's process"), ("redis", "Redis")):
            costs = [summary.cpu_us[part] for summary in found.values()]
            axes.bar(names, costs, bottom=bottom, label=label)
            bottom = [low + cost for low, cost in zip(bottom, costs, strict=True)]
        axes.set_ylabel("CPU µs a check")
        axes.legend(fontsize=8)

    return onto


def main() -> None:
    parser = options.parser(__doc__, seconds=3.0, rounds=5, connections=64)
    chosen = options.parse(parser, seconds=0.3, rounds=1, connections=16)
    report = Report("limits", "Rate limits", options.shown(chosen), folder=chosen.results)
    with ExitStack() as stack:
        server = stack.enter_context(options.target(chosen))
        if not server.redis_url:
            parser.error("with --url, limits.py needs --redis-url")
        if server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        bench = Bench(chosen, server.redis_url, stack)
        runs = {name: (lambda n, name=name: bench.cost(name, n)) for name in VARIANTS}
        found = report.in_turn(runs, chosen.rounds, what="cost")
        exact = {name: bench.exactness(name) for name in VARIANTS if name != "PING"}
    report.results("cost", {name: summary.as_json() for name, summary in found.items()})
    report.results("exactness", {"limit": LIMIT, "window_s": WINDOW_S, **exact})
    columns = [column.replace("server", "caller") for column in load_columns()]
    report.table("checks", columns, [load_row(summary) for summary in found.values()])
    rows = [[name, *(f"{value:,}" for value in values.values())] for name, values in exact.items()]
    report.table(
        f"50 clients against {LIMIT} in {WINDOW_S} s",
        ["", "calls", "admitted", "certainly in one window, at most"],
        rows,
    )
    ratio = ratio_of_rounds(found["dispatcher"], found["limits package"])
    report.results("ratio", ratio)
    report.note(f"checks a second, dispatcher against the package: {ratio:.2f}")
    report.write(draw(found))


if __name__ == "__main__":
    main()
