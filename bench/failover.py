"""A cluster whose primary dies or hangs: what its zones lose, and what the zones of the others feel.

Three zones, each on a primary of its own with a replica. Drivers of two of them accept trips at a steady
rate. The third one's primary is killed or frozen, and at once a driver of that zone accepts a trip, and
asks again for as long as the answer is 503: the clock runs until the 200. The cluster's own failover is
timed beside it, by asking the nodes that are left.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from harness import options
from harness.encoding import address
from harness.figures import Run, Summary
from harness.fixtures import ACTION, Fixtures
from harness.http_generator import HttpGenerator
from harness.http_load import HttpLoad
from harness.load_process import LoadProcess
from harness.servers import Server, start_dispatcher
from harness.valkey_cluster import NODE_TIMEOUT_MS, Cluster
from report import Report

FAULTS: dict[str, signal.Signals | None] = {
    "quiet": None,
    "killed": signal.SIGKILL,
    "frozen": signal.SIGSTOP,
}
CALM_S = 1.0
ASK_AGAIN_S = 0.01
GIVE_UP_S = 60.0


class Bench:
    """One server on the cluster, with drivers in every zone."""

    def __init__(
        self, args: Any, cluster: Cluster, server: Server, generator: HttpGenerator, load: LoadProcess
    ) -> None:
        self.args = args
        self.cluster = cluster
        self.server = server
        self.generator = generator
        self.load = load
        self.broken_zone, *others = cluster.zones
        self.broken = Fixtures(server, generator, self.broken_zone)
        self.others = [Fixtures(server, generator, zone) for zone in others]

    def run(self, fault: signal.Signals | None) -> Run:
        """One fault, the first decision after it, and the calls of the other zones meanwhile."""
        number = int(self.args.seconds * self.args.rate * 1.3 / len(self.others)) + 20
        parts = []
        for fixtures in self.others:
            pairs = zip(fixtures.drivers(number), fixtures.trips(number), strict=True)
            parts.append([fixtures.accept_call(driver, trip) for driver, trip in pairs])
        driver, trip = self.broken.drivers(1)[0], self.broken.trips(1)[0]
        for fixtures in (*self.others, self.broken):
            fixtures.start_clean()
        call = self.load.call
        call("keep", [accept for one_of_each in zip(*parts, strict=True) for accept in one_of_each])
        call("open", *address(self.server.url), self.args.connections)
        self.load.start("run_paced", self.args.seconds, self.args.rate)
        time.sleep(CALM_S)
        extra = self.fault(fault, driver, trip)
        sample = self.load.result()
        call("close")
        self.cluster.heal()
        worst_ms = max(sample.latencies, default=0.0) * 1000
        return Run.of(sample, max_ms=worst_ms, **extra)

    def fault(self, fault: signal.Signals | None, driver: str, trip: str) -> dict[str, float]:
        """Milliseconds until the cluster has failed over, and until the zone decides again."""
        if fault is None:
            started = time.perf_counter()
            return {"failover_ms": 0.0, "back_ms": (self.decide(driver, trip) - started) * 1000}
        former, started = self.cluster.break_primary(self.broken_zone, fault)
        failed_over: list[float] = []
        watch = threading.Thread(
            target=lambda: failed_over.append(self.cluster.wait_for_successor(self.broken_zone, former)),
            daemon=True,
        )
        watch.start()
        back = self.decide(driver, trip)
        watch.join(GIVE_UP_S)
        return {"failover_ms": (failed_over[0] - started) * 1000, "back_ms": (back - started) * 1000}

    def decide(self, driver: str, trip: str) -> float:
        """When the driver had the trip; a refusal for now is asked again, as apps do."""
        body = {"action": "accept", "trip_request_id": trip}
        give_up = time.perf_counter() + GIVE_UP_S
        while True:
            status, answer = self.broken.call("POST", ACTION, body, "driver", driver)
            now = time.perf_counter()
            if status == 200:
                return now
            if status != 503 or now > give_up:
                raise RuntimeError(f"{status} {answer}")
            time.sleep(ASK_AGAIN_S)


def row(summary: Summary) -> list[str]:
    latency = summary.latency_ms
    worst = [run.extra["max_ms"] for run in summary.runs]
    later = [run.extra["back_ms"] - run.extra["failover_ms"] for run in summary.runs]
    return [
        summary.name,
        *(f"{latency[p]:,.1f}" for p in ("p50", "p99")),
        f"{median(worst):,.0f}",
        f"{summary.extra('failover_ms'):,.0f}",
        f"{summary.extra('back_ms'):,.0f}",
        f"{max(later):,.0f}",
    ]


def draw(found: dict[str, Summary]) -> Any:
    def onto(panels: Any) -> None:
        broken, others = panels
        for style, name in (("-o", "failover_ms"), ("--s", "back_ms")):
            broken.plot(list(found), [s.extra(name) for s in found.values()], style, label=name)
        broken.set_title("the zone whose primary is broken", fontsize=9)
        broken.set_ylabel("ms after the fault, median")
        broken.legend(fontsize=8)
        for style, name in (("-o", "p50"), ("--s", "p99")):
            others.plot(list(found), [s.latency_ms[name] for s in found.values()], style, label=name)
        others.set_yscale("log")
        others.set_title("accepts in the zones of the other primaries", fontsize=9)
        others.set_ylabel("ms, median of the rounds")
        others.legend(fontsize=8)

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=10.0, rounds=5, connections=64)
    parser.add_argument("--rate", type=float, default=300.0, help="accepts a second in the other zones")
    args = options.parse(parser, seconds=6.0, rounds=1, connections=8, rate=40.0)
    if args.url:
        parser.error("failover.py breaks the nodes of its own cluster; it takes no --url")
    report = Report(
        "failover", "A cluster whose primary fails", options.shown(args), folder=args.results
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        cluster = stack.enter_context(Cluster(folder))
        report.add("cluster", {"primaries": 3, "replicas": 3, "node timeout": f"{NODE_TIMEOUT_MS} ms"})
        zones = folder / "zones.toml"
        zones.write_text("".join(f"[zones.{name}]\n" for name in (*cluster.zones, "default")))
        generator = stack.enter_context(HttpGenerator())
        load = stack.enter_context(LoadProcess(HttpLoad))
        environment = {"DISPATCHER_ZONES_FILE": str(zones), "DISPATCHER_REDIS_URL": cluster.url}
        server = stack.enter_context(start_dispatcher(environment=environment))
        bench = Bench(args, cluster, server, generator, load)
        runs = {name: (lambda _, fault=fault: bench.run(fault)) for name, fault in FAULTS.items()}
        found = report.run_interleaved(runs, args.rounds, what="failover")
    report.results("failover", {name: summary.as_json() for name, summary in found.items()})
    report.table(
        "in ms",
        ["primary", "other zones p50", "p99", "max", "failover", "zone is back", "later, at worst"],
        [row(summary) for summary in found.values()],
    )
    for summary in found.values():
        report.note(f"{summary.name}: {summary.codes}")
    report.write(draw(found), panels=2)


if __name__ == "__main__":
    main()
