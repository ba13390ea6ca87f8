"""Accepts while Redis hangs, beside the same with Redis and the old *lock* server.

The server's Redis is frozen in the middle of a run: what the clients feel of that moment, and how fast
accepts are decided by Postgres alone from then on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from contextlib import ExitStack

import accept
from harness import engines, options
from harness.figures import Run, ratio_of_rounds
from harness.fixtures import Fixtures
from harness.http_generator import HttpGenerator
from harness.servers import start_rival
from report import Report

_BACK_S = 60.0
#: For a lease after a load, keys that Redis does not know are asked of Postgres.
_ASKED_S = 11.0


class Bench(accept.Bench):
    """As `accept.py`, and the dispatcher without its Redis."""

    redis_pid: int

    def run(self, load: str, variant: str, *, paced: float | None = None) -> Run:
        if variant == "with redis":
            return super().run(load, "dispatcher")
        if variant != "without redis":
            return super().run(load, variant)
        count = int(self.expected.get((load, variant), 2_000) * self.args.seconds * accept.SPARE) + 100
        requests = getattr(self, f"requests_{load}")("dispatcher", count)
        self.fixtures.start_clean()
        os.kill(self.redis_pid, signal.SIGSTOP)
        try:
            first_ms = self._first_ms()
            run = self.generator.measure(
                self.dispatcher,
                requests,
                seconds=self.args.seconds,
                connections=self.args.connections,
            )
        finally:
            os.kill(self.redis_pid, signal.SIGCONT)
        self.expected[load, variant] = run.rate
        self._wait_until_back()
        run.extra["first_ms"] = first_ms
        return run

    def _first_ms(self) -> float:
        """How long the call takes that finds Redis frozen."""
        started = time.perf_counter()
        self.fixtures.trips(1)
        return (time.perf_counter() - started) * 1000

    def _wait_until_back(self) -> None:
        deadline = time.monotonic() + _BACK_S
        while time.monotonic() < deadline:
            status, body = self.fixtures.call("GET", "/readyz", None, "driver", "d")
            if status == 200 and body["status"] == "ready":
                break
            time.sleep(0.1)
        # The zone is loaded once somebody asks: with all trips and drivers of the run so far.
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                self.fixtures.trips(1)
                time.sleep(0 if self.args.small else _ASKED_S)
                return
        raise RuntimeError("redis does not decide again")


def main() -> None:
    parser = options.build_parser(__doc__, seconds=1.0, rounds=3, connections=256)
    parser.add_argument("--lock-pool", type=int, default=10, help="connections of the rival lock")
    args = options.parse(parser, seconds=0.3, rounds=1, connections=16)
    report = Report("without_redis", "Accepts without Redis", options.shown(args), folder=args.results)
    with ExitStack() as stack:
        generator = stack.enter_context(HttpGenerator())
        dispatcher = stack.enter_context(options.target(args))
        if not dispatcher.redis_url or not dispatcher.database_url:
            raise SystemExit("without_redis.py freezes the server's Redis: give both engines' URLs")
        pid = engines.redis_pid(dispatcher.redis_url)
        if pid is None:
            raise SystemExit("without_redis.py freezes the server's Redis: it must run on this machine")
        pool = ["--database-url", dispatcher.database_url, "--pool", str(args.lock_pool)]
        lock = stack.enter_context(start_rival("lock", *pool, beside=dispatcher))
        report.add("engines", engines.describe(dispatcher.redis_url, dispatcher.database_url))
        fixtures = Fixtures(dispatcher, generator)
        bench = Bench(args, generator, dispatcher, dispatcher, lock, fixtures)
        bench.redis_pid = pid
        bench.warm_up()
        variants = ["lock", "without redis", "with redis"]
        found = {load: accept.compare(bench, report, load, variants) for load in ("winners", "losers")}
        twice = int(
            engines.value(
                dispatcher.database_url,
                "SELECT count(*) FROM (SELECT driver_id FROM trip_requests WHERE current_status IN"
                " ('accepted', 'arrived', 'ongoing') GROUP BY driver_id HAVING count(*) > 1) twice",
            )
        )
    rows = [
        [load, rival, f"{ratio_of_rounds(summaries['without redis'], summaries[rival]):.2f}"]
        for load, summaries in found.items()
        for rival in ("lock", "with redis")
    ]
    first = max(run.extra["first_ms"] for s in found.values() for run in s["without redis"].runs)
    report.results("ratios", rows)
    report.table("without redis against", ["load", "rival", "ratio"], rows)
    report.note(f"the call that finds Redis frozen: {first:,.0f} ms at most")
    report.note(f"drivers with two active trips: {twice}")
    report.results("first_ms", first)
    report.write(accept.draw(found))


if __name__ == "__main__":
    main()
