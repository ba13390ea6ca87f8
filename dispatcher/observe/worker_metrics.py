"""One truth for the metrics of several workers: each writes its own to a file, and adds up all of them.

A worker writes once a second, so that the figures of the others are at most that old, whichever
worker is asked. What a dead worker counted goes on in the worker that takes its place.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

#: How often a worker writes its file.
WRITE_INTERVAL_S: Final = 1.0
#: The gauges of a file that is older are of a worker that is gone, or hangs.
_GAUGES_LIVE_S: Final = 5.0
#: What is not the sum over all workers.
_MERGED_OTHERWISE: Final[dict[str, Callable[[float, float], float]]] = {
    "process_start_time_seconds": min,
    "process_max_fds": min,
    "dispatcher_build_info": max,
    # Each worker has counted the same.
    "dispatcher_waiting_trips": max,
    "dispatcher_free_drivers": max,
    "dispatcher_drivers_with_fix": max,
    "dispatcher_webhook_pause_seconds": max,
    "dispatcher_engine_up": min,  # what one worker cannot reach is not all there
}


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Which of several workers a process is, and where they all write their metrics."""

    number: int
    directory: Path


class WorkerMetrics:
    """The metrics of this worker and of its siblings."""

    def __init__(self, place: WorkerPlace) -> None:
        self._directory = place.directory
        self._file = place.directory / f"worker-{place.number}.prom"
        self._inherited = [metric for metric in _read(self._file) if _is_counted(metric)]

    async def render(self, own: Sequence[Metric]) -> bytes:
        """The metrics of all workers in the text exposition format, version 0.0.4; `own` are this
        process' own."""
        # Parsing the files of many workers takes some 10 ms each, which calls are not to wait for.
        return await asyncio.to_thread(self._render_with_siblings, own)

    async def write(self, own: Sequence[Metric]) -> None:
        """Writes what this worker has counted, for its siblings and for its successor.

        Series at zero may be left out of `own`: whoever renders has them anyway.
        """
        text = generate_latest(Collected(_merge([*self._inherited, *own])))
        await asyncio.to_thread(self._replace_file, text)

    def _render_with_siblings(self, own: Sequence[Metric]) -> bytes:
        metrics = [*own, *self._inherited]
        for file in sorted(self._directory.glob("worker-*.prom")):
            if file != self._file:
                metrics += _read_sibling(file)
        return generate_latest(Collected(_merge(metrics)))

    def _replace_file(self, text: bytes) -> None:
        written = self._file.with_suffix(".new")
        written.write_bytes(text)
        written.replace(self._file)


class Collected(CollectorRegistry):
    """Metrics that were collected before, in the form that the library renders."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self.register(_Fixed(metrics))


class _Fixed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _is_counted(metric: Metric) -> bool:
    return metric.type in ("counter", "histogram")


def _read(file: Path) -> list[Metric]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    return list(text_string_to_metric_families(text))


def _read_sibling(file: Path) -> list[Metric]:
    try:
        is_live = time.time() - file.stat().st_mtime < _GAUGES_LIVE_S
    except FileNotFoundError:
        return []
    return [metric for metric in _read(file) if is_live or _is_counted(metric)]


def _merge(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics of the same name become one; samples of the same name and labels are added up."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for metric in metrics:
        if metric.name not in families:
            families[metric.name] = Metric(metric.name, metric.documentation, metric.type)
            values[metric.name] = {}
        add = _MERGED_OTHERWISE.get(metric.name, _add)
        samples = values[metric.name]
        for sample in metric.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            samples[key] = add(samples[key], sample.value) if key in samples else sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return list(families.values())


def _add(one: float, other: float) -> float:
    return math.fsum((one, other))
