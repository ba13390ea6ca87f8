"""Honest clients beside 20 connections that flood the server: what is left of throughput and latency.

The attackers come from four addresses of the loopback network, in each run from others, since those are
refused for a minute; the honest clients come from 127.0.0.1. Each attack is compared with the calm run
before it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from harness import engines, options
from harness.abuse_load import AbuseLoad
from harness.encoding import address, pong_frame, text_frame, token, websocket_handshake
from harness.figures import Run, Summary, ratio_of_rounds
from harness.fixtures import Fixtures
from harness.http_generator import HttpGenerator
from harness.load_process import LoadProcess
from harness.servers import Server
from report import Report, load_columns, load_row

FLOOR_RATE, FLOOR_P99 = 0.8, 3.0
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n"
MASK = b"\x80\x00\x00\x00\x00"  # of an empty frame
#: By name: the message, and what a WebSocket sends before the first; None where it is none.
ATTACKS: Final[dict[str, tuple[bytes, bytes | None]]] = {
    "pings": (b"\x89" + MASK, b""),
    "pongs": (pong_frame(b""), b""),
    "fragments": (b"\x00" + MASK, b"\x01" + MASK),
    "tiny frames": (text_frame({"type": "heartbeat"}), b""),
    "piled-up calls": (HEALTH, None),
}
SETTINGS = {
    "DISPATCHER_LIMIT_CONNECTION": "200/1",
    "DISPATCHER_MAX_CONNECTIONS_PER_IP": "1000",
}


@dataclass(slots=True)
class Bench:
    """The server, its honest clients, and the attackers."""

    args: Any
    server: Server
    honest: HttpGenerator
    attackers: LoadProcess
    requests: list[bytes]
    attacks: int = 0

    def run(self, attack: str | None) -> Run:
        args, counts = self.args, {}
        if attack is not None:
            message, before = ATTACKS[attack]
            self.attacks += 1
            sources = [f"127.{self.attacks}.0.{number}" for number in (1, 2, 3, 4)]
            opening = b""
            if before is not None:
                bearer = token(self.server.secret, "driver", "attacker")
                opening = websocket_handshake("/ws", bearer=bearer) + before
            self.attackers.start(
                "run", args.seconds + 0.2, address(self.server.url), sources, opening, message,
                args.attackers, args.attack_rate,
            )  # fmt: skip
        run = self.honest.measure(
            self.server, self.requests, seconds=args.seconds, connections=args.connections, cycle=True
        )
        if attack is not None:
            counts = self.attackers.result()
        run.extra = counts
        return run


def p99_ratio(one: Summary, other: Summary) -> float:
    pairs = zip(one.runs, other.runs, strict=True)
    return median(a.latency_ms["p99"] / b.latency_ms["p99"] for a, b in pairs if b.latency_ms)


def draw(ratios: dict[str, tuple[float, float]]) -> Any:
    def onto(axes: Any) -> None:
        rates, latencies = axes
        for panel, number, floor, label in (
            (rates, 0, FLOOR_RATE, "throughput, in parts of that without"),
            (latencies, 1, FLOOR_P99, "p99, in times that without"),
        ):
            panel.bar(list(ratios), [pair[number] for pair in ratios.values()])
            panel.axhline(floor, linestyle="--", linewidth=1)
            panel.set_ylabel(label)
            panel.tick_params(axis="x", rotation=30)

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=6.0, rounds=3, connections=64)
    parser.add_argument("--attackers", type=int, default=20, help="connections that attack")
    parser.add_argument("--attack-rate", type=float, default=2_000.0, help="messages a second of each")
    args = options.parse(parser, seconds=0.5, rounds=1, connections=16, attackers=8)
    report = Report("abuse", "Honest clients beside attackers", options.shown(args), folder=args.results)
    with ExitStack() as stack:
        server = stack.enter_context(options.target(args, environment=SETTINGS))
        if server.redis_url and server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        honest = stack.enter_context(HttpGenerator())
        attackers = stack.enter_context(LoadProcess(AbuseLoad))
        fixtures = Fixtures(server, honest)
        drivers, [trip] = fixtures.drivers(200), fixtures.trips(1)
        requests = [fixtures.accept_call(driver, trip) for driver in drivers]
        honest.send_all(server, requests[:1], expect="200")
        bench = Bench(args, server, honest, attackers, requests[1:])
        runs: dict[str, Any] = {}
        for name in ATTACKS:
            runs[f"before {name}"] = lambda _: bench.run(None)
            runs[name] = lambda _, name=name: bench.run(name)
        found = report.run_interleaved(runs, args.rounds, what="losers")
    report.results("losers", {name: summary.as_json() for name, summary in found.items()})
    report.table("losers of one trip", load_columns(), [load_row(summary) for summary in found.values()])
    ratios = {
        name: (
            ratio_of_rounds(found[name], found[f"before {name}"]),
            p99_ratio(found[name], found[f"before {name}"]),
        )
        for name in ATTACKS
    }
    rows = [[name, f"{rate:.2f}", f"{p99:.2f}"] for name, (rate, p99) in ratios.items()]
    report.results("ratios", {name: {"rate": r, "p99": p} for name, (r, p) in ratios.items()})
    report.table("with the attack, against without", ["attack", "throughput", "p99"], rows)
    report.note(f"floors: throughput {FLOOR_RATE}, p99 {FLOOR_P99}")
    for name in ATTACKS:
        report.note(f"{name}: {found[name].runs[-1].extra}")
    report.write(draw(ratios), panels=2)


if __name__ == "__main__":
    main()
