"""Metrics of a server, in Prometheus' text format."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dispatcher.observe import series
from dispatcher.observe.instruments import Instrument
from dispatcher.observe.worker_metrics import Collected, WorkerMetrics, WorkerPlace


class Metrics:
    """The metrics of this process, and of all workers where it is one of several.

    `instruments` count by themselves; what else there is is read when the metrics are rendered.
    """

    def __init__(
        self, place: WorkerPlace | None = None, instruments: Sequence[Instrument] = series.ALL
    ) -> None:
        self._instruments = instruments
        self._read: Final = CollectorRegistry()
        ProcessCollector(registry=self._read)
        self._workers = WorkerMetrics(place) if place else None

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a value that `read` tells whenever the metrics are rendered, like open connections."""
        self.labelled_gauge(name, documentation, (), lambda: {(): read()})

    def labelled_gauge(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        """Add values that `read` tells whenever the metrics are rendered, by the values of `labels`."""
        self._read.register(_Read(GaugeMetricFamily, name, documentation, labels, read))

    def counter(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a value that only grows, which `read` tells; `name` is without `_total`."""
        self._read.register(_Read(CounterMetricFamily, name, documentation, (), lambda: {(): read()}))

    def labelled_counter(
        self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """The same for several values, one for each value of `label`."""
        self._read.register(
            _Read(
                CounterMetricFamily, name, documentation, (label,),
                lambda: {(value,): number for value, number in read().items()},
            )
        )  # fmt: skip

    async def render(self) -> bytes:
        """All metrics in the text exposition format, version 0.0.4."""
        own = [*self._read.collect(), *(m for each in self._instruments for m in each.collect())]
        if self._workers:
            return await self._workers.render(own)
        parts = []
        for metric in own:
            # All of it takes some 10 ms, and calls are not to wait for it.
            parts.append(generate_latest(Collected([metric])))
            await asyncio.sleep(0)
        return b"".join(parts)

    async def share(self) -> None:
        """Tell the other workers what this one has counted, where there are others."""
        if self._workers:
            counted = [m for each in self._instruments for m in each.counted()]
            await self._workers.write([*self._read.collect(), *counted])


class _Read(Collector):
    """What another part keeps, by labels."""

    def __init__(
        self,
        family: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        documentation: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        self._family = family
        self._described = (name, documentation, labels)
        self._read = read

    def collect(self) -> Iterator[Metric]:
        name, documentation, labels = self._described
        family = self._family(name, documentation, labels=labels)
        for values, value in self._read().items():
            family.add_metric(values, value)
        yield family
