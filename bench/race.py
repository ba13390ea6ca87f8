"""A stampede: N drivers accept one trip at the same moment, over HTTP and over WebSocket.

How long until the winner knows, how long until the last loser knows; and in Postgres, after all
rounds: has any trip two drivers?
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from harness import engines, options
from harness.figures import Run, Summary
from harness.generator import Generator
from harness.http_load import HttpLoad
from harness.loads import HttpGenerator
from harness.servers import Server
from harness.socket_load import SocketLoad
from harness.stage import Stage
from harness.wire import address, text_frame
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
    """N drivers with their connections, ready to start as often as asked."""

    def __init__(self, stage: Stage, drivers: list[str], over: str) -> None:
        self.stage = stage
        self.drivers = drivers
        self.over = over
        self.trips: list[str] = []
        self.generator = Generator(HttpLoad if over == "HTTP" else SocketLoad)
        host, port = address(stage.server.url)
        if over == "HTTP":
            self.generator.call("open", host, port, len(drivers))
        else:
            bearers = [stage.bearer("driver", driver) for driver in drivers]
            opened = self.generator.call("open", host, port, bearers)
            if opened.codes["welcome"] != len(drivers):
                raise RuntimeError(f"not every driver was welcome: {dict(opened.codes)}")

    def run(self, _: int) -> Run:
        """One trip, one start. The winner then drives it to its end, to be free again."""
        [trip] = self.stage.trips(1)
        self.trips.append(trip)
        if self.over == "HTTP":
            calls = [self.stage.accept_call(driver, trip) for driver in self.drivers]
            self.generator.call("keep", calls)
            sample, answers = self.generator.call("burst")
            won = [place for place, (_, answer) in answers.items() if answer[9:12] == b"200"]
        else:
            frames = [self._frame(trip) for _ in self.drivers]
            sample, answers = self.generator.call("burst", frames)
            won = [place for place, (_, answer) in answers.items() if b'"ack"' in answer[:40]]
        if len(won) != 1:
            raise RuntimeError(f"{len(won)} winners among {len(self.drivers)}: {sample.codes}")
        lost = [took for place, (took, _) in answers.items() if place != won[0]]
        self.stage.act(self.drivers[won[0]], trip, "arrive", "start", "complete")
        return Run.of(
            sample,
            winner_ms=answers[won[0]][0] * 1000,
            last_loser_ms=max(lost, default=0.0) * 1000,
        )

    def _frame(self, trip: str) -> bytes:
        [key] = self.stage.names("k", 1)
        frame = {"type": "trip_action", "id": key, "action": "accept", "trip_request_id": trip}
        return text_frame({**frame, "idempotency_key": key})

    def close(self) -> None:
        self.generator.call("close")
        self.generator.__exit__(None, None, None)


def size_of_race(
    report: Report, stage: Stage, amount: int, rounds: int
) -> tuple[list[Summary], list[str]]:
    drivers = stage.drivers(amount)
    races = {over: Race(stage, drivers, over) for over in ("HTTP", "WebSocket")}
    try:
        runs = {f"{amount} drivers, {over}": race.run for over, race in races.items()}
        found = report.in_turn(runs, rounds, what="race")
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
    parser = options.parser(__doc__, seconds=0.0, rounds=10, connections=0)
    parser.add_argument("--drivers", type=int, nargs="+", default=[10, 100, 1_000, 5_000])
    chosen = options.parse(parser, rounds=2, drivers=[10, 50])
    report = Report("race", "Races: N drivers on one trip", options.shown(chosen), folder=chosen.results)
    with options.target(chosen) as server, HttpGenerator() as generator:
        if server.redis_url and server.database_url:
            report.add("engines", engines.describe(server.redis_url, server.database_url))
        found: list[Summary] = []
        trips: list[str] = []
        for amount in chosen.drivers:
            summaries, raced = size_of_race(report, Stage(server, generator), amount, chosen.rounds)
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
    report.write(draw(found, chosen.drivers))


if __name__ == "__main__":
    main()
