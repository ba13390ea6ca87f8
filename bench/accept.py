"""Accepts: the dispatcher with everything on, between bare aiohttp (*echo*) and the old *lock*.

Three servers on the same engines, in turn. Winners: every driver has a trip of their own. Losers: a
crowd on one trip. Replays: the same requests, with the same keys, again and again.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from harness import engines, lock_fixtures, options
from harness.figures import Run, Summary, ratio_of_rounds
from harness.fixtures import ACTION, Fixtures
from harness.http_generator import HttpGenerator
from harness.servers import Server, start_rival
from report import Report, load_columns, load_row

FLOORS = {  # load: (floor and aim in parts of echo, floor and aim in times lock)
    "winners": ((0.25, 0.40), (3.0, 5.0)),
    "losers": ((0.50, 0.70), (6.0, 9.0)),
    "replays": ((0.50, 0.70), None),
}
PARTS = {"half": 0.5, "a quarter": 0.25, "an eighth": 0.125}  # of the full load
SPARE = 1.4  # requests prepared beyond what the last round needed


@dataclass(slots=True)
class Bench:
    """The servers of the comparison, and what each load does to each of them."""

    args: Any
    generator: HttpGenerator
    dispatcher: Server
    echo: Server
    lock: Server | None
    fixtures: Fixtures
    expected: dict[tuple[str, str], float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    crowd: list[str] = field(default_factory=list)
    finished: list[bytes] = field(default_factory=list)

    def warm_up(self) -> None:
        """Measure the size of both answers, for echo; fill caches; prepare what replays replay."""
        fixtures, count = self.fixtures, 200 if self.args.small else 2_000
        self.crowd = fixtures.drivers(50 if self.args.small else 1_000)
        drivers, trips = fixtures.drivers(count), fixtures.trips(count)
        body = {"action": "accept", "trip_request_id": trips[0]}
        for name, driver, status in (("winners", drivers[0], 200), ("losers", drivers[1], 409)):
            got, answer = fixtures.call_raw("POST", ACTION, body, "driver", driver)
            if got != status:
                raise RuntimeError(f"{name}: {got} {answer!r}")
            self.sizes[name] = len(answer)
        self.sizes["replays"] = self.sizes["winners"]
        # These won trips are what the replays replay.
        self.finished = [fixtures.accept_call(d, t) for d, t in zip(drivers[2:], trips[2:], strict=True)]
        self.generator.send_all(self.dispatcher, self.finished, expect="200")
        if self.lock is not None:
            lock_fixtures.fill(self.lock.database_url, drivers + self.crowd, trips)
            self.generator.send_all(self.lock, self.finished, expect="200")

    def run(self, load: str, variant: str, *, paced: float | None = None) -> Run:
        server = {"echo": self.echo, "lock": self.lock, "dispatcher": self.dispatcher}[variant]
        rate = self.expected.get(
            (load, variant),
            {"lock": 2_000, "echo": 20_000}.get(variant, 4_000 if load == "winners" else 15_000),
        )
        count = int(rate * self.args.seconds * SPARE) + 100
        if paced is not None:
            count = int(paced * self.args.seconds * 1.2) + 100
        requests = getattr(self, f"requests_{load}")(variant, count)
        if variant == "echo":
            path = f"/echo/{self.sizes[load]}".encode()
            requests = [one.replace(ACTION.encode(), path, 1) for one in requests]
        self.fixtures.start_clean()
        run = self.generator.measure(
            server,
            requests,
            seconds=self.args.seconds,
            connections=self.args.connections,
            rate=paced,
            cycle=load == "replays" or variant == "echo",
        )
        if paced is None:
            self.expected[load, variant] = run.rate
        return run

    def requests_winners(self, variant: str, count: int) -> list[bytes]:
        if variant == "echo":
            return self.finished
        if variant == "lock":
            drivers = self.fixtures.names("d", count)
            trips = self.fixtures.names(f"{self.fixtures.zone}_t", count)
            lock_fixtures.fill(self.lock.database_url, drivers, trips)
        else:
            # Trips first: with no driver in reach, none of them is offered.
            trips, drivers = self.fixtures.trips(count), self.fixtures.drivers(count)
        return [self.fixtures.accept_call(d, t) for d, t in zip(drivers, trips, strict=True)]

    def requests_losers(self, variant: str, count: int) -> list[bytes]:
        if variant == "echo":
            return self.finished
        if variant == "lock":
            [trip] = self.fixtures.names(f"{self.fixtures.zone}_t", 1)
            lock_fixtures.fill(self.lock.database_url, [], [trip])
        else:
            [trip] = self.fixtures.trips(1)
        size = len(self.crowd)
        return [self.fixtures.accept_call(self.crowd[n % size], trip) for n in range(count)]

    def requests_replays(self, variant: str, count: int) -> list[bytes]:
        return self.finished


def compare(bench: Bench, report: Report, load: str, variants: list[str]) -> dict[str, Summary]:
    """The rounds of one load, then its table."""
    runs = {variant: (lambda _, variant=variant: bench.run(load, variant)) for variant in variants}
    found = report.run_interleaved(runs, bench.args.rounds, what=load)
    report.results(load, {name: summary.as_json() for name, summary in found.items()})
    report.table(load, load_columns(), [load_row(summary) for summary in found.values()])
    for summary in found.values():
        report.note(f"{summary.name}: {summary.codes}")
    return found


def below_full_load(bench: Bench, report: Report, full: float) -> None:
    """Winners arriving at parts of the rate the dispatcher can take: latency in a normal hour."""
    runs = {
        name: (lambda _, part=part: bench.run("winners", "dispatcher", paced=full * part))
        for name, part in PARTS.items()
    }
    found = report.run_interleaved(runs, bench.args.rounds, what="winners below full load")
    report.results("below full load", {name: summary.as_json() for name, summary in found.items()})
    report.table("winners below full load", load_columns(), [load_row(s) for s in found.values()])


def ratios(found: dict[str, dict[str, Summary]]) -> list[list[str]]:
    rows = []
    for load, summaries in found.items():
        for number, rival in enumerate(("echo", "lock")):
            floor_and_aim = FLOORS[load][number]
            if rival in summaries and "dispatcher" in summaries:
                ratio = ratio_of_rounds(summaries["dispatcher"], summaries[rival])
                floor, aim = (f"{bound:g}" for bound in floor_and_aim) if floor_and_aim else ("", "")
                rows.append([load, rival, f"{ratio:.2f}", floor, aim])
    return rows


def draw(found: dict[str, dict[str, Summary]]) -> Any:
    def onto(axes: Any) -> None:
        variants = list(next(iter(found.values())))
        width = 0.8 / len(variants)
        for number, variant in enumerate(variants):
            positions = [load + (number - (len(variants) - 1) / 2) * width for load in range(len(found))]
            rates = [summaries[variant].rate for summaries in found.values()]
            bars = axes.bar(positions, rates, width * 0.95, label=variant)
            axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], fontsize=7)
        axes.set_xticks(range(len(found)), list(found))
        axes.set_ylabel("answers a second")
        axes.legend(fontsize=8)

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=4.0, rounds=5, connections=256)
    parser.add_argument("--lock-pool", type=int, default=10, help="connections of the rival lock")
    args = options.parse(parser, seconds=0.3, rounds=1, connections=16)
    report = Report(
        "accept", "Accepts: winners, losers, replays", options.shown(args), folder=args.results
    )
    with ExitStack() as stack:
        generator = stack.enter_context(HttpGenerator())
        dispatcher = stack.enter_context(options.target(args))
        echo = stack.enter_context(start_rival("echo", beside=dispatcher))
        lock = None
        if dispatcher.database_url:
            pool = ["--database-url", dispatcher.database_url, "--pool", str(args.lock_pool)]
            lock = stack.enter_context(start_rival("lock", *pool, beside=dispatcher))
        if dispatcher.redis_url and dispatcher.database_url:
            report.add("engines", engines.describe(dispatcher.redis_url, dispatcher.database_url))
        bench = Bench(args, generator, dispatcher, echo, lock, Fixtures(dispatcher, generator))
        bench.warm_up()
        ceiling = generator.ceiling(
            dispatcher,
            bench.finished[0],
            size=bench.sizes["winners"],
            connections=args.connections,
        )
        report.results("generator's ceiling", ceiling.as_json())
        report.note(f"the generator's own ceiling: {ceiling.rate:,.0f} a second")
        variants = ["echo", "lock", "dispatcher"] if lock is not None else ["echo", "dispatcher"]
        found = {load: compare(bench, report, load, variants) for load in FLOORS}
        below_full_load(bench, report, found["winners"]["dispatcher"].rate)
    rows = ratios(found)
    report.results("ratios", rows)
    report.table("dispatcher against", ["load", "rival", "ratio", "floor", "aim"], rows)
    report.write(draw(found))


if __name__ == "__main__":
    main()
