"""One load of the city benchmark: its figures, whether it holds, and where the knee is."""

from __future__ import annotations

from typing import Any

from harness.city_load import PARTS
from harness.figures import Run, Summary

LIMIT_MS = 1_000.0  # of p99 of the time to assignment
# The generator is the bottleneck where it has no CPU left, or where the lateness of its event loop (a
# trip waits for it five times until the customer knows the driver) makes up half of the limit.
MAX_GENERATOR_CORES = 0.90
LOOP_TURNS_PER_TRIP = 5

PROCESSES = ("server", "redis", "postgres", "generator", "others")
TIME_COLUMNS = ["trips/s", "assigned/s", "% assigned", "p50", "p90", "p99", "p99.9", *PARTS]
COST_COLUMNS = [
    "trips/s",
    *(f"µs\n{name}" for name in PROCESSES[:3]),
    *(f"cores\n{name}" for name in PROCESSES),
    "generator\nlate p99 ms",
    "fewest\nfree drivers",
]


class CityStep:
    """One load with its runs."""

    def __init__(self, rate: float, runs: list[Run]) -> None:
        self.rate = rate
        self.found = Summary(f"{rate:g}", runs)

    @property
    def limited_by_generator(self) -> bool:
        """Whether the generator, and not the server, decided the time to assignment."""
        late_ms = self.found.extra("generator late p99 ms")
        cpu = self.found.extra("cores generator")
        return cpu > MAX_GENERATOR_CORES or LOOP_TURNS_PER_TRIP * late_ms > LIMIT_MS / 2

    @property
    def holds(self) -> bool:
        """Whether p99 of the time to assignment is within the limit."""
        return self.found.latency_ms["p99"] <= LIMIT_MS

    def times(self) -> list[str]:
        """A row of TIME_COLUMNS."""
        found, latency = self.found, self.found.latency_ms
        return [
            found.name,
            f"{found.rate:.1f}",
            f"{100 * found.extra('share assigned'):.1f}",
            *(f"{latency[p]:.0f}" for p in ("p50", "p90", "p99", "p99.9")),
            *(f"{found.extra(f'{part} p99 ms'):.0f}" for part in PARTS),
        ]

    def costs(self) -> list[str]:
        """A row of COST_COLUMNS."""
        found, cpu = self.found, self.found.cpu_us
        return [
            found.name,
            *(f"{cpu[part]:,.0f}" for part in ("server", "redis", "postgres")),
            *(f"{found.extra(f'cores {part}'):.2f}" for part in PROCESSES),
            f"{found.extra('generator late p99 ms'):.0f}",
            f"{found.extra('fewest free'):.0f} of {found.extra('drivers'):.0f}",
        ]


def verdict(steps: list[CityStep]) -> tuple[dict[str, Any], str]:
    """The knee: the highest load that held, below which every load held."""
    held = [step for step in steps if step.holds]
    broken = next((step for step in steps if not step.holds), None)
    last = held[-1] if held else None
    knee = {
        "holds at": last.rate if last else 0.0,
        "broken at": broken.rate if broken else None,
        "the generator's": bool(broken and broken.limited_by_generator),
    }
    if broken is None:
        return knee, f"p99 stays within {LIMIT_MS / 1000:g} s up to {steps[-1].rate:g} trips a second"
    by = "the generator's limit, not the server's" if broken.limited_by_generator else "the knee"
    below = f"p99 holds at {last.rate:g} trips a second" if last else "p99 holds at no load"
    return knee, f"{below} and is beyond {LIMIT_MS / 1000:g} s at {broken.rate:g}: {by}"
