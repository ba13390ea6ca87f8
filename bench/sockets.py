"""Thousands of idle drivers: memory each, heartbeats, fan-out of an offer, reconnects, churn."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from harness import engines, options
from harness.encoding import address, text_frame
from harness.figures import percentiles_ms
from harness.fixtures import Fixtures
from harness.http_generator import HttpGenerator
from harness.load_process import LoadProcess
from harness.servers import Server
from harness.socket_load import SocketLoad
from report import Report

FLOOR_KB, AIM_KB = 15, 12
HEARTBEAT = text_frame({"type": "heartbeat"})
# For the fan-out, the drivers of a wave are at the pickup, and all others are out of its radius.
WAVE_AT = {"lat": 40.70, "lng": -74.01}
SETTLING_S = 3.0
# As many connections are made and dropped at a time; the first seconds fill what stays filled.
CHURN_LANES, CHURN_WARM_UP_S = 64, 2.0
CHURN_LIMIT = 1.2


class Drivers:
    """Drivers with one socket each, in a load process."""

    def __init__(self, fixtures: Fixtures, amount: int) -> None:
        self.fixtures = fixtures
        self.server: Server = fixtures.server
        self.names = fixtures.drivers(amount)
        self.generator = LoadProcess(SocketLoad)

    def open(self) -> dict[str, Any]:
        """Memory before and after; the difference is what the sockets cost the server."""
        time.sleep(SETTLING_S)
        before = self.server.processes.server_memory_bytes()
        bearers = [self.fixtures.bearer("driver", name) for name in self.names]
        opened = self.generator.call("open", *address(self.server.url), bearers)
        if opened.codes["welcome"] != len(self.names):
            raise RuntimeError(f"not every driver was welcome: {dict(opened.codes)}")
        time.sleep(SETTLING_S)
        after = self.server.processes.server_memory_bytes()
        return {
            "sockets": len(self.names),
            "KB each": (after - before) / len(self.names) / 1000,
            "opened a second": len(self.names) / opened.elapsed_s,
        }

    def heartbeats(self, every_s: float, seconds: float) -> dict[str, Any]:
        """All drivers' heartbeats, against the same time of silence."""
        costs = []
        for rate in (0.0, len(self.names) / every_s):
            before = self.server.processes.cpu()
            sent = self.generator.call("pace", [HEARTBEAT], rate, seconds)
            costs.append(self.server.processes.cpu() - before)
        silence, beating = costs
        extra = beating - silence
        return {
            "heartbeats a second": sent / seconds,
            "% of a core, silent": 100 * silence.server / seconds,
            "% of a core, beating": 100 * beating.server / seconds,
            "CPU µs a heartbeat": {k: max(0.0, v) for k, v in extra.per_request_us(sent).items()},
        }

    def reconnect_storm(self, rounds: int) -> dict[str, Any]:
        """All drivers lose their connection at once and connect again, until the last has a snapshot."""
        took, latencies = [], []
        for _ in range(rounds):
            sample = self.generator.call("storm")
            if sample.codes["welcome"] != len(self.names):
                raise RuntimeError(f"not every driver came back: {dict(sample.codes)}")
            took.append(sample.elapsed_s)
            latencies.append(percentiles_ms(sample.latencies))
        return {
            "seconds until all are back": median(took),
            "back a second": len(self.names) / median(took),
            "p99 ms from dial to snapshot": median(each["p99"] for each in latencies),
        }

    def churn(self, seconds: float) -> dict[str, Any]:
        """Memory of the server while sockets are dropped without a word, and some time after."""
        self.generator.call("churn", CHURN_LANES, CHURN_WARM_UP_S)
        time.sleep(SETTLING_S)
        before = self.server.processes.server_memory_bytes()
        dropped = self.generator.call("churn", CHURN_LANES, seconds)
        at_end = self.server.processes.server_memory_bytes()
        time.sleep(SETTLING_S)
        after = self.server.processes.server_memory_bytes()
        return {
            "sockets dropped": dropped,
            "dropped a second": dropped / seconds,
            "MB before": before / 1e6,
            "MB at its end": at_end / 1e6,
            "MB afterwards": after / 1e6,
            "afterwards / before": after / before,
        }

    def fan_out(self, wave: int, rounds: int) -> dict[str, Any]:
        """From the customer's call to the offer on each driver's socket (one clock for both)."""
        self.fixtures.online(self.names[:wave], at=WAVE_AT)
        first, every, counts = [], [], []
        for _ in range(rounds):
            self.generator.call("watch")
            [trip] = self.fixtures.names(f"{self.fixtures.zone}_t", 1)
            [customer] = self.fixtures.names("c", 1)
            body = {"pickup": WAVE_AT, "vehicle_type": "car", "trip_request_id": trip}
            body["zone"] = self.fixtures.zone
            started = time.monotonic()
            self.generator.start("seen", wave, 2.0)
            path = "/api/customer/ride/create"
            status, answer = self.fixtures.call("POST", path, body, "customer", customer)
            if status != 201:
                raise RuntimeError(f"create: {status} {answer}")
            seen = self.generator.result()
            offers = [at - started for at, _, text in seen if b'"type":"offer"' in text]
            counts.append(len(offers))
            if offers:
                first.append(min(offers))
                every += offers
            cancel = {"trip_request_id": trip}
            self.fixtures.call("POST", "/api/customer/ride/cancel", cancel, "customer", customer)
            time.sleep(0.02)
        return {
            "offers a trip": median(counts),
            "first offer ms": percentiles_ms(first),
            "all offers ms": percentiles_ms(every),
        }


def rows(document: dict[str, dict[str, Any]]) -> list[list[str]]:
    found = []
    for section, values in document.items():
        for name, value in values.items():
            if isinstance(value, dict):
                text = ", ".join(f"{key} {number:.2f}" for key, number in value.items())
            else:
                text = f"{value:,.1f}"
            found.append([section, name, text])
    return found


def draw(found: dict[str, dict[str, Any]]) -> Any:
    def onto(axes: Any) -> None:
        memory, offers = axes
        memory.bar(["measured", "floor", "aim"], [found["memory"]["KB each"], FLOOR_KB, AIM_KB])
        memory.set_ylabel("KB of server memory for an idle driver")
        latency = found["fan-out"]["all offers ms"]
        bars = offers.bar(list(latency), list(latency.values()))
        offers.bar_label(bars, fmt="%.1f")
        offers.set_ylabel("ms from the customer's call to an offer")

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=10.0, rounds=5, connections=0)
    parser.add_argument("--drivers", type=int, default=5_000, help="drivers with a socket")
    parser.add_argument("--heartbeat", type=float, default=30.0, help="seconds between two beats")
    parser.add_argument("--wave", type=int, default=5, help="drivers in reach of the offered trips")
    parser.add_argument("--trips", type=int, default=100, help="trips whose offers are timed")
    parser.add_argument("--churn", type=float, default=30.0, help="seconds of dropped sockets")
    args = options.parse(parser, seconds=1.0, rounds=1, drivers=100, trips=5, churn=1.0)
    report = Report("sockets", "Idle drivers on WebSockets", options.shown(args), folder=args.results)
    found: dict[str, dict[str, Any]] = {}
    with options.target(args) as server, HttpGenerator() as http, report.progress() as progress:
        if server.redis_url and server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        drivers = Drivers(Fixtures(server, http), args.drivers)
        steps = {
            "memory": drivers.open,
            "heartbeats": lambda: drivers.heartbeats(args.heartbeat, args.seconds),
            "fan-out": lambda: drivers.fan_out(args.wave, args.trips),
            "storm": lambda: drivers.reconnect_storm(args.rounds),
            "churn": lambda: drivers.churn(args.churn),
        }
        task = progress.add_task("", total=len(steps))
        for name, step in steps.items():
            progress.update(task, description=name, refresh=True)
            found[name] = step()
            progress.update(task, advance=1, refresh=True)
    for name, values in found.items():
        report.results(name, values)
    report.table("idle drivers", ["", "figure", "value"], rows(found))
    report.note(f"memory an idle driver: floor {FLOOR_KB} KB, aim {AIM_KB} KB")
    report.note(f"memory after a churn: at most {CHURN_LIMIT} of what it was before")
    report.write(draw(found), panels=2)


if __name__ == "__main__":
    main()
