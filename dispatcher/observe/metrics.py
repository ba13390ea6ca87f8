"""Metrics of a server, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dispatcher.observe.refusal_log import REFUSAL_LOG
from dispatcher.observe.worker_metrics import WorkerMetrics, WorkerPlace

#: Upper bounds in s. An accept takes 1 to 20 ms; what takes longer than 1 s is logged.
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BUCKET_LABELS: Final = (*map(str, _BUCKETS_S), "+Inf")


class Metrics:
    """The metrics of this process, and of all workers where it is one of several."""

    def __init__(self, place: WorkerPlace | None = None) -> None:
        self.registry = CollectorRegistry()
        durations = _RequestDurations()
        self.registry.register(durations)
        self.labelled_counter(
            "dispatcher_refusals", "Refused changes and limited calls.", "code",
            lambda: REFUSAL_LOG.counts,
        )  # fmt: skip
        ProcessCollector(registry=self.registry)
        #: Counts one request: method, route, status, duration in s.
        self.count_request: Final = durations.count
        self._workers = WorkerMetrics(place, self.registry) if place else None

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a value that `read` tells whenever the metrics are rendered, like open sockets."""
        Gauge(name, documentation, registry=self.registry).set_function(read)

    def labelled_gauge(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        """Add values that `read` tells whenever the metrics are rendered, by the values of `labels`."""
        self.registry.register(_ReadGauges(name, documentation, labels, read))

    def counter(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a value that only grows, which `read` tells; `name` is without `_total`."""
        self.registry.register(_ReadCounter(name, documentation, read))

    def labelled_counter(
        self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """The same for several values, one for each value of `label`."""
        self.registry.register(_ReadCounters(name, documentation, label, read))

    async def render(self) -> bytes:
        """All metrics in the text exposition format, version 0.0.4."""
        return await self._workers.render() if self._workers else generate_latest(self.registry)

    async def share(self) -> None:
        """Tell the other workers what this one has counted, where there are others."""
        if self._workers:
            await self._workers.write()


class _Series:
    """The requests of one method, route and status: how many fell into each bucket, and their sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * len(_BUCKET_LABELS)
        self.sum_s = 0.0


class _RequestDurations(Collector):
    """A histogram of durations; counting costs a tenth of what prometheus_client's own costs."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], _Series] = {}

    def count(self, method: str, route: str, status: int, took_s: float) -> None:
        series = self._series.get((method, route, status))
        if series is None:
            series = self._series[(method, route, status)] = _Series()
        series.counts[bisect_left(_BUCKETS_S, took_s)] += 1
        series.sum_s += took_s

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "dispatcher_http_request_seconds",
            "Durations of HTTP requests.",
            labels=("method", "route", "status"),
        )
        for (method, route, status), series in list(self._series.items()):
            cumulative = zip(_BUCKET_LABELS, map(float, accumulate(series.counts)), strict=True)
            family.add_metric((method, route, str(status)), list(cumulative), series.sum_s)
        yield family


class _ReadCounter(Collector):
    """A counter that another part keeps."""

    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._name, self._documentation, self._read = name, documentation, read

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, value=self._read())


class _ReadGauges(Collector):
    """Gauges by labels that another part keeps."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        self._family = (name, documentation, labels)
        self._read = read

    def collect(self) -> Iterator[Metric]:
        name, documentation, labels = self._family
        family = GaugeMetricFamily(name, documentation, labels=labels)
        for values, value in self._read().items():
            family.add_metric(values, value)
        yield family


class _ReadCounters(Collector):
    """A counter with one label that another part keeps."""

    def __init__(
        self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        self._name, self._documentation, self._label, self._read = name, documentation, label, read

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=(self._label,))
        for value, number in list(self._read().items()):
            family.add_metric((value,), number)
        yield family
