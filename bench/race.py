"""A stampede: N drivers accept one trip at the same moment, over HTTP and over WebSocket.

How long until the winner knows, how long until the last loser knows; and in Postgres, after all
rounds: has any trip two drivers?
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from harness import engines, options
from harness.encoding import address, text_frame
from harness.figures import Run, Summary
from harness.fixtures import Fixtures
from harness.http_generator import HttpGenerator
from harness.http_load import HttpLoad
from harness.load_process import LoadProcess
from harness.servers import Server
from harness.socket_load import SocketLoad
from report import Report

# Two acceptances in the history of a trip that was never given back, or two trips on one driver.
DOUBLE_ASSIGNMENTS = """
SELECT (SELECT count(*) FROM (
          SELECT trip_id FROM trip_events WHERE trip_id = ANY($1::text[])
          GROUP BY trip_id HAVING count(*) FILTER (WHERE event = 'accepted') > 1) twice)
     + (SELECT count(*) FROM (
          SELECT driver_id FROM trip_requests
          WHERE current_status IN ('accepted', 'arrived', 'ongoing')
          GROUP BY driver_id HAVING count(*) > 1) busy)
"""


class Race:
    """N drivers with their connections, who race for one trip in each run."""

    def __init__(self, fixtures: Fixtures, drivers: list[str], over: str) -> None:
        self.fixtures = fixtures
        self.drivers = drivers
        self.over = over
        self.trips: list[str] = []
        self.generator = LoadProcess(HttpLoad if over == "HTTP" else SocketLoad)
        host, port = address(fixtures.server.url)
        if over == "HTTP":
            self.generator.call("open", host, port, len(drivers))
        else:
            bearers = [fixtures.bearer("driver", driver) for driver in drivers]
            opened = self.generator.call("open", host, port, bearers)
            if opened.codes["welcome"] != len(drivers):
                raise RuntimeError(f"not every driver was welcome: {dict(opened.codes)}")

    def run(self, _: int) -> Run:
        """One race. The winner then completes the trip, to be free again."""
        [trip] = self.fixtures.trips(1)
        self.trips.append(trip)
        if self.over == "HTTP":
            calls = [self.fixtures.accept_call(driver, trip) for driver in self.drivers]
            self.generator.call("keep", calls)
            sample, answers = self.generator.call("burst")
            won = [index for index, (_, answer) in answers.items() if answer[9:12] == b"200"]
        else:
            frames = [self._frame(trip) for _ in self.drivers]
            sample, answers = self.generator.call("burst", frames)
            won = [index for index, (_, answer) in answers.items() if b'"ack"' in answer[:40]]
        if len(won) != 1:
            raise RuntimeError(f"{len(won)} winners among {len(self.drivers)}: {sample.codes}")
        lost = [took for index, (took, _) in answers.items() if index != won[0]]
        self.fixtures.act(self.drivers[won[0]], trip, "arrive", "start", "complete")
        return Run.of(
            sample,
            winner_ms=answers[won[0]][0] * 1000,
            last_loser_ms=max(lost, default=0.0) * 1000,
        )

    def _frame(self, trip: str) -> bytes:
        [key] = self.fixtures.names("k", 1)
        frame = {"type": "trip_action", "id": key, "action": "accept", "trip_request_id": trip}
        return text_frame({**frame, "idempotency_key": key})

    def close(self) -> None:
        self.generator.call("close")
        self.generator.__exit__(None, None, None)


def race_at_size(
    report: Report, fixtures: Fixtures, amount: int, rounds: int
) -> tuple[list[Summary], list[str]]:
    drivers = fixtures.drivers(amount)
    races = {over: Race(fixtures, drivers, over) for over in ("HTTP", "WebSocket")}
    try:
        runs = {f"{amount} drivers, {over}": race.run for over, race in races.items()}
        found = report.run_interleaved(runs, rounds, what="race")
    finally:
        for race in races.values():
            race.close()
    trips = [trip for race in races.values() for trip in race.trips]
    return list(found.values()), trips


def double_assignments(server: Server, trips: list[str]) -> int | None:
    if server.database_url is None:
        return None
    return int(engines.value(server.database_url, DOUBLE_ASSIGNMENTS, trips))


def row(summary: Summary) -> list[str]:
    winner = [run.extra["winner_ms"] for run in summary.runs]
    loser = [run.extra["last_loser_ms"] for run in summary.runs]
    return [
        summary.name,
        f"{median(winner):.1f}",
        f"{max(winner):.1f}",
        f"{median(loser):.1f}",
        f"{max(loser):.1f}",
        f"{summary.latency_ms.get('p50', 0):.1f}",
    ]


def draw(found: list[Summary], sizes: list[int]) -> Any:
    def onto(axes: Any) -> None:
        for over, colour in (("HTTP", "tab:blue"), ("WebSocket", "tab:orange")):
            own = [summary for summary in found if summary.name.endswith(over)]
            for extra, style in (("winner_ms", "-o"), ("last_loser_ms", "--s")):
                label = f"{over}: {extra.removesuffix('_ms').replace('_', ' ')} knows"
                axes.plot(sizes, [s.extra(extra) for s in own], style, color=colour, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("drivers on one trip")
        axes.set_ylabel("ms after the start, median")
        axes.legend(fontsize=8)

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=0.0, rounds=10, connections=0)
    parser.add_argument("--drivers", type=int, nargs="+", default=[10, 100, 1_000, 5_000])
    args = options.parse(parser, rounds=2, drivers=[10, 50])
    report = Report("race", "Races: N drivers on one trip", options.shown(args), folder=args.results)
    with options.target(args) as server, HttpGenerator() as generator:
        if server.redis_url and server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        found: list[Summary] = []
        trips: list[str] = []
        for amount in args.drivers:
            summaries, raced = race_at_size(report, Fixtures(server, generator), amount, args.rounds)
            found += summaries
            trips += raced
        double = double_assignments(server, trips)
    codes: Counter[str] = Counter()
    for summary in found:
        codes.update(summary.codes)
    report.results("races", [summary.as_json() for summary in found])
    report.results("double assignments", double)
    report.table(
        "from the start, in ms",
        ["", "winner, median", "worst", "last loser, median", "worst", "answers p50"],
        [row(summary) for summary in found],
    )
    report.note(f"answers: {dict(codes)}")
    report.note(f"{len(trips)} trips; double assignments, counted in Postgres: {double}")
    report.write(draw(found, args.drivers))


if __name__ == "__main__":
    main()
