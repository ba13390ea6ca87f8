"""Metrics of several workers are one truth, whichever of them is asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dispatcher.observe.instruments import Histogram, Instrument
from dispatcher.observe.metrics import Metrics
from dispatcher.observe.worker_metrics import WorkerPlace

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _metrics(
    directory: Path, number: int, *counted: Instrument, changes: int = 0, sockets: int = 0, up: int = 1
) -> Metrics:
    metrics = Metrics(WorkerPlace(number, directory), counted)
    metrics.counter("changes", "Changes.", lambda: changes)
    metrics.gauge("sockets", "Sockets.", lambda: sockets)
    metrics.labelled_gauge(
        "dispatcher_engine_up", "Up.", ("engine",), lambda: {("redis",): up, ("postgres",): 1}
    )
    return metrics


def _seconds() -> Histogram:
    return Histogram("seconds", "Seconds.", ("action",), [("accept",), ("idle",)])


async def _values(metrics: Metrics) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families((await metrics.render()).decode())
        for sample in family.samples
    }


async def test_whichever_worker_is_asked_tells_of_all(tmp_path: Path) -> None:
    seconds, others_seconds = _seconds(), _seconds()
    one = _metrics(tmp_path, 0, seconds, changes=3, sockets=5)
    other = _metrics(tmp_path, 1, others_seconds, changes=4, sockets=6, up=0)
    for took_s in (0.0005, 0.3):
        seconds.of("accept").observe(took_s)
    others_seconds.of("accept").observe(0.3)
    others_seconds.of("late").observe(0.3)
    for metrics in (one, other):
        await metrics.share()
    told = await _values(one)
    assert told["changes_total", ()] == 7
    assert told["sockets", ()] == 11
    accept = ("action", "accept")
    assert told["seconds_count", (accept,)] == 3
    assert told["seconds_sum", (accept,)] == 0.6005
    assert told["seconds_bucket", (accept, ("le", "0.001"))] == 1
    assert told["seconds_bucket", (accept, ("le", "+Inf"))] == 3
    assert told["seconds_count", (("action", "late"),)] == 1
    assert told["seconds_count", (("action", "idle"),)] == 0
    # An engine that one worker cannot reach is not all there.
    assert told["dispatcher_engine_up", (("engine", "redis"),)] == 0
    assert told["dispatcher_engine_up", (("engine", "postgres"),)] == 1
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


async def test_what_is_at_zero_is_not_written_for_the_others(tmp_path: Path) -> None:
    seconds = _seconds()
    seconds.of("accept").observe(0.3)
    await _metrics(tmp_path, 0, seconds).share()
    written = (tmp_path / "worker-0.prom").read_text()
    assert 'action="accept"' in written
    assert 'action="idle"' not in written


async def test_gauges_of_a_worker_that_fell_silent_are_left_out(tmp_path: Path) -> None:
    await _metrics(tmp_path, 0, changes=3, sockets=5).share()
    a_minute_ago = time.time() - 60
    os.utime(tmp_path / "worker-0.prom", (a_minute_ago, a_minute_ago))
    told = await _values(_metrics(tmp_path, 1, changes=4, sockets=6))
    assert told["changes_total", ()] == 7
    assert told["sockets", ()] == 6
