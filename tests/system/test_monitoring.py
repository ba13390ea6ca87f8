"""What a running server exposes is what docs/metrics.md, the dashboard and the alerts speak of."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.servers import Serve, make_token

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "docs" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS = MONITORING / "alerts.yml"
#: What Grafana puts into a query before Prometheus reads it.
GRAFANA_VARIABLES = {"$__rate_interval": "5m", "$zone": ".+", "$job": ".+"}
#: Labels that Prometheus adds to what it scrapes.
TARGET_LABELS = {"instance", "job"}
PROMTOOL = shutil.which("promtool")


class Exposition(NamedTuple):
    """What a server tells Prometheus, and the metrics in it by name."""

    text: str
    families: dict[str, Metric]

    def samples(self) -> set[str]:
        return {sample.name for family in self.families.values() for sample in family.samples}


@pytest.fixture
async def exposition(serve: Serve, tmp_path: Path) -> AsyncIterator[Exposition]:
    """That of a server which has just started, and has been asked for nothing else; with a queue, since
    queues have series of their own."""
    places = ROOT / "dispatcher" / "zones" / "new-york-queues.geojson"
    zones = tmp_path / "zones.toml"
    zones.write_text(f"[zones.default.queues.station]\narea = '{places}#Penn Station'\n")
    server = await serve(env={"DISPATCHER_ZONES_FILE": str(zones)})
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/metrics") as response,
    ):
        text = await response.text()
    families = {_name(family): family for family in text_string_to_metric_families(text)}
    yield Exposition(text, families)
    assert await server.stop() == 0


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _expressions() -> list[str]:
    """Every query of the dashboard, as Prometheus gets it."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in GRAFANA_VARIABLES.items():
                expression = expression.replace(variable, value)
            found.append(expression)
    return found


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def _named(expressions: list[str]) -> set[str]:
    """The metrics that queries ask for: names of this server's, and of the process."""
    return set(re.findall(r"\b(?:dispatcher|process)_[a-z_]+", " ".join(expressions)))


async def _run(*command: str, told: str = "") -> tuple[int, str]:
    done = await asyncio.to_thread(
        subprocess.run, command, input=told, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


async def test_names_types_and_labels(exposition: Exposition) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| .+ \|$", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exposed = {
        name: (family.type, {label for s in family.samples for label in s.labels} - {"le"})
        for name, family in exposition.families.items()
    }
    assert documented == exposed
    # Everything is there before anything has happened, and nothing has an empty label.
    assert all(family.samples for family in exposition.families.values())
    assert '=""' not in exposition.text
    assert _named(_expressions()) <= exposition.samples()
    assert _named([rule["expr"] for rule in _rules()]) <= exposition.samples()
    values = defaultdict(set)
    for family in exposition.families.values():
        for sample in family.samples:
            for label, value in sample.labels.items():
                values[label].add(value)
    for expression in (*_expressions(), *(rule["expr"] for rule in _rules())):
        for group in re.findall(r"\b(?:by|without|on) ?\(([\w, ]+)\)", expression):
            assert set(re.split(r",\s*", group)) <= values.keys() | TARGET_LABELS, expression
        for label, value in re.findall(r"(\w+)[=!]~?\"([^\"]+)\"", expression):
            for pattern in value.split("|") if label not in TARGET_LABELS else ():
                assert any(re.fullmatch(pattern, known) for known in values[label]), (label, pattern)
    if PROMTOOL is not None:
        assert await _run(PROMTOOL, "check", "metrics", told=exposition.text) == (0, "")


async def test_the_alerts_and_queries_are_read_by_prometheus(tmp_path: Path) -> None:
    if PROMTOOL is None:
        pytest.skip("there is no promtool here")
    status, told = await _run(PROMTOOL, "check", "rules", str(ALERTS))
    assert status == 0, told
    queries = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(_expressions())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": queries}]}))
    status, told = await _run(PROMTOOL, "check", "rules", str(file))
    assert status == 0, told
    status, told = await _run(PROMTOOL, "test", "rules", str(MONITORING / "alerts_test.yml"))
    assert status == 0, told


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 20
    placed = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & placed, panel["title"]
        assert place["x"] + place["w"] <= 24
        placed |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"


def test_every_alert_says_what_to_do() -> None:
    rules = _rules()
    assert len(rules) > 10
    metrics_page = (ROOT / "docs" / "metrics.md").read_text()
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert f"`{rule['alert']}`" in metrics_page, rule["alert"]


async def test_a_night_is_counted_as_one_truth(serve: Serve) -> None:
    """With two workers: what was done shows in the metrics, whichever is asked."""
    server = await serve("--workers", "2")
    driver, rider = (
        {"Authorization": f"Bearer {make_token(sub, role)}", "Connection": "close"}
        for sub, role in (("d1", "driver"), ("r1", "customer"))
    )
    place = {"lat": 40.7559, "lng": -73.9864}
    async with aiohttp.ClientSession() as session:

        async def post(path: str, headers: dict[str, str], body: Any) -> dict[str, Any]:
            async with session.post(server.url + path, json=body, headers=headers) as answer:
                told: dict[str, Any] = await answer.json(content_type=None)
                return told

        await post(
            "/api/driver/availability", driver,
            {"is_online": True, "availability_status": "available", "location": place},
        )  # fmt: skip
        trip = await post("/api/customer/ride/create", rider, {"pickup": place, "vehicle_type": "car"})
        accept = {"action": "accept", "trip_request_id": trip["trip"]["id"]}
        for _ in range(3):
            key = {**driver, "Idempotency-Key": "once"}
            told = await post("/api/driver/ride/trip-action", key, accept)
            assert told["response_code"] == "trip_accepted", told
        await post("/api/driver/ride/trip-action", {"Authorization": "Bearer x.y.z"}, accept)
        wanted = {
            'dispatcher_actions_total{action="accept",code="trip_accepted",transport="http"}': 3,
            'dispatcher_actions_total{action="create",code="trip_created",transport="http"}': 1,
            'dispatcher_actions_total{action="trip_action",code="invalid_token",transport="http"}': 1,
            'dispatcher_idempotency_hits_total{source="redis"}': 2,
            'dispatcher_trip_events_total{event="accepted",zone="default"}': 1,
            'dispatcher_time_to_assignment_seconds_count{zone="default"}': 1,
            'dispatcher_token_refusals_total{reason="malformed"}': 1,
            "dispatcher_commit_seconds_count": 3,
            "dispatcher_settle_seconds_count": 3,
            'dispatcher_engine_up{engine="redis"}': 1,
            "dispatcher_build_info{": 1,
        }
        async with asyncio.timeout(30):
            for _ in range(6):  # both workers are asked
                while True:
                    async with session.get(
                        f"{server.url}/metrics", headers={"Connection": "close"}
                    ) as response:
                        lines = (await response.text()).splitlines()
                    told_now = {
                        start: [
                            float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)
                        ]
                        for start in wanted
                    }
                    if told_now == {start: [float(value)] for start, value in wanted.items()}:
                        break
                    await asyncio.sleep(0.2)
    assert await server.stop() == 0
    lines_told = [json.loads(line) for line in server.log_lines()]
    (assigned,) = (line for line in lines_told if line["event"] == "Trip assigned")
    assert {"trip_id", "driver_id", "zone", "waited_ms", "request_id", "worker", "by"} <= set(assigned)
    assert (assigned["trip_id"], assigned["driver_id"]) == (trip["trip"]["id"], "d1")
    (refused,) = (line for line in lines_told if line["event"] == "Token refused")
    assert (refused["reason"], refused["count"]) == ("malformed", 1)
