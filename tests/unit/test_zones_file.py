"""The zones file: what it says is what counts, and what is wrong in it is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dispatcher
from dispatcher.config import SettingsError
from dispatcher.core.zones import Matching, Weights
from dispatcher.zones_file import load_zones

EXAMPLE = Path(dispatcher.__file__).parent / "zones" / "new-york.toml"
SQUARE = [[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]
#: A zone of half the square, and in it a queue.
#: A zone whose trips wait for 5 s.
_SHORT = "[zones.b]\nwaves = [{ size = 1, radius_m = 6000, deadline_s = 5 }]\n"
_QUEUE = "[zones.b]\narea = 'half.geojson'\n[zones.b.queues.q]\n"
HALF = [[0, 0], [0, 1], [0.5, 1], [0.5, 0], [0, 0]]
INNER = [[0.1, 0.1], [0.1, 0.2], [0.2, 0.2], [0.2, 0.1], [0.1, 0.1]]


def _write(folder: Path, toml: str, **areas: object) -> Path:
    for name, ring in areas.items():
        document = {"type": "Polygon", "coordinates": [ring]}
        (folder / f"{name}.geojson").write_text(json.dumps(document))
    path = folder / "zones.toml"
    path.write_text(toml)
    return path


def test_the_example_knows_new_york() -> None:
    zones = load_zones(EXAMPLE)
    assert set(zones.names()) == {
        "manhattan", "brooklyn", "queens", "bronx", "staten-island", "default",
    }  # fmt: skip
    for name, place in {
        "manhattan": (40.7580, -73.9855),
        "brooklyn": (40.6782, -73.9442),
        "queens": (40.7282, -73.7949),
        "bronx": (40.8448, -73.8648),
        "staten-island": (40.5795, -74.1502),
        "default": (40.6895, -74.1745),  # Newark's airport: outside all boroughs
    }.items():
        assert zones.locate(*place).name == name
    for zone, place in {"manhattan": (40.7506, -73.9930), "queens": (40.7720, -73.8720)}.items():
        found = zones.get(zone)
        assert found is not None
        assert found.queue_at(*place) in found.queues


def test_without_a_file_there_is_one_zone() -> None:
    assert load_zones(None).names() == ["default"]


def test_settings_of_a_zone(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "[zones.a]\narea = 'square.geojson'\naccept_policy = 'offered'\noffers_per_driver = 1\n"
        "waves = [{ size = 2, radius_m = 300, deadline_s = 5 }]\nlimits = { trip_accept = '3/10' }\n",
        square=SQUARE,
    )
    zone = load_zones(path).get("a")
    assert zone is not None
    assert (zone.accept_policy, zone.offers_per_driver) == ("offered", 1)
    assert [(w.size, w.radius_m, w.deadline_s) for w in zone.waves] == [(2, 300, 5)]
    assert zone.limits == {"trip_accept": (3, 10)}
    assert load_zones(path).locate(0.5, 0.5).name == "a"
    assert load_zones(path).locate(2, 2).name == "default"


@pytest.mark.parametrize(
    ("toml", "line", "what"),
    [
        ("[zones.a]\n\n[zones.a]\n", "line 3", "twice"),
        ("[zones.ok]\n\n[zones.b]\narea = 'bow.geojson'\n", "line 3", "Self-intersection"),
        ("[zones.b]\narea = 'none.geojson'\n", "line 1", "none.geojson"),
        ("\n[zones.b]\narea = 'square.geojson#x'\nsize = 3\n", "line 2", "size"),
        ("[zones.B]\n", "line 1", "lower-case"),
        ("[zones.b]\nwaves = []\n", "line 1", "waves"),
        ("[zones.b]\naccept_policy = 'closed'\n", "line 1", "accept_policy"),
        ("[zones.b]\nlimits = { trip_accept = 'many' }\n", "line 1", "10/60"),
        ("[zones.b]\narea = 'far.geojson'\n", "line 1", "leaves the Earth"),
        ("[zones.b]\ndispatch = 'fairest'\n", "line 1", "dispatch"),
        ("[zones.b]\nmatch_weights = { idle = -1 }\n", "line 1", "match_weights.idle"),
        ("[zones.b]\nmatch_weights = { waiting = nan }\n", "line 1", "match_weights.waiting"),
        ("[zones.b]\nmatch_speed_kmh = 1e-320\n", "line 1", "match_speed_kmh"),
        ("[zones.b]\nmatch_weights = { beauty = 1 }\n", "line 1", "match_weights.beauty"),
        ("[zones.b]\nmatch_every_s = 0\n", "line 1", "match_every_s"),
        ("[zones.b]\nmatch_head_start_s = 0\n", "line 1", "match_head_start_s"),
        ("[zones.b]\nrouting_url = 'osrm'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'ftp://osrm'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http://:5000'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http://user@/'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http:///osrm'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http://?osrm'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http://[::1'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http://a b'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http://osrm:65536'\n", "line 1", "routing_url: takes a URL"),
        ("[zones.b]\nrouting_url = 'http://osrm/?a=1'\n", "line 1", "routing_url: takes no query"),
        ("[zones.b]\nmatch_speed_kmh = 0\n", "line 1", "match_speed_kmh: Input should be greater"),
        ("[zones.b]\nmatch_speed_kmh = 0.9\n", "line 1", "match_speed_kmh: Input should be greater"),
        ("[zones.b]\nmatch_speed_kmh = -5\n", "line 1", "match_speed_kmh: Input should be greater"),
        ("[zones.b]\nmatch_speed_kmh = 201\n", "line 1", "match_speed_kmh: Input should be less"),
        ("[zones.b]\nmatch_speed_kmh = inf\n", "line 1", "match_speed_kmh: Input should be"),
        ("[zones.b]\nmatch_speed_kmh = nan\n", "line 1", "match_speed_kmh: Input should be"),
        ("[zones.b]\nrouting_url = 'http://osrm'\nrouting_deadline_s = 3\n", "line 1", "match_every_s"),
        (_SHORT + "match_every_s = 5\n", "line 1", "zone b: match_every_s: must be less than the time"),
        (_SHORT + "match_every_s = 4.6\nrouting_url = 'http://osrm'\n", "line 1", "match_every_s"),
        (
            _QUEUE + "area = 'square.geojson'\n",
            "line 3",
            "zone b: queue q: area: square.geojson is not inside",
        ),
        (_QUEUE + "area = 'none.geojson'\n", "line 3", "zone b: queue q: area: none.geojson"),
        (_QUEUE + "area = 'bow.geojson'\n", "line 3", "zone b: queue q: area: bow.geojson is broken"),
        (_QUEUE + "area = 'line.geojson'\n", "line 3", "zone b: queue q: area: line.geojson"),
        (_QUEUE + "area = 'inner.geojson'\nabsence_s = 1\n", "line 3", "zone b: queue q: absence_s"),
        (_QUEUE + "absence_s = 60\n", "line 3", "zone b: queue q: area"),
        (
            _QUEUE.replace("zones.b.queues.q", ' zones . "b" . queues . q '),
            "line 3",
            "zone b: queue q: area",
        ),
        (
            "[zones.b]\noffers_per_driver = 1\nqueues.q.area = 'bow.geojson'\n",
            "line 1",
            "zone b: queue q: area",
        ),
        (
            _QUEUE.replace(".q]", ".Q]") + "area = 'inner.geojson'\n",
            "line 3",
            "zone b: queue Q: a queue's name",
        ),
        (
            _QUEUE + "area = 'inner.geojson'\n[zones.b.queues.other]\narea = 'inner.geojson'\n",
            "line 5",
            "zone b: queue other: area: inner.geojson overlaps the queue q",
        ),
        ("[zones\n", "line 1", "]"),
        ("", "zones.toml", "no [zones.NAME]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, line: str, what: str) -> None:
    path = _write(
        tmp_path,
        toml,
        square=SQUARE,
        half=HALF,
        inner=INNER,
        bow=[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]],
        line=[[0, 0], [1, 1]],
        far=[[0, 0], [0, 1], [400, 1], [400, 0], [0, 0]],
    )
    with pytest.raises(SettingsError) as refused:
        load_zones(path)
    message = str(refused.value)
    assert message.startswith("DISPATCHER_ZONES_FILE: ")
    assert line in message
    assert what in message


def test_a_limit_that_a_zone_turns_off_stays_off(tmp_path: Path) -> None:
    path = tmp_path / "zones.toml"
    path.write_text("[zones.a]\nlimits = { trip_accept = 'off', general = '5/60' }\n")
    zone = load_zones(path).get("a")
    assert zone is not None
    assert zone.limits == {"trip_accept": (0, 1), "general": (5, 60)}


def test_queues_of_a_zone(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        _QUEUE
        + "area = 'inner.geojson'\n[zones.default.queues.far]\narea = 'far.geojson'\nabsence_s = 60\n",
        half=HALF,
        inner=INNER,
        far=[[5, 5], [5, 6], [6, 6], [6, 5], [5, 5]],
    )
    zones = load_zones(path)
    zone, default = zones.get("b"), zones.get("default")
    assert zone is not None
    assert default is not None
    (queue,) = zone.queues
    assert (queue.name, queue.absence_s, zone.queue("q"), zone.queue("far")) == ("q", 300, queue, None)
    assert zone.queue_at(0.15, 0.15) is queue
    assert zone.queue_at(0.3, 0.3) is None
    assert [(q.name, q.absence_ms) for q in default.queues] == [("far", 60_000)]


@pytest.mark.parametrize(
    "url",
    [
        "http://osrm",
        "https://osrm.example/base/",
        "http://10.0.0.7:5000",
        "http://[::1]:5000",
        "http://u:p@h",
    ],
)
def test_routing_urls_that_have_a_host(tmp_path: Path, url: str) -> None:
    path = _write(tmp_path, f"[zones.a]\nrouting_url = '{url}'\nmatch_speed_kmh = 200\n")
    zone = load_zones(path).get("a")
    assert zone is not None
    assert zone.matching.routing_url == url


@pytest.mark.parametrize("more", ["match_every_s = 4.9\n", "match_every_s = 60\ndispatch = 'nearest'\n"])
def test_waves_that_are_shorter_than_usual(tmp_path: Path, more: str) -> None:
    assert load_zones(_write(tmp_path, _SHORT + more)).get("b") is not None


def test_how_a_zone_dispatches(tmp_path: Path) -> None:
    path = tmp_path / "zones.toml"
    path.write_text(
        "[zones.a]\ndispatch = 'matched'\nmatch_every_s = 2\nmatch_head_start_s = 4\n"
        "match_speed_kmh = 30\nmatch_weights = { idle = 0.5 }\nrouting_url = 'http://osrm:5000'\n"
        "routing_deadline_s = 0.2\n"
    )
    zones = load_zones(path)
    zone, usual = zones.get("a"), zones.get("default")
    assert zone is not None
    assert usual is not None
    assert zone.matching == Matching(
        "matched", 2, 4, 30, Weights(idle=0.5), "http://osrm:5000", routing_deadline_s=0.2
    )
    assert usual.matching == Matching(), "auto, unless the file says otherwise"
    assert usual.matching.dispatch == "auto"
