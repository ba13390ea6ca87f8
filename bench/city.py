"""The demo's city, without the view, at rising load: until time to assignment p99 leaves 1 s.

Time to assignment is from a customer's request, before it is sent, until that customer knows their
driver. It holds no human: drivers here accept every offer at once, where the demo's ponder for two to
eight simulated seconds, decline, or ignore. All else is the demo's: real pickups (at random times, at
the rate that is asked for), cars that say once a second where they are, rides, crowds that fight for a
trip, a third of all requests sent twice, connections that break.

There are twice the drivers that are on a trip at any moment, so nobody waits for a driver to become
free; the fewest that were free are printed. Pickups that no free driver is in reach of are left out.
The apps live in one process. Where its event loop runs late, or its CPU is used up, the time is the
apps' and not the server's: such a step is no knee, and is marked as the generator's.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from harness import engines, options
from harness.accounting import Cpu
from harness.city_load import PARTS, CityLoad, CitySample
from harness.figures import Run, Summary, percentiles_ms
from harness.generator import Generator
from harness.servers import Server
from harness.wire import AUDIENCE
from report import Report

from dispatcher.demo.city import Plan
from dispatcher.demo.invariants import Finding, check_invariants
from dispatcher.demo.pickups import SHIPPED, read_pickups
from dispatcher.demo.server import GRACE_S, PRESENCE_S, waves_at, zones_at

LIMIT_MS = 1_000.0
# On its way to a customer, get in, and to the drop-off: simulated seconds of a mean trip at 30 km/h.
TRIP_S = 660.0
SPARE = 2.0
FEWEST_DRIVERS = 100
# The generator is the bottleneck where it has no CPU left, or where what it adds by being late (a trip
# is in its hands five times until the customer knows) is most of the limit.
BUSY = 0.90
HANDS = 5
PATIENCE_S = 10.0
# Of a core, used by nobody in the bench: the figures are then not the dispatcher's alone.
DISTURBING = 0.15
# Longer than all waves of the zones file: by then, a trip that nobody took has expired.
CALM_S = 30.0
ONLINE_S = 120.0

PROCESSES = ("server", "redis", "postgres", "generator", "others")
TIMES = ["trips/s", "assigned/s", "% assigned", "p50", "p90", "p99", "p99.9", *PARTS]
COSTS = ["trips/s", *(f"µs\n{name}" for name in PROCESSES[:3])]
COSTS += [f"cores\n{name}" for name in PROCESSES] + ["generator\nlate p99 ms", "fewest\nfree drivers"]


class Step:
    """One load: its runs, and what stopped it."""

    def __init__(self, rate: float, runs: list[Run]) -> None:
        self.rate = rate
        self.found = Summary(f"{rate:g}", runs)

    @property
    def generators(self) -> bool:
        """Whether the generator, and not the server, decided."""
        late_ms = self.found.extra("generator late p99 ms")
        cpu = self.found.extra("cores generator")
        return cpu > BUSY or HANDS * late_ms > LIMIT_MS / 2

    @property
    def holds(self) -> bool:
        return self.found.latency_ms["p99"] <= LIMIT_MS

    def times(self) -> list[str]:
        found, latency = self.found, self.found.latency_ms
        return [
            found.name,
            f"{found.rate:.1f}",
            f"{100 * found.extra('share assigned'):.1f}",
            *(f"{latency[p]:.0f}" for p in ("p50", "p90", "p99", "p99.9")),
            *(f"{found.extra(f'{part} p99 ms'):.0f}" for part in PARTS),
        ]

    def costs(self) -> list[str]:
        found, cpu = self.found, self.found.cpu_us
        return [
            found.name,
            *(f"{cpu[part]:,.0f}" for part in ("server", "redis", "postgres")),
            *(f"{found.extra(f'cores {part}'):.2f}" for part in PROCESSES),
            f"{found.extra('generator late p99 ms'):.0f}",
            f"{found.extra('fewest free'):.0f} of {found.extra('drivers'):.0f}",
        ]


class Bench:
    """A city in a process of its own, and the server it lives on."""

    def __init__(self, server: Server, chosen: Any) -> None:
        self.server = server
        self.chosen = chosen
        self.speed: float = chosen.speed
        self.generator = Generator(CityLoad)
        self.process = psutil.Process(self.generator.pid)
        self.drivers = 0
        self.answered: list[tuple[str, int]] = []
        self.mismatches: list[str] = []
        self._enter()

    def _enter(self) -> None:
        _, pickups = read_pickups(SHIPPED, None)
        plan = Plan(
            url=self.server.url,
            server_pid=0,
            secret=self.server.secret,
            audience=AUDIENCE,
            issuer=None,
            run=secrets.token_hex(4),
            pickups=[(p.after_s, p.lat, p.lng) for p in pickups],
            drivers=0,
            speed=self.speed,
            minutes=None,
            reach_m=max(wave.radius_m for wave in waves_at(self.speed)),
        )
        self.generator.call("open", plan)

    def _leave(self) -> None:
        answered, mismatches = self.generator.call("close")
        self.answered += answered
        self.mismatches += mismatches

    def step(self, rate: float) -> Step:
        trip_s = TRIP_S / self.speed
        drivers = FEWEST_DRIVERS + math.ceil(rate * trip_s * SPARE)
        fewer = drivers < self.drivers
        self.generator.call("settle", CALM_S, empty=fewer)
        if fewer:  # idle drivers are load, too: a new city, once the server has missed the old one
            self._leave()
            time.sleep(2 * (PRESENCE_S + GRACE_S))
            self._enter()
        self.drivers = drivers
        self.generator.call("populate", drivers, ONLINE_S)
        return Step(rate, [self.run(rate, trip_s) for _ in range(self.chosen.rounds)])

    def run(self, rate: float, warm_s: float) -> Run:
        """One measured time, after as long as a trip takes: positions and rides are under way."""
        seconds = self.chosen.seconds
        self.generator.start("measure", rate, warm_s, seconds, PATIENCE_S)
        time.sleep(warm_s)
        before, own, whole, started = *self._used(), time.monotonic()
        time.sleep(seconds)
        after, own_after, whole_after = self._used()
        took, cpu, own = time.monotonic() - started, after - before, own_after - own
        sample: CitySample = self.generator.result()
        others = whole_after - whole - own - cpu.server - cpu.redis - cpu.postgres
        used = (cpu.server, cpu.redis, cpu.postgres, own, max(0.0, others))
        used_s = dict(zip(PROCESSES, used, strict=True))
        return Run(
            rate=sample.assignments / sample.elapsed_s,
            count=sample.asked,
            seconds=sample.elapsed_s,
            latency_ms=percentiles_ms(sample.waits),
            codes=sample.codes,
            cpu_us=cpu.per_request_us(sample.assignments),
            extra={
                "offered": sample.asked / sample.elapsed_s,
                "share assigned": sample.assigned / max(1, sample.asked),
                **{f"{name} p99 ms": p99(took_s) for name, took_s in sample.parts.items()},
                **{f"cores {name}": used / took for name, used in used_s.items()},
                "generator late p99 ms": p99(sample.lags),
                "requests a second": sample.requests / sample.elapsed_s,
                "positions and heartbeats a second": sample.frames / sample.elapsed_s,
                "drivers": sample.drivers,
                "fewest free": sample.free,
            },
        )

    def _used(self) -> tuple[Cpu, float, float]:
        """CPU seconds so far: of the system under test, of the generator, of the whole machine."""
        times, machine = self.process.cpu_times(), psutil.cpu_times()
        whole = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        return self.server.accounts.read(), float(times.user + times.system), float(whole)

    def close(self) -> tuple[list[Finding], list[str]]:
        """Everybody leaves; then Postgres is asked whether every invariant held."""
        self._leave()
        self.generator.__exit__(None, None, None)
        if self.server.database_url is None:
            return [], self.mismatches
        findings = asyncio.run(check_invariants(self.server.database_url, self.answered))
        return findings, self.mismatches


def p99(samples: list[float]) -> float:
    return percentiles_ms(samples).get("p99", 0.0)


def climb(bench: Bench, report: Report, rates: list[float], refine: int) -> list[Step]:
    """Up until a step does not hold; then in between, as often as asked."""
    steps: list[Step] = []
    with report.progress() as progress:
        task = progress.add_task("", total=len(rates) + refine)

        def take(rate: float) -> Step:
            progress.update(task, description=f"{rate:g} trips a second", refresh=True)
            steps.append(bench.step(rate))
            progress.update(task, advance=1, refresh=True)
            return steps[-1]

        low, high = 0.0, math.inf
        for rate in rates:
            if not take(rate).holds:
                high = rate
                break
            low = rate
        progress.update(task, total=len(steps) + (refine if 0 < low < high < math.inf else 0))
        for _ in range(refine):
            if not 0 < low < high < math.inf:
                break
            between = float(f"{math.sqrt(low * high):.2g}")
            if take(between).holds:
                low = between
            else:
                high = between
    return sorted(steps, key=lambda step: step.rate)


def verdict(steps: list[Step]) -> tuple[dict[str, Any], str]:
    """The knee: the highest load that held, below which every load held."""
    held = [step for step in steps if step.holds]
    broken = next((step for step in steps if not step.holds), None)
    last = held[-1] if held else None
    knee = {
        "holds at": last.rate if last else 0.0,
        "broken at": broken.rate if broken else None,
        "the generator's": bool(broken and broken.generators),
    }
    if broken is None:
        return knee, f"p99 stays within {LIMIT_MS / 1000:g} s up to {steps[-1].rate:g} trips a second"
    by = "the generator's limit, not the server's" if broken.generators else "the knee"
    below = f"p99 holds at {last.rate:g} trips a second" if last else "p99 holds at no load"
    return knee, f"{below} and is beyond {LIMIT_MS / 1000:g} s at {broken.rate:g}: {by}"


def draw(steps: list[Step], knee: dict[str, Any]) -> Any:
    def onto(axes: Any) -> None:
        for name, mark in (("p50", "o-"), ("p99", "s-")):
            times = [step.found.latency_ms[name] for step in steps]
            axes.plot([step.rate for step in steps], times, mark, label=name)
        if late := [step for step in steps if step.generators]:
            times = [step.found.latency_ms["p99"] for step in late]
            axes.plot([step.rate for step in late], times, "rx", markersize=11, label="the generator's")
        axes.axhline(LIMIT_MS, color="grey", linestyle="--", linewidth=1, label="1 s")
        if knee["broken at"] is not None and knee["holds at"]:
            axes.axvspan(knee["holds at"], knee["broken at"], color="orange", alpha=0.25, label="knee")
        axes.set_yscale("log")
        axes.set_ylim(bottom=1)
        axes.set_xlabel("trips asked for a second")
        axes.set_ylabel("ms from request to assignment")
        axes.legend(fontsize=8)

    return onto


def main() -> None:
    parser = options.parser(__doc__, seconds=10.0, rounds=1, connections=0)
    add = parser.add_argument
    add("--rates", type=float, nargs="+", default=[5, 10, 20, 40, 80, 160, 320],
        help="trips asked for a second, rising; ends at the first that is too much")  # fmt: skip
    add("--refine", type=int, default=2, help="loads tried between the last good and the first bad")
    add("--speed", type=float, default=60.0, help="simulated seconds a second")
    chosen = options.parse(parser, seconds=1.5, rounds=1, rates=[4.0, 8.0], refine=0, speed=600.0)
    report = Report(
        "city", "The demo's city at rising load", options.shown(chosen), folder=chosen.results
    )
    with TemporaryDirectory() as folder:
        zones = Path(folder) / "zones.toml"
        zones.write_text(zones_at(chosen.speed))
        own = {  # as in the demo: phones say where they are often enough to be seen moving
            "DISPATCHER_ZONES_FILE": str(zones),
            "DISPATCHER_PRESENCE_TTL_S": str(PRESENCE_S),
            "DISPATCHER_PRESENCE_GRACE_S": str(GRACE_S),
        }
        with options.target(chosen, environment=own) as server:
            if server.redis_url and server.database_url:
                report.add("engines", engines.describe(server.redis_url, server.database_url))
            bench = Bench(server, chosen)
            steps = climb(bench, report, sorted(chosen.rates), chosen.refine)
            findings, mismatches = bench.close()
    knee, said = verdict(steps)
    report.results("steps", [{"asked": step.rate, **step.found.as_json()} for step in steps])
    report.results("knee", knee)
    report.results("invariants", {f.name: f.violations for f in findings})
    report.results("replay mismatches", len(mismatches))
    for step in steps:
        codes = ", ".join(f"{code} {amount}" for code, amount in step.found.codes.items())
        report.note(f"{step.found.name} trips/s: {codes or 'no errors'}")
    report.table("CPU for each assigned trip; CPU cores in use; how late the generator was",
                 COSTS, [step.costs() for step in steps])  # fmt: skip
    report.table("time to assignment in ms, and p99 of its parts", TIMES,
                 [step.times() for step in steps])  # fmt: skip
    for finding in findings:
        report.note(f"{finding.name}: {finding.violations} {'; '.join(finding.examples)}".strip())
    report.note(f"replay mismatches: {len(mismatches)}")
    report.note(said)
    if disturbed := [step.found.name for step in steps if step.found.extra("cores others") > DISTURBING]:
        report.note(f"something else used this machine at {', '.join(disturbed)} trips a second")
    report.write(draw(steps, knee))


if __name__ == "__main__":
    main()
