"""Counters and histograms: their numbers, and that their series are there before they count."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from dispatcher.observe import series
from dispatcher.observe.instruments import Counter, Histogram, Instrument
from dispatcher.observe.metrics import Metrics
from dispatcher.observe.worker_metrics import Collected


def _text(instrument: Instrument) -> list[str]:
    return generate_latest(Collected(instrument.collect())).decode().splitlines()


def test_a_counter() -> None:
    counter = Counter("hits", "Hits.", ("source",), [("redis",), ("postgres",)])
    counter.add("redis")
    counter.add("redis", number=2)
    counter.add("new")
    assert _text(counter)[2:] == [
        'hits_total{source="redis"} 3.0', 'hits_total{source="postgres"} 0.0', 'hits_total{source="new"} 1.0',
    ]  # fmt: skip
    (counted,) = counter.counted()
    assert [sample.value for sample in counted.samples] == [3, 1]


def test_a_histogram() -> None:
    seconds = Histogram("seconds", "Seconds.", ("action",), [("idle",)], bounds=(0.1, 1.0))
    for took_s in (0.1, 0.11, 5):
        seconds.of("accept").observe(took_s)
    assert _text(seconds)[2:] == [
        *(f'seconds_bucket{{action="idle",le="{end}"}} 0.0' for end in ("0.1", "1.0", "+Inf")),
        'seconds_count{action="idle"} 0.0', 'seconds_sum{action="idle"} 0.0',
        'seconds_bucket{action="accept",le="0.1"} 1.0',
        'seconds_bucket{action="accept",le="1.0"} 2.0',
        'seconds_bucket{action="accept",le="+Inf"} 3.0',
        'seconds_count{action="accept"} 3.0', 'seconds_sum{action="accept"} 5.21',
    ]  # fmt: skip
    (counted,) = seconds.counted()
    assert {sample.labels["action"] for sample in counted.samples} == {"accept"}
    with pytest.raises(TypeError, match="has labels"):
        seconds.observe(1)


def test_without_labels_they_are_there_from_the_start() -> None:
    assert _text(Counter("hits", "Hits."))[2:] == ["hits_total 0.0"]
    seconds = Histogram("seconds", "Seconds.", bounds=(1.0,))
    assert "seconds_count 0.0" in _text(seconds)
    seconds.observe(0.5)
    assert "seconds_count 1.0" in _text(seconds)


async def test_all_series_are_rendered_and_none_has_an_empty_label() -> None:
    series.know_zones(["default"])
    text = (await Metrics().render()).decode()
    assert '=""' not in text
    for line in (
        'dispatcher_waves_total{result="nobody",zone="default"}',
        'dispatcher_time_to_assignment_seconds_count{zone="default"}',
        'dispatcher_limited_total{limit_class="trip_accept"}',
    ):
        assert line in text
    assert len(series.ALL) == text.count("# TYPE dispatcher_")
