"""Figures from samples: percentiles, medians over rounds, ratios between variants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from harness.cpu_usage import CpuSeconds
from harness.http_load import Sample

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def percentiles_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    """Exact percentiles of all samples (no buckets), in milliseconds."""
    if not len(latencies_s):
        return {}
    values = np.percentile(np.asarray(latencies_s, dtype=float), PERCENTILES) * 1000
    return {f"p{p:g}": float(v) for p, v in zip(PERCENTILES, values, strict=True)}


@dataclass(slots=True)
class Run:
    """One variant in one round."""

    rate: float
    count: int
    seconds: float
    latency_ms: dict[str, float] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    cpu_us: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, sample: Sample, cpu: CpuSeconds | None = None, **extra: Any) -> Run:
        count = len(sample.latencies)
        if sample.late:
            extra["unsent"] = sample.late
        return cls(
            rate=sample.rate,
            count=count,
            seconds=sample.elapsed_s,
            latency_ms=percentiles_ms(sample.latencies),
            codes=dict(sample.codes),
            cpu_us=cpu.per_request_us(count) if cpu is not None else {},
            extra=extra,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Summary:
    """The rounds of one variant, with the medians over them."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return median(run.rate for run in self.runs)

    @property
    def latency_ms(self) -> dict[str, float]:
        return _medians([run.latency_ms for run in self.runs])

    @property
    def cpu_us(self) -> dict[str, float]:
        return _medians([run.cpu_us for run in self.runs])

    @property
    def codes(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for run in self.runs:
            total.update(run.codes)
        return dict(total.most_common())

    def extra(self, name: str) -> float:
        return median(run.extra[name] for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rate": self.rate,
            "latency_ms": self.latency_ms,
            "cpu_us": self.cpu_us,
            "codes": self.codes,
            "runs": [run.as_json() for run in self.runs],
        }


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: median(row[name] for row in rows if name in row) for name in names}


def ratio_of_rounds(one: Summary, other: Summary) -> float:
    """Median of the ratios round by round: other work on the machine disturbs both runs of a round."""
    return median(a.rate / b.rate for a, b in zip(one.runs, other.runs, strict=True) if b.rate)
