"""Positions a second: over WebSocket and over HTTP, against raw pipelined `GEOADD`.

The raw side is the same client library (redis-py with hiredis) in a process of its own that does
nothing but pipe `GEOADD`s to the same Redis: no socket, no identity, no limit, no newest-wins.
"""

from __future__ import annotations

from contextlib import ExitStack
from random import Random
from typing import Any

from harness import engines, options
from harness.encoding import address, request, text_frame
from harness.figures import Run, Summary, ratio_of_rounds
from harness.fixtures import DRIVERS_AT, Fixtures
from harness.http_generator import HttpGenerator
from harness.load_process import LoadProcess
from harness.raw_geoadd import RawGeoadd
from harness.servers import Server
from harness.socket_load import SocketLoad
from report import Report, load_columns, load_row

FLOOR, AIM = 0.30, 0.50
PIPELINE = 200  # commands a pipeline of the raw side; more gains nothing


def point(random: Random) -> dict[str, float]:
    """Somewhere in the city, at the five decimals (about a metre) that phones send."""
    return {
        "lat": round(DRIVERS_AT["lat"] + random.uniform(-0.1, 0.1), 5),
        "lng": round(DRIVERS_AT["lng"] + random.uniform(-0.1, 0.1), 5),
    }


def chunk(random: Random, frames: int, name: str) -> bytes:
    """Positions one by one, each a frame; only the last asks for an answer."""
    quiet = [text_frame({"type": "location", **point(random)}) for _ in range(frames - 1)]
    return b"".join(quiet) + text_frame({"type": "location", "id": name, **point(random)})


class Sockets:
    """Drivers on WebSockets, each with its own few frames to send over and over."""

    def __init__(self, fixtures: Fixtures, drivers: list[str], frames: int) -> None:
        self.server, self.frames = fixtures.server, frames
        random = Random(11)
        self.chunks = [[chunk(random, frames, f"p{n}") for n in range(4)] for _ in drivers]
        self.generator = LoadProcess(SocketLoad)
        bearers = [fixtures.bearer("driver", driver) for driver in drivers]
        opened = self.generator.call("open", *address(fixtures.server.url), bearers)
        if opened.codes["welcome"] != len(drivers):
            raise RuntimeError(f"not every driver was welcome: {dict(opened.codes)}")

    def run(self, seconds: float) -> Run:
        before = self.server.processes.cpu()
        sample = self.generator.call("stream", self.chunks, self.frames, seconds)
        return Run.of(sample, self.server.processes.cpu() - before)


def http_calls(fixtures: Fixtures, drivers: list[str], batch: int) -> list[bytes]:
    """Requests with `batch` positions each, four for each driver."""
    random = Random(13)
    calls = []
    for driver in drivers * 4:
        body: Any = point(random) if batch == 1 else {"points": [point(random) for _ in range(batch)]}
        bearer = fixtures.bearer("driver", driver)
        calls.append(request("POST", "/api/driver/ride/location", body, bearer=bearer))
    return calls


class RawRedis:
    """The same Redis without the dispatcher, from a load process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.generator = LoadProcess(RawGeoadd)

    def run(self, seconds: float) -> Run:
        before = self.server.processes.cpu()
        sample = self.generator.call("run", self.server.redis_url, PIPELINE, seconds)
        cpu = self.server.processes.cpu() - before
        return Run.of(sample, cpu)


def draw(found: dict[str, Summary]) -> Any:
    def onto(axes: Any) -> None:
        bars = axes.barh(list(found), [summary.rate for summary in found.values()])
        axes.bar_label(bars, [f"{summary.rate:,.0f}" for summary in found.values()], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("positions a second")

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=3.0, rounds=5, connections=64)
    parser.add_argument("--drivers", type=int, default=1_000, help="drivers with a WebSocket")
    parser.add_argument("--frames", type=int, default=8, help="frames a driver has in flight")
    args = options.parse(parser, seconds=0.3, rounds=1, drivers=20)
    report = Report("locations", "Positions a second", options.shown(args), folder=args.results)
    with ExitStack() as stack:
        server = stack.enter_context(options.target(args))
        http = stack.enter_context(HttpGenerator())
        if server.redis_url and server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        fixtures = Fixtures(server, http)
        drivers = fixtures.drivers(args.drivers)
        sockets = Sockets(fixtures, drivers, args.frames)
        one, ten = http_calls(fixtures, drivers, 1), http_calls(fixtures, drivers, 10)

        def measure_http(calls: list[bytes], batch: int) -> Run:
            run = http.measure(
                server, calls, seconds=args.seconds, connections=args.connections, cycle=True
            )
            run.rate *= batch
            run.cpu_us = {part: cost / batch for part, cost in run.cpu_us.items()}
            return run

        variants: dict[str, Any] = {
            "WebSocket, a frame each": lambda _: sockets.run(args.seconds),
            "HTTP, a call each": lambda _: measure_http(one, 1),
            "HTTP, ten a call": lambda _: measure_http(ten, 10),
        }
        if server.redis_url:
            raw = RawRedis(server)
            variants["raw GEOADD"] = lambda _: raw.run(args.seconds)
        found = report.run_interleaved(variants, args.rounds)
    report.results("positions", {name: summary.as_json() for name, summary in found.items()})
    report.table("positions", load_columns(), [load_row(summary) for summary in found.values()])
    for summary in found.values():
        report.note(f"{summary.name}: {summary.codes}")
    if "raw GEOADD" in found:
        ratio = ratio_of_rounds(found["WebSocket, a frame each"], found["raw GEOADD"])
        report.results("ratio", ratio)
        report.note(f"WebSocket against raw GEOADD: {ratio:.2f} (floor {FLOOR}, aim {AIM})")
    report.write(draw(found))


if __name__ == "__main__":
    main()
