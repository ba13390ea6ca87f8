"""What operators see while Redis is away: the trips of Postgres, and what is not known then."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from dispatcher.embedded.valkey import Valkey
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.service.zone_views import ZoneViews
from tests.harness.services import PLACE, City, driver
from tests.service.test_operator_reads import operator_reads
from tests.service.test_redis_away import city, give_back, valkey
from tests.service.test_zone_views import SAMPLE_S, Screen

__all__ = ["city", "valkey"]  # the fixtures


def _signal(engine: Valkey, number: signal.Signals) -> None:
    assert engine.process is not None
    os.kill(engine.process.pid, number)


async def _health() -> tuple[bool, dict[str, Any]]:
    return True, {"redis": "silent", "postgres": "ok"}


async def test_trips_are_those_of_postgres_and_the_picture_says_of_when_it_is(
    city: City, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.service.zone_views._LOOK_WITHOUT_REDIS_S", SAMPLE_S)
    views = ZoneViews(
        zones=city.parts.zones, scripts=ZoneViewScripts(city.parts.live.pipeline),
        database=city.parts.ledger.database, authorities=city.parts.authorities, health=_health,
        fix_age_s=60, sample_s=SAMPLE_S,
    )  # fmt: skip
    await city.online("d1", location=PLACE)
    screen = Screen()
    views.watch("default", screen)
    seen = await screen.until(lambda: len(screen.drivers) == 1)
    assert seen["decided_by"] == "redis"
    assert seen["at_ms"] - seen["sampled_at_ms"] < 1000
    _signal(valkey, signal.SIGSTOP)
    trip = await city.trip()
    first = await screen.until(lambda: trip in screen.trips)
    assert (first["decided_by"], first["figures"]["trips"]["pending"]) == ("postgres", 1)
    assert first["figures"]["engines"]["postgres_ms"] >= 0
    count = len(screen.frames)
    later = await screen.until(lambda: len(screen.frames) > count)
    assert later["sampled_at_ms"] == first["sampled_at_ms"] < first["at_ms"] < later["at_ms"]
    assert list(screen.drivers) == ["d1"], "where drivers were stays on the map"
    _signal(valkey, signal.SIGCONT)
    await give_back(city)
    back = await screen.until(lambda: screen.frames[-1]["decided_by"] == "redis")
    assert back["sampled_at_ms"] > first["sampled_at_ms"]
    await views.close()


async def test_a_driver_and_why_are_what_postgres_knows(city: City, valkey: Valkey) -> None:
    await city.online("d1", "d2", location=PLACE)
    await city.parts.positions.save()
    _signal(valkey, signal.SIGSTOP)
    trip, other = await city.trip(), await city.trip(customer="r2")
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    page = await operator_reads(city.parts).driver("d1")
    assert (page["driver"]["trip_id"], page["trip"]["id"]) == (trip, trip)
    assert (page["fix"]["lat"], page["fix"]["lng"]) == PLACE
    assert page["obstacles"] == ["active_trip"]
    assert (page["presence"], page["offers"], page["queue"]) == (None, None, None)
    assert [found["id"] for found in page["last_trips"]] == [trip]

    found = await city.parts.explanation.why(other, "d1")
    assert found["verdict"] == {
        "codes": ["active_trip"], "text": f"no offer now: on trip {trip}",
    }  # fmt: skip
    asked = {view["filter"]: view["passes"] for view in found["filters"]}
    assert (asked["other_zone"], asked["offline"], asked["not_present"]) == (True, True, None)
    found = await city.parts.explanation.why(other, "d2")
    assert found["verdict"]["codes"] == ["not_known"]
    assert "not known while Redis is away" in found["verdict"]["text"]
