"""What a policy of dispatch is worth on the running service, where drivers are scarce.

The demo's apps, as in `city.py`: drivers accept every offer at once, over sockets, and compete for a
third of the trips. More customers ask than the drivers can serve, wherever they are; who is not served
within three simulated minutes gives up. Waves and rounds are shortened with the city's speed. The
figures are what Postgres holds afterwards, of all trips that were asked for.

Then the simulator of `dispatch.py`, which is the planner alone, is run with as many drivers as make its
`nearest` serve the same share: what it promises there is what the running service is to keep.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import numpy as np
from harness import options
from harness.city_load import ScarceCityLoad
from harness.encoding import AUDIENCE
from harness.load_process import LoadProcess
from harness.same_scarcity import Load, promised
from harness.servers import Server, start_dispatcher
from report import Report

from dispatcher.core.zones import Wave
from dispatcher.demo.city_plan import CityPlan
from dispatcher.demo.invariants import check_invariants
from dispatcher.demo.pickups import BUNDLED_PICKUPS, read_pickups
from dispatcher.demo.server import GRACE_S, PRESENCE_S

POLICIES = ("nearest", "matched", "auto")
#: (drivers, radius in m, simulated seconds): together three minutes, as in `dispatch.py`.
WAVES = ((3, 1_500, 12), (5, 3_000, 12), (8, 6_000, 156))
#: Of the zones file: rounds are no shorter than that.
SHORTEST_ROUND_S = 0.5
#: What lies further (degrees) from the middle pickup is left out.
CITY_DEGREES = 0.18
ONLINE_S = 120.0
#: What Postgres is told of offers is behind by two flushes.
FLUSHED_S = 5.0
FIGURES = """
SELECT count(*)::float8 AS asked,
       (count(*) FILTER (WHERE accepted_at IS NOT NULL))::float8 AS served,
       coalesce(avg(extract(epoch FROM accepted_at - created_at)), 0)::float8 AS accepted_after_s,
       coalesce((SELECT avg(distance_m) FROM trip_offers WHERE outcome = 'accepted'), 0) AS way_m,
       (SELECT count(*) FROM trip_offers)::float8 AS offers,
       (SELECT count(*) FROM trip_offers WHERE score IS NOT NULL)::float8 AS matched_offers
  FROM trip_requests
"""


def round_s(speed: float) -> float:
    """Real seconds between two rounds of matching."""
    return max(SHORTEST_ROUND_S, 3 / speed)


def zones_file(policy: str, speed: float) -> str:
    waves = ", ".join(
        f"{{ size = {size}, radius_m = {radius_m}, deadline_s = {max(1.0, seconds / speed):.2f} }}"
        for size, radius_m, seconds in WAVES
    )
    every_s = round_s(speed)
    return (
        f"[zones.default]\nwaves = [{waves}]\ndispatch = '{policy}'\nmatch_every_s = {every_s}\n"
        f"match_head_start_s = {max(SHORTEST_ROUND_S, 5 / speed)}\n"
    )


def inner_pickups() -> list[tuple[float, float, float]]:
    """When (s), and where in degrees."""
    _, pickups = read_pickups(BUNDLED_PICKUPS, None)
    lat, lng = (float(np.median([getattr(p, axis) for p in pickups])) for axis in ("lat", "lng"))
    return [(p.after_s, p.lat, p.lng) for p in pickups
            if abs(p.lat - lat) < CITY_DEGREES and abs(p.lng - lng) < CITY_DEGREES]  # fmt: skip


def city_plan(server: Server, speed: float) -> CityPlan:
    """The same city for each policy."""
    inside = inner_pickups()
    random.Random(1).shuffle(inside)
    return CityPlan(
        url=server.url, server_pid=0, secret=server.secret, audience=AUDIENCE, issuer=None,
        run="scarce", pickups=inside, drivers=0, speed=speed, minutes=None,
        max_radius_m=WAVES[-1][1],
    )  # fmt: skip


async def read_figures(database_url: str) -> dict[str, float]:
    connection = await asyncpg.connect(database_url)
    try:
        return dict(await connection.fetchrow(FIGURES))
    finally:
        await connection.close()


def run(policy: str, args: Any) -> tuple[dict[str, float], int]:
    """One policy's figures, and how many times an invariant did not hold."""
    with TemporaryDirectory() as folder:
        zones = Path(folder) / "zones.toml"
        zones.write_text(zones_file(policy, args.speed))
        environment = {
            "DISPATCHER_ZONES_FILE": str(zones),
            "DISPATCHER_PRESENCE_TTL_S": str(PRESENCE_S),
            "DISPATCHER_PRESENCE_GRACE_S": str(GRACE_S),
        }
        with start_dispatcher(environment=environment) as server, LoadProcess(ScarceCityLoad) as load:
            assert server.database_url is not None
            load.call("open", city_plan(server, args.speed))
            load.call("populate", args.drivers, ONLINE_S)
            waits_s = sum(seconds for _, _, seconds in WAVES) / args.speed
            load.call("measure", args.rate, args.warm, args.seconds, 1.2 * waits_s)
            time.sleep(FLUSHED_S)
            found = asyncio.run(read_figures(server.database_url))
            answered, _ = load.call("close")
            findings = asyncio.run(check_invariants(server.database_url, answered))
    return found, sum(finding.violations for finding in findings)


def row(policy: str, found: dict[str, float], nearest: dict[str, float] | None, bad: int) -> list[str]:
    share, way_km = found["served"] / found["asked"], found["way_m"] / 1000
    gain = ["", ""]
    if nearest:
        gain = [f"{share / (nearest['served'] / nearest['asked']) - 1:+.1%}",
                f"{1 - found['way_m'] / nearest['way_m']:+.1%}"]  # fmt: skip
    return [
        policy, f"{found['asked']:.0f}", f"{share:.1%}", f"{way_km:.2f}",
        f"{found['accepted_after_s']:.2f}", f"{found['offers']:.0f}",
        f"{found['matched_offers']:.0f}", *gain, str(bad),
    ]  # fmt: skip


def keep(report: Report, found: dict[str, dict[str, float]], args: Any) -> None:
    """How the gains compare with those of the simulator at the same scarcity."""
    share = {policy: of["served"] / of["asked"] for policy, of in found.items()}
    places = [(lat, lng) for _, lat, lng in inner_pickups()]
    load = Load(
        round(args.rate * (args.warm + args.seconds)), args.simulated_trips,
        args.rate / args.speed, places,
        [Wave(*wave) for wave in WAVES], every_s=round_s(args.speed) * args.speed,
    )  # fmt: skip
    simulated = promised(load, share["nearest"], list(found))
    rows, kept = [], {}
    for policy in found:
        if policy == "nearest":
            continue
        (served, way_m), (base, base_m) = simulated[policy], simulated["nearest"]
        kept[policy] = {
            "more served": share[policy] / share["nearest"] - 1,
            "more served, simulated": served / base - 1,
            "less way": 1 - found[policy]["way_m"] / found["nearest"]["way_m"],
            "less way, simulated": 1 - way_m / base_m,
        }
        rows.append([policy, *(f"{gain:+.1%}" for gain in kept[policy].values())])
    report.results("gains beside the simulator's", kept)
    names = ["more served", "simulated", "less way", "simulated"]
    report.table("gains over nearest, and what the simulator promises", ["policy", *names], rows)


def main() -> None:
    parser = options.build_parser(__doc__, seconds=90.0, rounds=1, connections=0)
    add = parser.add_argument
    add("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="what is compared")
    add("--drivers", type=int, default=60, help="drivers of the city")
    add("--rate", type=float, default=2.5, help="trips asked for a second")
    add("--speed", type=float, default=20.0, help="simulated seconds a second")
    add("--warm", type=float, default=20.0, help="seconds of the same load before it is measured")
    add("--simulated-trips", type=int, default=6_000, help="of all runs of the simulator together")
    args = options.parse(parser, seconds=6.0, warm=2.0, drivers=6, policies=["nearest", "matched"],
                         simulated_trips=600)  # fmt: skip
    report = Report("scarcity", "A policy of dispatch on the running service", options.shown(args),
                    folder=args.results)  # fmt: skip
    ran = {policy: run(policy, args) for policy in args.policies}
    nearest = ran["nearest"][0] if "nearest" in ran else None
    report.results("policies", {policy: found for policy, (found, _) in ran.items()})
    report.results("invariants broken", {policy: bad for policy, (_, bad) in ran.items()})
    report.table(
        "scarce drivers",
        ["policy", "asked", "served", "way km", "accepted after s", "offers", "matched",
         "more served", "less way", "broken"],
        [row(policy, found, nearest, bad) for policy, (found, bad) in ran.items()],
    )  # fmt: skip

    if nearest:
        keep(report, {policy: found for policy, (found, _) in ran.items()}, args)

    def draw(axes: Any) -> None:
        served = [found["served"] / found["asked"] for found, _ in ran.values()]
        axes.bar(list(ran), served)
        axes.set_ylabel("share of trips served")

    report.write(draw)


if __name__ == "__main__":
    main()
