"""A cold Redis under a full zone: how long until it decides again, and what its neighbour feels.

One zone has thousands of drivers and live trips. Redis is emptied, or it is another one than the zone
was loaded into, and at once a driver of that zone accepts a trip: the clock runs until the answer. All
the while drivers of another, small zone accept trips at a steady rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from harness import engines, options
from harness.encoding import address, request
from harness.figures import Run, Summary
from harness.fixtures import ACTION, Fixtures
from harness.http_generator import HttpGenerator
from harness.http_load import HttpLoad
from harness.load_process import LoadProcess
from harness.servers import Server, start_dispatcher
from report import Report

from dispatcher.live.keys import keys_of

FULL, OTHER = "full", "other"
GIVE_UP_S = 120.0
ASK_AGAIN_S = 0.01
CANCEL = "/api/customer/ride/cancel"


def nothing(server: Server) -> None:
    """The quiet hour that the others are compared with."""


def empty(server: Server) -> None:
    """Redis loses everything, of both zones."""
    assert server.redis_url is not None
    with engines.redis_client(server.redis_url) as client:
        client.flushall()


def replace(server: Server) -> None:
    """Redis holds everything, but is not the one that the zones were loaded into.

    So it is after a failover or a restore: no connection survives, and the run id is another one.
    """
    assert server.redis_url is not None
    with engines.redis_client(server.redis_url) as client:
        for zone in (FULL, OTHER):
            loaded_ms, horizon_ms, _ = str(client.get(keys_of(zone).epoch)).split(" ")
            client.set(keys_of(zone).epoch, f"{loaded_ms} {horizon_ms} {'0' * 40}")
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)


FAULTS: dict[str, Callable[[Server], None]] = {
    "quiet": nothing,
    "emptied": empty,
    "another run id": replace,
}


class Bench:
    """A full zone and a small one, on one server."""

    def __init__(self, args: Any, server: Server, generator: HttpGenerator, load: LoadProcess) -> None:
        self.args = args
        self.server = server
        self.generator = generator
        self.load = load
        self.full = Fixtures(server, generator, FULL)
        self.other = Fixtures(server, generator, OTHER)
        self.calls = int(args.seconds * args.rate * 1.3) + 20

    def fill(self) -> None:
        """Drivers, of whom as many have a trip as there are live trips; the rest are free."""
        drivers = self.full.drivers(self.args.drivers)
        trips = self.full.trips(self.args.trips)
        pairs = zip(drivers, trips, strict=False)
        calls = [self.full.accept_call(driver, trip) for driver, trip in pairs]
        self.generator.send_all(self.server, calls, expect="200")
        self.free = drivers[self.args.trips :]
        self.neighbours = self.other.drivers(self.calls)
        for fixtures in (self.full, self.other):
            if not self.args.small:
                fixtures.start_clean()
            # From now on, an emptied Redis does not know who is there: nobody waits for that again.
            fixtures.timeout_s = 0.0

    def run(self, number: int, fault: Callable[[Server], None]) -> Run:
        """One fault, the first decision after it, and the calls of the other zone meanwhile."""
        waiting, free = self.full.trips(1)[0], self.free[number % len(self.free)]
        trips = self.other.trips(self.calls)
        pairs = zip(self.neighbours, trips, strict=True)
        self.other.start_clean()
        self.full.start_clean()
        call = self.load.call
        call("keep", [self.other.accept_call(driver, trip) for driver, trip in pairs])
        call("open", *address(self.server.url), self.args.connections)
        before = self.server.processes.cpu()
        self.load.start("run_paced", self.args.seconds, self.args.rate)
        fault(self.server)
        decided_s = self.decide(free, waiting)
        sample = self.load.result()
        cpu = self.server.processes.cpu() - before
        call("close")
        self.cancel(self.full, [waiting])
        self.cancel(self.other, trips)
        worst_ms = max(sample.latencies, default=0.0) * 1000
        return Run.of(sample, cpu, decided_ms=decided_s * 1000, max_ms=worst_ms)

    def decide(self, driver: str, trip: str) -> float:
        """Seconds until the driver has the trip; a refusal for now is asked again, as apps do."""
        started = time.perf_counter()
        body = {"action": "accept", "trip_request_id": trip}
        while True:
            status, answer = self.full.call("POST", ACTION, body, "driver", driver)
            took = time.perf_counter() - started
            if status == 200:
                return took
            if status != 503 or took > GIVE_UP_S:
                raise RuntimeError(f"after {took:.1f} s: {status} {answer}")
            time.sleep(ASK_AGAIN_S)

    def cancel(self, fixtures: Fixtures, trips: list[str]) -> None:
        """Customers cancel, so that their drivers are free again and each run begins alike."""
        calls = [
            request(
                "POST",
                CANCEL,
                {"trip_request_id": trip},
                bearer=fixtures.bearer("customer", fixtures.customer(number)),
            )
            for number, trip in enumerate(trips)
        ]
        self.generator.send_all(self.server, calls, expect="200")


def row(summary: Summary) -> list[str]:
    latency = summary.latency_ms
    worst = [run.extra["max_ms"] for run in summary.runs]
    decided = [run.extra["decided_ms"] for run in summary.runs]
    return [
        summary.name,
        f"{median(decided):,.0f}",
        f"{max(decided):,.0f}",
        *(f"{latency[p]:,.1f}" for p in ("p50", "p99")),
        f"{median(worst):,.0f}",
        f"{max(worst):,.0f}",
    ]


def draw(found: dict[str, Summary]) -> Any:
    def onto(panels: Any) -> None:
        full, other = panels
        bars = full.bar(list(found), [summary.extra("decided_ms") for summary in found.values()])
        full.bar_label(bars, fmt="{:,.0f}", fontsize=8)
        full.set_title("the full zone's first decision", fontsize=9)
        full.set_ylabel("ms after the fault, median")
        for style, (name, figures) in zip(
            ("-o", "--s", ":^"),
            {
                "p50": [summary.latency_ms["p50"] for summary in found.values()],
                "p99": [summary.latency_ms["p99"] for summary in found.values()],
                "worst": [summary.extra("max_ms") for summary in found.values()],
            }.items(),
            strict=True,
        ):
            other.plot(list(found), figures, style, label=name)
        other.set_yscale("log")
        other.set_title("accepts in the other zone", fontsize=9)
        other.set_ylabel("ms, median of the rounds")
        other.legend(fontsize=8)

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=4.0, rounds=5, connections=64)
    parser.add_argument("--drivers", type=int, default=10_000, help="online drivers of the full zone")
    parser.add_argument("--trips", type=int, default=5_000, help="live trips of the full zone")
    parser.add_argument("--rate", type=float, default=100.0, help="accepts a second in the other zone")
    args = options.parse(parser, seconds=0.5, rounds=1, connections=8, drivers=60, trips=30, rate=40.0)
    if args.url:
        parser.error("reload.py empties the server's Redis; it takes no --url")
    if args.drivers <= args.trips:
        parser.error("--drivers must be more than --trips: one of them accepts the trip that decides")
    report = Report("reload", "A cold Redis, and a full zone", options.shown(args), folder=args.results)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        zones = folder / "zones.toml"
        zones.write_text("".join(f"[zones.{name}]\n" for name in (FULL, OTHER)))
        generator = stack.enter_context(HttpGenerator())
        load = stack.enter_context(LoadProcess(HttpLoad))
        environment = {"DISPATCHER_ZONES_FILE": str(zones)}
        server = stack.enter_context(start_dispatcher(environment=environment))
        assert server.redis_url is not None
        assert server.database_url is not None
        report.add("engines", engines.describe(server.redis_url, server.database_url))
        bench = Bench(args, server, generator, load)
        bench.fill()
        runs = {
            name: (lambda number, fault=fault: bench.run(number, fault))
            for name, fault in FAULTS.items()
        }
        found = report.run_interleaved(runs, args.rounds, what="reload")
    report.results("reload", {name: summary.as_json() for name, summary in found.items()})
    report.table(
        f"{args.drivers:,} drivers and {args.trips:,} live trips, in ms",
        ["Redis", "decides again", "worst", "other zone p50", "p99", "max, median", "max, worst"],
        [row(summary) for summary in found.values()],
    )
    for summary in found.values():
        report.note(f"{summary.name}: {summary.codes}")
    report.write(draw(found), panels=2)


if __name__ == "__main__":
    main()
