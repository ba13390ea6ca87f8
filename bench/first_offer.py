"""What matching costs where drivers are plenty: from the customer's call to the first offer on a socket.

One server with a zone for each policy, and with many more free drivers around each pickup than a wave
asks. Trips are asked for in turn, one zone after the other, so that whatever else the machine does
disturbs all of them alike. `queue` is a zone of the policy `auto` in which all of it is a queue's place:
who came first is asked alone.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from harness import options
from harness.encoding import address, text_frame
from harness.figures import percentiles_ms
from harness.fixtures import Fixtures
from harness.http_generator import HttpGenerator
from harness.load_process import LoadProcess
from harness.servers import start_dispatcher
from harness.socket_load import SocketLoad
from report import Report

ZONES = ("nearest", "auto", "matched", "queue")
#: In a zone of the policy `matched` each trip waits for its round, which is the policy's own choice.
COMPARED = ("nearest", "auto", "queue")
AT = {"lat": 40.70, "lng": -74.01}
AREA = [[-74.02, 40.69], [-74.0, 40.69], [-74.0, 40.71], [-74.02, 40.71], [-74.02, 40.69]]
HEARTBEAT = text_frame({"type": "heartbeat"})
#: Trips of each zone between two signs of life of its drivers, whose positions grow old as well.
TRIPS_A_BLOCK = 50


def write_zones(folder: Path) -> Path:
    feature = {"type": "Polygon", "coordinates": [AREA]}
    (folder / "area.geojson").write_text(json.dumps(feature))
    text = "".join(
        f"[zones.{zone}]\ndispatch = '{'auto' if zone == 'queue' else zone}'\nmatch_head_start_s = 1\n"
        for zone in ZONES
    )
    path = folder / "zones.toml"
    path.write_text(text + "[zones.queue.queues.all]\narea = 'area.geojson'\n")
    return path


class Zone:
    """A zone with drivers on sockets, and how long each of its trips took."""

    def __init__(self, fixtures: Fixtures, drivers: int) -> None:
        self.fixtures = fixtures
        self.names = fixtures.drivers(drivers, at=AT)
        self.first_s: list[float] = []

    def time_a_trip(self, sockets: Any) -> None:
        """Asks for a trip, and takes it back once it was offered."""
        fixtures = self.fixtures
        [trip] = fixtures.names(f"{fixtures.zone}_t", 1)
        [customer] = fixtures.names("c", 1)
        body = {"pickup": AT, "vehicle_type": "car", "trip_request_id": trip, "zone": fixtures.zone}
        sockets.call("watch")
        sockets.start("seen", 1, 10.0)
        began = time.monotonic()
        status, answer = fixtures.call("POST", "/api/customer/ride/create", body, "customer", customer)
        if status != 201:
            raise RuntimeError(f"create: {status} {answer}")
        offers = [at for at, _, text in sockets.result() if b'"type":"offer"' in text]
        if not offers:
            raise RuntimeError(f"a trip of the zone {fixtures.zone} was not offered")
        self.first_s.append(min(offers) - began)
        cancel = {"trip_request_id": trip}
        fixtures.call("POST", "/api/customer/ride/cancel", cancel, "customer", customer)


def measure(zones: dict[str, Zone], sockets: Any, trips: int, progress: Any) -> None:
    task = progress.add_task("", total=trips)
    done = 0
    while done < trips:
        for zone in zones.values():
            zone.fixtures.online(zone.names, at=AT)
        amount = sum(len(zone.names) for zone in zones.values())
        sockets.call("pace", [HEARTBEAT], amount * 2.0, 1.0)
        for _ in range(min(TRIPS_A_BLOCK, trips - done)):
            for name, zone in zones.items():
                progress.update(task, description=name)
                zone.time_a_trip(sockets)
            done += 1
            progress.update(task, advance=1, refresh=True)


def main() -> None:
    parser = options.build_parser(__doc__, seconds=0.0, rounds=1, connections=0)
    add = parser.add_argument
    add("--zones", nargs="+", choices=ZONES, default=list(COMPARED), help="what is compared")
    add("--drivers", type=int, default=30, help="free drivers around the pickups of a zone")
    add("--trips", type=int, default=600, help="trips of each zone")
    args = options.parse(parser, drivers=6, trips=3)
    report = Report("first_offer", "Matching where drivers are plenty", options.shown(args),
                    folder=args.results)  # fmt: skip
    with TemporaryDirectory() as folder:
        environment = {"DISPATCHER_ZONES_FILE": str(write_zones(Path(folder)))}
        with (
            start_dispatcher(environment=environment) as server,
            HttpGenerator() as http,
            LoadProcess(SocketLoad) as sockets,
            report.progress() as progress,
        ):
            zones = {n: Zone(Fixtures(server, http, zone=n), args.drivers) for n in args.zones}
            bearers = [z.fixtures.bearer("driver", d) for z in zones.values() for d in z.names]
            sockets.call("open", *address(server.url), bearers)
            measure(zones, sockets, args.trips, progress)
    found = {name: percentiles_ms(zone.first_s) for name, zone in zones.items()}
    report.results("first offer ms", found)
    base = zones.get("nearest")
    ratios = {
        name: median(s / b for s, b in zip(zone.first_s, base.first_s, strict=True))
        for name, zone in zones.items()
        if base is not None
    }
    report.results("median of the ratios to nearest, trip by trip", ratios)
    report.table(
        "from the customer's call to the first offer, ms", ["zone", "p50", "p90", "p99", "ratio"],
        [
            [name, *(f"{ms[p]:.1f}" for p in ("p50", "p90", "p99")), f"{ratios.get(name, 1):.2f}"]
            for name, ms in found.items()
        ],
    )  # fmt: skip

    def draw(axes: Any) -> None:
        names = list(found)
        axes.bar(names, [found[name]["p99"] for name in names], label="p99")
        axes.bar(names, [found[name]["p50"] for name in names], label="p50")
        axes.set_ylabel("ms to the first offer")
        axes.legend()

    report.write(draw)


if __name__ == "__main__":
    main()
