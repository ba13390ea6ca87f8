"""What a rate-limit check costs, and how exact it is, against the `limits` package.

Both keep an exact sliding log in the same Redis: the dispatcher's script (Redis' own clock, calls
of one turn of the event loop in one pipeline) and the package's moving window (the client's clock,
a call at a time). Each works from a process of its own, with the same number of tasks.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from harness import engines, options
from harness.cpu_usage import MeasuredProcesses
from harness.figures import Run, Summary, ratio_of_rounds
from harness.limiters import DispatcherLimiter, LimitsPackage, Ping, max_in_window
from harness.load_process import LoadProcess
from report import Report, load_columns, load_row

VARIANTS = {"PING": Ping, "limits package": LimitsPackage, "dispatcher": DispatcherLimiter}
# For exactness: a window so short that a run of a few seconds has many of them.
LIMIT, WINDOW_S = 10, 1
SUBJECTS = 1_000


class Bench:
    """A process for each limiter, all on one Redis."""

    def __init__(self, args: Any, redis_url: str, stack: ExitStack) -> None:
        self.args = args
        self.redis_url = redis_url
        self.generators = {
            name: stack.enter_context(LoadProcess(limiter)) for name, limiter in VARIANTS.items()
        }
        self.run_id = os.getpid()

    def cost(self, name: str, number: int) -> Run:
        """Checks far below the limit, as nearly all are in operation."""
        generator = self.generators[name]
        processes = MeasuredProcesses(generator.pid, engines.redis_pid(self.redis_url))
        subjects = [f"cost-{self.run_id}-{number}-{n}" for n in range(SUBJECTS)]
        args = self.args
        before = processes.cpu()
        sample = generator.call(
            "cost", self.redis_url, 100_000, 60, args.connections, subjects, args.seconds
        )
        return Run.of(sample, processes.cpu() - before)

    def exactness(self, name: str) -> dict[str, Any]:
        """50 clients against one limit: calls, admissions, and the most of them in one window."""
        subject = f"crowd-{self.run_id}"
        admissions, calls = self.generators[name].call(
            "crowd", self.redis_url, LIMIT, WINDOW_S, 50, subject, self.args.seconds
        )
        return {
            "calls": calls,
            "admitted": len(admissions),
            "most in a window": max_in_window(admissions, WINDOW_S),
        }


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
    parser = options.build_parser(__doc__, seconds=3.0, rounds=5, connections=64)
    args = options.parse(parser, seconds=0.3, rounds=1, connections=16)
    report = Report("rate_limits", "Rate limits", options.shown(args), folder=args.results)
    with ExitStack() as stack:
        server = stack.enter_context(options.target(args))
        if not server.redis_url:
            parser.error("with --url, rate_limits.py needs --redis-url")
        if server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        bench = Bench(args, server.redis_url, stack)
        runs = {name: (lambda n, name=name: bench.cost(name, n)) for name in VARIANTS}
        found = report.run_interleaved(runs, args.rounds, what="cost")
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
