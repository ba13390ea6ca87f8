"""The demo's city, without the view, at rising load: until time to assignment p99 leaves 1 s.

Time to assignment is from just before a customer's request is sent until that customer knows the
driver. It contains no human delay: drivers here accept every offer at once, while those of the demo
think for two to eight simulated seconds, decline, or ignore. All else is as in the demo: real pickups
(at random times, at the given rate), cars that report their position once a second, rides, drivers who
compete for a trip, a third of all requests sent twice, connections that break.

There are twice as many drivers as are on a trip at any moment, so nobody waits for a driver to become
free; the smallest number of free drivers is printed. Pickups without a free driver in the radius of a
wave are left out. The apps run in one process. Where its event loop runs late, or its CPU is used up,
the apps and not the server decide the time: such a step is no knee, and is marked as the generator's.
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
from harness.city_load import CityLoad, CitySample
from harness.city_step import COST_COLUMNS, LIMIT_MS, PROCESSES, TIME_COLUMNS, CityStep, verdict
from harness.cpu_usage import CpuSeconds
from harness.encoding import AUDIENCE
from harness.figures import Run, percentiles_ms
from harness.load_process import LoadProcess
from harness.servers import Server
from report import Report

from dispatcher.demo.city_plan import CityPlan
from dispatcher.demo.invariants import Finding, check_invariants
from dispatcher.demo.pickups import BUNDLED_PICKUPS, read_pickups
from dispatcher.demo.server import GRACE_S, PRESENCE_S, scaled_waves, scaled_zones

# A mean trip at 30 km/h, in simulated seconds: to the customer, boarding, to the drop-off.
TRIP_S = 660.0
SPARE = 2.0  # drivers for each one who is on a trip
MIN_DRIVERS = 100
TIMEOUT_S = 10.0
# Where others use more of a core than this, the figures are not the dispatcher's alone.
MAX_OTHER_CORES = 0.15
# Longer than all waves of the zones file: by then, a trip that nobody accepted has expired.
SETTLE_S = 30.0
ONLINE_S = 120.0


class Bench:
    """A city in a load process, and the server that its apps use."""

    def __init__(self, server: Server, args: Any) -> None:
        self.server = server
        self.args = args
        self.speed: float = args.speed
        self.generator = LoadProcess(CityLoad)
        self.process = psutil.Process(self.generator.pid)
        self.drivers = 0
        self.answered: list[tuple[str, int]] = []
        self.mismatches: list[str] = []
        self._open_city()

    def _open_city(self) -> None:
        _, pickups = read_pickups(BUNDLED_PICKUPS, None)
        plan = CityPlan(
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
            max_radius_m=max(wave.radius_m for wave in scaled_waves(self.speed)),
        )
        self.generator.call("open", plan)

    def _close_city(self) -> None:
        answered, mismatches = self.generator.call("close")
        self.answered += answered
        self.mismatches += mismatches

    def step(self, rate: float) -> CityStep:
        trip_s = TRIP_S / self.speed
        drivers = MIN_DRIVERS + math.ceil(rate * trip_s * SPARE)
        fewer = drivers < self.drivers
        self.generator.call("settle", SETTLE_S, empty=fewer)
        if fewer:  # idle drivers are load, too: a new city, once the old drivers are offline
            self._close_city()
            time.sleep(2 * (PRESENCE_S + GRACE_S))
            self._open_city()
        self.drivers = drivers
        self.generator.call("populate", drivers, ONLINE_S)
        return CityStep(rate, [self.run(rate, trip_s) for _ in range(self.args.rounds)])

    def run(self, rate: float, warm_s: float) -> Run:
        """One measured run. It begins after the length of a trip, when rides are under way."""
        seconds = self.args.seconds
        self.generator.start("measure", rate, warm_s, seconds, TIMEOUT_S)
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

    def _used(self) -> tuple[CpuSeconds, float, float]:
        """CPU seconds so far: of the system under test, of the generator, of the whole machine."""
        times, machine = self.process.cpu_times(), psutil.cpu_times()
        whole = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        return self.server.processes.cpu(), float(times.user + times.system), float(whole)

    def close(self) -> tuple[list[Finding], list[str]]:
        """Closes the city, then checks in Postgres that every invariant held."""
        self._close_city()
        self.generator.__exit__(None, None, None)
        if self.server.database_url is None:
            return [], self.mismatches
        findings = asyncio.run(check_invariants(self.server.database_url, self.answered))
        return findings, self.mismatches


def p99(samples: list[float]) -> float:
    return percentiles_ms(samples).get("p99", 0.0)


def raise_load(bench: Bench, report: Report, rates: list[float], refine: int) -> list[CityStep]:
    """Raises the load until a step does not hold, then tries `refine` loads in between."""
    steps: list[CityStep] = []
    with report.progress() as progress:
        task = progress.add_task("", total=len(rates) + refine)

        def measure(rate: float) -> CityStep:
            progress.update(task, description=f"{rate:g} trips a second", refresh=True)
            steps.append(bench.step(rate))
            progress.update(task, advance=1, refresh=True)
            return steps[-1]

        low, high = 0.0, math.inf
        for rate in rates:
            if not measure(rate).holds:
                high = rate
                break
            low = rate
        progress.update(task, total=len(steps) + (refine if 0 < low < high < math.inf else 0))
        for _ in range(refine):
            if not 0 < low < high < math.inf:
                break
            between = float(f"{math.sqrt(low * high):.2g}")
            if measure(between).holds:
                low = between
            else:
                high = between
    return sorted(steps, key=lambda step: step.rate)


def draw(steps: list[CityStep], knee: dict[str, Any]) -> Any:
    def onto(axes: Any) -> None:
        for name, mark in (("p50", "o-"), ("p99", "s-")):
            times = [step.found.latency_ms[name] for step in steps]
            axes.plot([step.rate for step in steps], times, mark, label=name)
        if late := [step for step in steps if step.limited_by_generator]:
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
    parser = options.build_parser(__doc__, seconds=10.0, rounds=1, connections=0)
    add = parser.add_argument
    add("--rates", type=float, nargs="+", default=[5, 10, 20, 40, 80, 160, 320],
        help="trips asked for a second, rising; ends at the first that is too much")  # fmt: skip
    add("--refine", type=int, default=2, help="loads tried between the last good and the first bad")
    add("--speed", type=float, default=60.0, help="simulated seconds a second")
    args = options.parse(parser, seconds=1.5, rounds=1, rates=[4.0, 8.0], refine=0, speed=600.0)
    report = Report("city", "The demo's city at rising load", options.shown(args), folder=args.results)
    with TemporaryDirectory() as folder:
        zones = Path(folder) / "zones.toml"
        zones.write_text(scaled_zones(args.speed))
        own = {  # as in the demo: phones say where they are often enough to be seen moving
            "DISPATCHER_ZONES_FILE": str(zones),
            "DISPATCHER_PRESENCE_TTL_S": str(PRESENCE_S),
            "DISPATCHER_PRESENCE_GRACE_S": str(GRACE_S),
        }
        with options.target(args, environment=own) as server:
            if server.redis_url and server.database_url:
                report.add("engines", engines.describe(server.redis_url, server.database_url))
            bench = Bench(server, args)
            steps = raise_load(bench, report, sorted(args.rates), args.refine)
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
                 COST_COLUMNS, [step.costs() for step in steps])  # fmt: skip
    report.table("time to assignment in ms, and p99 of its parts", TIME_COLUMNS,
                 [step.times() for step in steps])  # fmt: skip
    for finding in findings:
        report.note(f"{finding.name}: {finding.violations} {'; '.join(finding.examples)}".strip())
    report.note(f"replay mismatches: {len(mismatches)}")
    report.note(said)
    if disturbed := [
        step.found.name for step in steps if step.found.extra("cores others") > MAX_OTHER_CORES
    ]:
        report.note(f"something else used this machine at {', '.join(disturbed)} trips a second")
    report.write(draw(steps, knee))


if __name__ == "__main__":
    main()
