"""What throughput depends on: worker processes, zones, and the size of the tables; and what many
servers of many zones cost while nothing happens.

The size of the tables must not matter: an accept must not cost more as the history grows. Nor must the
number of servers: idle zones cost the same whoever does their rounds.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import engines, options
from harness.figures import Run, Summary
from harness.fixtures import TIMEOUT_S, Fixtures
from harness.http_generator import HttpGenerator
from harness.idle_servers import measure_idle, measure_messages
from harness.servers import Server, start_dispatcher
from report import Report, load_columns, load_row

FLOOR, AIM = 0.9, 1.0
HISTORY = (Path(__file__).parent / "harness" / "history.sql").read_text()
ZONE = """
[zones.{name}]
"""


class Winners:
    """Winners on one server: each driver accepts a trip of their own, spread over the zones."""

    def __init__(self, server: Server, generator: HttpGenerator, args: Any, zones: list[str]) -> None:
        self.server = server
        self.generator = generator
        self.args = args
        # A small run starts six servers and measures little: it does not wait for each to be quiet.
        timeout_s = 0.0 if args.small else TIMEOUT_S
        self.zones_fixtures = [Fixtures(server, generator, zone, timeout_s) for zone in zones]
        self.expected = 500.0 if args.small else 3_000.0

    def run(self, _: int = 0) -> Run:
        count = int(self.expected * self.args.seconds * 1.4 / len(self.zones_fixtures)) + 50
        parts = []
        for fixtures in self.zones_fixtures:
            trips, drivers = fixtures.trips(count), fixtures.drivers(count)
            pairs = zip(drivers, trips, strict=True)
            parts.append([fixtures.accept_call(driver, trip) for driver, trip in pairs])
        calls = [call for one_of_each in zip(*parts, strict=True) for call in one_of_each]
        for fixtures in self.zones_fixtures:
            fixtures.start_clean()
        run = self.generator.measure(
            self.server,
            calls,
            seconds=self.args.seconds,
            connections=self.args.connections,
        )
        if not self.args.small:
            self.expected = run.rate
        return run


def zones_file(folder: Path, names: list[str]) -> Path:
    path = folder / f"zones-{len(names)}.toml"
    path.write_text("".join(ZONE.format(name=name) for name in names))
    return path


def with_history(server: Server, amount: int) -> None:
    """Completed trips with their events and keys, as months of operation leave them behind."""
    assert server.database_url is not None
    engines.execute(server.database_url, HISTORY.replace(":amount", str(amount)))
    # What months of operation leave behind has long been vacuumed.
    engines.execute(server.database_url, "VACUUM ANALYZE")


def compare(
    report: Report,
    generator: HttpGenerator,
    args: Any,
    what: str,
    starts: dict[str, tuple[dict[str, Any], list[str], int]],
) -> dict[str, Summary]:
    """Servers side by side, measured in turn; only one of them works at a time."""
    with ExitStack() as stack:
        runs = {}
        for name, (start, zones, history) in starts.items():
            server = stack.enter_context(start_dispatcher(**start))
            if history:
                with_history(server, history)
            winners = Winners(server, generator, args, zones)
            winners.run()  # warm, and the first estimate of what to prepare
            runs[name] = winners.run
        found = report.run_interleaved(runs, args.rounds, what=what)
    report.results(what, {name: summary.as_json() for name, summary in found.items()})
    report.table(what, load_columns(), [load_row(summary) for summary in found.values()])
    for summary in found.values():
        report.note(f"{summary.name}: {summary.codes}")
    return found


def idle(report: Report, args: Any) -> None:
    """Servers that have nothing to do, and what a server hears that has no sockets."""
    costs = []
    with report.progress() as progress:
        task = progress.add_task("idle", total=len(args.servers))
        for servers in args.servers:
            progress.update(task, description=f"idle, {servers} servers", refresh=True)
            cost = measure_idle(
                servers, args.idle_zones, args.idle_seconds, empties=True, rest_s=args.idle_rest
            )
            costs.append(cost)
            progress.update(task, advance=1, refresh=True)
    report.results("idle", [cost.as_json() for cost in costs])
    report.table(
        f"{args.idle_zones:,} idle zones",
        ["servers", "core a server", "core, all", "core of Redis", "of Postgres", "scripts/s", "INFO/s",
         "s until warm"],
        [
            [
                str(cost.servers), f"{cost.server_share:.1%}", f"{cost.all_servers_share:.1%}",
                f"{cost.redis_share:.1%}", f"{cost.postgres_share:.1%}", f"{cost.scripts_per_s:,.0f}",
                f"{cost.infos_per_s:.1f}", f"{cost.warm_s:.1f}",
            ]
            for cost in costs
        ],
    )  # fmt: skip
    heard = measure_messages(args.idle_trips)
    report.results("messages", {name: getattr(heard, name) for name in heard.__slots__})
    report.note(
        f"messages of {heard.trips} trips: {heard.with_sockets} to the server of their sockets, "
        f"{heard.without_sockets} to one without sockets"
    )


def draw(found: dict[str, dict[str, Summary]]) -> Any:
    def onto(panels: Any) -> None:
        for axes, (what, summaries) in zip(panels, found.items(), strict=True):
            bars = axes.bar(list(summaries), [summary.rate for summary in summaries.values()])
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
            axes.set_title(what, fontsize=9)
            axes.set_ylabel("winners a second")

    return onto


def load(report: Report, args: Any) -> dict[str, dict[str, Summary]]:
    """Winners by workers, by zones and by the size of the tables."""
    found = {}
    with HttpGenerator() as generator, TemporaryDirectory() as folder:
        starts: dict[str, tuple[dict[str, Any], list[str], int]] = {
            str(n): ({"options": ["--workers", str(n)]}, ["default"], 0) for n in args.workers
        }
        found["workers"] = compare(report, generator, args, "workers", starts)
        starts = {}
        for amount in args.zones:
            names = [f"z{n}" for n in range(amount)]
            path = zones_file(Path(folder), names)
            starts[str(amount)] = ({"environment": {"DISPATCHER_ZONES_FILE": str(path)}}, names, 0)
        found["zones"] = compare(report, generator, args, "zones", starts)
        starts = {f"{n:,}": ({}, ["default"], n) for n in args.history}
        found["trips in the tables"] = compare(report, generator, args, "trips in the tables", starts)
    small, *_, large = found["trips in the tables"].values()
    ratio = large.rate / small.rate
    report.results("history ratio", ratio)
    report.note(f"{large.name} trips against {small.name}: {ratio:.2f} (floor {FLOOR}, aim {AIM})")
    return found


def main() -> None:
    parser = options.build_parser(__doc__, seconds=3.0, rounds=5, connections=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--zones", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--history", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 4, 16], help="idle servers")
    parser.add_argument("--idle-zones", type=int, default=1_000, help="zones of the idle servers")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="length of an idle measurement")
    parser.add_argument("--idle-rest", type=float, default=12.0, help="rest before it")
    parser.add_argument("--idle-trips", type=int, default=20, help="trips whose messages are counted")
    parser.add_argument("--only", choices=["idle", "load"], help="measure one half alone")
    args = options.parse(
        parser, seconds=0.3, rounds=1, workers=[1, 2], zones=[1, 2], history=[100, 1_000],
        servers=[1, 2], idle_zones=20, idle_seconds=1.0, idle_rest=1.0, idle_trips=2,
    )  # fmt: skip
    if args.url:
        parser.error("scale.py compares servers of its own; it takes no --url")
    report = Report(
        "scale-idle" if args.only == "idle" else "scale",
        "Winners by workers, zones and history; idle servers of many zones",
        options.shown(args),
        folder=args.results,
    )
    found = {}
    if args.only != "idle":
        found = load(report, args)
    if args.only != "load":
        idle(report, args)
    if found:
        report.write(draw(found), panels=3)
    else:
        report.write()


if __name__ == "__main__":
    main()
