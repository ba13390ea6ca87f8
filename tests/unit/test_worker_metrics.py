"""Metrics of several workers are one truth, whichever of them is asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dispatcher.observe.metrics import Metrics
from dispatcher.observe.worker_metrics import WorkerPlace

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _metrics(directory: Path, number: int, *, changes: int = 0, sockets: int = 0) -> Metrics:
    metrics = Metrics(WorkerPlace(number, directory))
    metrics.counter("changes", "Changes.", lambda: changes)
    metrics.gauge("sockets", "Sockets.", lambda: sockets)
    return metrics


async def _values(metrics: Metrics) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families((await metrics.render()).decode())
        for sample in family.samples
    }


async def test_whichever_worker_is_asked_tells_of_all(tmp_path: Path) -> None:
    one = _metrics(tmp_path, 0, changes=3, sockets=5)
    other = _metrics(tmp_path, 1, changes=4, sockets=6)
    for took_s in (0.0005, 0.3):
        one.count_request("GET", "/x", 200, took_s)
    other.count_request("GET", "/x", 200, 0.3)
    other.count_request("GET", "/y", 404, 0.3)
    for metrics in (one, other):
        await metrics.share()
    told = await _values(one)
    assert told["changes_total", ()] == 7
    assert told["sockets", ()] == 11
    labels = (("method", "GET"), ("route", "/x"), ("status", "200"))
    name = "dispatcher_http_request_seconds"
    assert told[f"{name}_count", labels] == 3
    assert told[f"{name}_sum", labels] == 0.6005
    assert told[f"{name}_bucket", (("le", "0.001"), *labels)] == 1
    assert told[f"{name}_bucket", (("le", "+Inf"), *labels)] == 3
    assert told[f"{name}_count", (("method", "GET"), ("route", "/y"), ("status", "404"))] == 1
    others = await _values(other)
    counted = {key for key in told if not key[0].startswith("process_")}  # those move on by themselves
    assert {key: told[key] for key in counted} == {key: others[key] for key in counted}


async def test_what_a_dead_worker_counted_goes_on_in_its_successor(tmp_path: Path) -> None:
    await _metrics(tmp_path, 0, changes=3, sockets=5).share()
    other = _metrics(tmp_path, 1, changes=4, sockets=6)
    successor = _metrics(tmp_path, 0, changes=1, sockets=0)
    for _ in range(2):  # inherited once, however often it is told
        await successor.share()
    for metrics in (other, successor):
        await other.share()
        told = await _values(metrics)
        assert told["changes_total", ()] == 8
        assert told["sockets", ()] == 6


async def test_gauges_of_a_worker_that_fell_silent_are_left_out(tmp_path: Path) -> None:
    await _metrics(tmp_path, 0, changes=3, sockets=5).share()
    a_minute_ago = time.time() - 60
    os.utime(tmp_path / "worker-0.prom", (a_minute_ago, a_minute_ago))
    told = await _values(_metrics(tmp_path, 1, changes=4, sockets=6))
    assert told["changes_total", ()] == 7
    assert told["sockets", ()] == 6
