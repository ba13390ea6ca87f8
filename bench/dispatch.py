"""What a policy of dispatch is worth: a day of a city's demand, against the product's own planner.

Six days of real pickups are laid over one, as far as they lie around the city's middle. Drivers drive
straight at 22 km/h, take the first offer they see at once, and wait where they dropped their customer
off; a trip is given up after three minutes; waves reach 6 km. The planner is the one that the server
runs: how a trip looks for drivers, round by round (`nearest`), how trips are assigned together
(`matched`), and when the one changes to the other (`auto`). `first come` is the usual way: every few
seconds the trip that has waited longest is given its nearest driver, then the next one.

What is served varies by a percent or two with where the drivers begin, so each figure is the mean of
several days that differ in that, in the seconds of the pickups and in the drop-offs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import options
from harness.simulated_day import FCFS, FIX_AGE_MS, City, Day, lay_over_one_day
from report import Report

from dispatcher.core.zones import Matching, Wave
from dispatcher.demo.pickups import Pickup, read_pickups
from dispatcher.matching.looks import widest_reach_m
from dispatcher.matching.model import NearbyDriver, WaitingTrip
from dispatcher.matching.planner import plan_round

PICKUPS = Path(__file__).parent / "data" / "new-york-six-days.csv"
POLICIES = (FCFS, "nearest", "matched", "auto")
#: Together three minutes, which is what a customer waits.
WAVES = (Wave(3, 1_500, 12), Wave(5, 3_000, 12), Wave(8, 6_000, 156))
#: What lies further (km) from the middle pickup is another zone's.
CITY_KM = 20.0
ROUND_TRIPS = 300
#: The same numbers by name: in the JSON, and as the table's columns.
FIGURES = {
    "served": "served %", "way_km": "way km", "wait_min": "wait min", "wait_p90_min": "p90 min",
    "idle": "idle %", "gini": "Gini",
}  # fmt: skip


def city_pickups(limit: int | None) -> tuple[float, list[Pickup]]:
    """The second of the day of the file's first pickup, and the pickups around the middle one."""
    first, pickups = read_pickups(PICKUPS, None)
    lat, lng = (float(np.median([getattr(p, axis) for p in pickups])) for axis in ("lat", "lng"))
    east = np.cos(np.radians(lat))
    inside = [
        p for p in pickups if 111.2 * np.hypot(p.lat - lat, (p.lng - lng) * east) <= CITY_KM
    ]  # fmt: skip
    return first.hour * 3600.0 + first.minute * 60, inside[:limit]


def simulate(
    drivers: int, policy: str, days: int, pickups: Sequence[Pickup], first_at_s: float
) -> list[Day]:
    return [
        City(lay_over_one_day(pickups, first_at_s, seed), drivers, policy, WAVES, seed).run()
        for seed in range(days)
    ]


def figures(days: Sequence[Day]) -> dict[str, float]:
    found = {name: float(np.mean([getattr(day, name) for day in days])) for name in FIGURES}
    rounds_ms = [ms for day in days for ms in day.rounds_ms]
    return found | {"rounds a day": len(rounds_ms) / len(days)}


def row(drivers: int, policy: str, found: dict[str, float]) -> list[str]:
    return [
        f"{drivers} {policy}", f"{found['served']:.1%}", f"{found['way_km']:.2f}",
        f"{found['wait_min']:.2f}", f"{found['wait_p90_min']:.1f}", f"{found['idle']:.0%}",
        f"{found['gini']:.3f}", f"{found['rounds a day']:,.0f}",
    ]  # fmt: skip


def gains(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What a policy serves more, and drives less, than another one, as shares of the latter."""
    pairs = [("matched", "nearest"), ("matched", FCFS), ("nearest", FCFS), ("auto", "nearest")]
    return {
        f"{one} over {other}": {
            "more served": found[one]["served"] / found[other]["served"] - 1,
            "less way": 1 - found[one]["way_km"] / found[other]["way_km"],
        }
        for one, other in pairs
        if one in found and other in found
    }


def round_cost_ms(free: int, rounds: int) -> list[float]:
    """What the planner costs for so many free drivers, all over a city of 20 km, in ms of one core."""
    draw = random.Random(free)
    taken = []
    for _ in range(rounds):
        trips = [
            WaitingTrip(f"t{i}", *place(draw), "car", 0, widest_reach_m(WAVES))
            for i in range(ROUND_TRIPS)
        ]
        drivers = [
            NearbyDriver(f"d{i}", *place(draw), "car", 0, present_until_ms=1) for i in range(free)
        ]
        began = time.process_time()
        plan_round(
            trips, drivers, Matching(), now_ms=0, fix_age_ms=FIX_AGE_MS, max_open_offers=3
        )  # fmt: skip
        taken.append((time.process_time() - began) * 1000)
    return taken


def place(draw: random.Random) -> tuple[float, float]:
    return 40.75 + draw.uniform(-0.09, 0.09), -73.98 + draw.uniform(-0.12, 0.12)


def plot(found: dict[int, dict[str, dict[str, float]]]) -> Any:
    def onto(axes: Any) -> None:
        for axis, (name, title) in zip(
            axes, (("served", "share of trips served"), ("way_km", "km to the pickup")), strict=True
        ):
            for policy in next(iter(found.values())):
                values = [of_policy[policy][name] for of_policy in found.values()]
                axis.plot(list(found), values, "o-", label=policy)
            axis.set_xlabel("drivers")
            axis.set_ylabel(title)
            axis.legend(fontsize=8)

    return onto


def main() -> None:
    parser = options.build_parser(__doc__, seconds=0.0, rounds=3, connections=0)
    add = parser.add_argument
    add("--drivers", type=int, nargs="+", default=[120, 160, 200, 260, 400], help="rows of the table")
    add("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="what is compared")
    add("--pickups", type=int, help="only the first so many pickups of the file")
    add("--free", type=int, nargs="+", default=[100, 1_000, 5_000],
        help="free drivers for the cost of a round")  # fmt: skip
    args = options.parse(parser, rounds=1, drivers=[6, 30], pickups=300, free=[100])
    report = Report("dispatch", "What a policy of dispatch is worth", options.shown(args),
                    folder=args.results)  # fmt: skip
    first_at_s, pickups = city_pickups(args.pickups)
    report.note(f"{len(pickups):,} trips a day")
    found: dict[int, dict[str, dict[str, float]]] = {}
    with report.progress() as progress:
        task = progress.add_task("", total=len(args.drivers) * len(args.policies))
        for drivers in args.drivers:
            found[drivers] = {}
            for policy in args.policies:
                progress.update(task, description=f"{drivers} drivers, {policy}", refresh=True)
                days = simulate(drivers, policy, args.rounds, pickups, first_at_s)
                found[drivers][policy] = figures(days)
                progress.update(task, advance=1, refresh=True)
    rounds_ms = {free: round_cost_ms(free, 10) for free in args.free}
    report.results("policies", found)
    report.results("gains", {drivers: gains(of_policy) for drivers, of_policy in found.items()})
    report.results("rounds", {
        free: {"p50 ms": float(np.median(ms)), "max ms": max(ms)} for free, ms in rounds_ms.items()
    })  # fmt: skip
    report.table(
        "drivers and policy", ["", *FIGURES.values(), "rounds"],
        [row(n, policy, of) for n, of_policy in found.items() for policy, of in of_policy.items()],
    )  # fmt: skip
    report.table(
        "gains", ["drivers", "", "more served", "less way"],
        [
            [str(n), name, f"{gain['more served']:+.1%}", f"{gain['less way']:+.1%}"]
            for n, of_policy in found.items()
            for name, gain in gains(of_policy).items()
        ],
    )  # fmt: skip
    report.table(
        f"cost of a round of {ROUND_TRIPS} trips, ms of one core", ["free drivers", "p50 ms", "max ms"],
        [[f"{free:,}", f"{np.median(ms):.1f}", f"{max(ms):.1f}"] for free, ms in rounds_ms.items()],
    )  # fmt: skip
    report.write(plot(found), panels=2)


if __name__ == "__main__":
    main()
