"""What differs between the engines is found by its kind and repaired; what is on its way is no drift."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from dispatcher.background import drift_watch_job, zone_holder
from dispatcher.comparison import drift_check
from dispatcher.core.zones import Zones
from dispatcher.live.idempotency import is_asked_of_postgres
from dispatcher.live.keys import keys_of
from dispatcher.observe.metrics import Metrics
from dispatcher.operations.fsck import fsck
from dispatcher.operations.workbench import Workbench
from dispatcher.service.drift import DriftCheck, DriftKind
from tests.harness.services import PLACE, City, driver, open_city

KEYS = keys_of("default")


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


@pytest.fixture
def nothing_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look need not wait for what is under way, since nothing is."""
    monkeypatch.setitem(DriftCheck.__init__.__kwdefaults__, "pause_s", 0.02)


async def _fsck(city: City, *, repairs: bool = False) -> dict[str, Any]:
    parts = city.parts
    bench = Workbench(
        parts.settings, Zones(), parts.live, parts.ledger, parts.authorities, parts.rehydration
    )
    return await fsck(bench, ["default"], repairs=repairs)


async def _busy_zone(city: City) -> tuple[str, str]:
    """A trip that waits and one that is taken, by d1; d2 is free, and holds an offer of the first."""
    await city.online("d1", "d2", location=PLACE)
    taken = await city.trip()
    await city.act(driver("d1"), "accept", taken, "k1")
    waiting = await city.trip()
    ends_ms = int(time.time() * 1000) + 60_000
    await city.redis("ZADD", KEYS.present, ends_ms, "driver:d1", ends_ms, "driver:d2")
    await city.parts.offers.run_due("default")
    assert await city.parts.live.offers.read_offers(KEYS, "d2")
    return waiting, taken


Plant = Callable[[City, str, str], Awaitable[object]]


async def _old_answer(city: City, waiting: str, taken: str) -> None:
    record = KEYS.idem("d1", "/act", "k1")
    text = await city.redis("GET", record)
    await city.redis("SET", record, text + " ", "KEEPTTL")


async def _lost_answer(city: City, waiting: str, taken: str) -> None:
    await city.redis("DEL", KEYS.idem("d1", "/act", "k1"))
    loaded_ms, _, run_id = (await city.redis("GET", KEYS.epoch)).split()
    await city.redis("SET", KEYS.epoch, f"{loaded_ms} 0 {run_id}")


async def _nobody_swept(city: City, waiting: str, taken: str) -> None:
    await city.redis("ZADD", KEYS.claims, 1, f"token {taken} d1")


async def _no_presence(city: City, waiting: str, taken: str) -> None:
    await city.postgres.execute("UPDATE driver_details SET updated_at = now() - interval '1 hour'")
    for name in ("d1", "d2"):
        await city.redis("HSET", KEYS.driver(name), "updated_at", 0)
    await city.redis("ZREM", KEYS.present, "driver:d2")


PLANTS: dict[str, tuple[DriftKind, Plant]] = {
    "trip lost": (DriftKind.TRIP, lambda c, w, t: c.redis("DEL", KEYS.trip(t))),
    "trip behind": (DriftKind.TRIP, lambda c, w, t: c.redis(
        "HSET", KEYS.trip(t), "current_status", "pending", "version", 0, "driver_id", "")),
    "a column of a trip": (DriftKind.TRIP, lambda c, w, t: c.redis(
        "HSET", KEYS.trip(t), "customer_id", "another")),
    "trip that Postgres never had": (DriftKind.TRIP, lambda c, w, t: c.redis(
        "HSET", KEYS.trip("default_ghost"), "id", "default_ghost", "current_status", "pending",
        "version", 0, "zone", "default", "customer_id", "r1", "vehicle_type", "car", "pickup_lat", 1,
        "pickup_lng", 1, "created_at", 1, "updated_at", 1)),
    "claim without an end": (DriftKind.VALUES, lambda c, w, t: c.redis("SET", KEYS.trip_claim(t), "x")),
    "offers of another type": (DriftKind.VALUES, lambda c, w, t: c.redis("SET", KEYS.passed(t), "x")),
    "zone of a driver": (DriftKind.DRIVER, lambda c, w, t: c.redis(
        "HSET", KEYS.driver("d2"), "zone", "south")),
    "driver lost": (DriftKind.DRIVER, lambda c, w, t: c.redis("DEL", KEYS.driver("d1"))),
    "driver bound to no trip": (DriftKind.DRIVER, lambda c, w, t: c.redis(
        "HSET", KEYS.driver("d1"), "trip_id", "")),
    "driver bound to another trip": (DriftKind.DRIVER, lambda c, w, t: c.redis(
        "HSET", KEYS.driver("d2"), "trip_id", w)),
    "driver offline": (DriftKind.DRIVER, lambda c, w, t: c.redis(
        "HSET", KEYS.driver("d2"), "is_online", 0)),
    "busy driver on the map": (DriftKind.GEO, lambda c, w, t: c.redis(
        "GEOADD", KEYS.geo("car"), PLACE[1], PLACE[0], "d1")),
    "free driver off the map": (DriftKind.GEO, lambda c, w, t: c.redis("ZREM", KEYS.geo("car"), "d2")),
    "offer without an inbox": (DriftKind.OFFERS, lambda c, w, t: c.redis("DEL", KEYS.inbox("d2"))),
    "inbox without an offer": (DriftKind.OFFERS, lambda c, w, t: c.redis("DEL", KEYS.offers(w))),
    "no wave to come": (DriftKind.OFFERS, lambda c, w, t: c.redis("ZREM", KEYS.waves, w)),
    "claim that nobody swept": (DriftKind.CLAIMS, _nobody_swept),
    "no presence": (DriftKind.PRESENCE, _no_presence),
    "another answer": (DriftKind.ANSWERS, _old_answer),
    "answer lost": (DriftKind.ANSWERS, _lost_answer),
    "zone cold": (DriftKind.ZONE, lambda c, w, t: c.redis("DEL", KEYS.epoch)),
}  # fmt: skip


@pytest.mark.usefixtures("nothing_is_on_its_way")
@pytest.mark.parametrize("plant", PLANTS)
async def test_what_differs_is_found_by_its_kind_and_repaired(city: City, plant: str) -> None:
    waiting, taken = await _busy_zone(city)
    kind, put = PLANTS[plant]
    await put(city, waiting, taken)
    found = await _fsck(city)
    assert found["drift"]["default"][kind], found
    assert found["remaining"] >= 1
    repaired = await _fsck(city, repairs=True)
    assert repaired["remaining"] == 0, repaired
    again = await _fsck(city)
    assert again["found"] == []


async def test_a_zone_at_rest_does_not_drift(city: City) -> None:
    _, taken = await _busy_zone(city)
    done = await city.trip()
    await city.act(driver("d2"), "accept", done)
    for action in ("arrive", "start", "complete"):
        await city.act(driver("d2"), action, done)
    await city.act(driver("d1"), "cancel", taken)
    await city.available("d2", is_online=False)
    assert (await _fsck(city))["found"] == []


async def test_a_busy_zone_does_not_drift(city: City) -> None:
    """Drivers accept, give back, go offline and on while the zone is compared again and again."""
    names = [f"d{n}" for n in range(8)]
    await city.online(*names, location=PLACE)
    until = time.monotonic() + 3

    async def work(name: str) -> None:
        while time.monotonic() < until:
            trip_id = await city.trip()
            await city.act(driver(name), "accept", trip_id)
            await city.act(driver(name), "cancel", trip_id)
            await city.available(name, is_online=False)
            await city.available(name, is_online=True, location=PLACE)

    async def compare() -> list[Any]:
        found = []
        check = drift_check(city.parts.settings, city.parts.live, city.parts.ledger)
        while time.monotonic() < until:
            found += [drift async for drift in check.check("default", every_key=True)]
        return found

    *_, found = await asyncio.gather(*map(work, names), compare())
    assert found == []


async def test_what_changes_between_two_reads_of_a_look_does_not_drift(city: City) -> None:
    """A driver is read as they are off for a moment, and found on the map as they are back: each time
    the same, and each time another moment."""
    await city.online("d1", location=PLACE)
    check = drift_check(city.parts.settings, city.parts.live, city.parts.ledger)
    check._pause_s = 0.01
    scripts = city.parts.live.comparison
    hashes, looks = scripts.hashes, 0

    async def hashes_of_another_moment(names: Sequence[str]) -> list[dict[str, str]]:
        nonlocal looks
        if KEYS.driver("d1") not in names or looks == 4:
            return await hashes(names)
        looks += 1
        await city.available("d1", is_online=False)
        read = await hashes(names)
        await city.available("d1", is_online=True, location=PLACE)
        return read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(scripts), "hashes", lambda _, names: hashes_of_another_moment(names))
        found = [drift async for drift in check._compare(KEYS, DriftKind.GEO, ["d1"], rests=False)]
    assert (looks, found) == (4, [])


async def test_what_is_claimed_is_on_its_way(city: City) -> None:
    """A commit that has not been settled: the claim is held, and nothing is told until it is over."""
    trip_id = await city.trip()
    await city.redis("SET", KEYS.trip_claim(trip_id), "token", "PX", 60_000)
    await city.redis("HSET", KEYS.trip(trip_id), "customer_id", "another")
    check = drift_check(city.parts.settings, city.parts.live, city.parts.ledger)
    looking = asyncio.create_task(anext(check.check("default", every_key=False)))
    done, _ = await asyncio.wait([looking], timeout=1.5)
    assert not done
    await city.redis("DEL", KEYS.trip_claim(trip_id))
    drift = await asyncio.wait_for(looking, 20)
    assert (drift.kind, drift.subject) == (DriftKind.TRIP, trip_id)


async def test_an_emptied_redis_that_was_loaded_does_not_drift(city: City) -> None:
    """Whose fix Postgres has is offered trips again, and swept once the fix is stale."""
    await city.online("d1", "d2", location=PLACE)
    await city.parts.positions.save()
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    assert (await _fsck(city))["found"] == []
    assert await city.parts.live.positions.sweep_fixes(KEYS, fix_age_ms=-1_000) == 2
    assert not await city.redis("EXISTS", KEYS.geo("car"))


async def test_a_key_whose_lease_is_over_is_asked_of_postgres(city: City) -> None:
    """A commit that came late, and whose client has not asked again: a replay gives what Postgres has."""
    await _busy_zone(city)
    record = KEYS.idem("d1", "/act", "k1")
    _, fingerprint, *_ = (await city.redis("GET", record)).split()
    await city.redis("SET", record, f"L {fingerprint} 1000 token", "KEEPTTL")
    assert (await _fsck(city))["found"] == []
    assert not is_asked_of_postgres(f"L {fingerprint} 1000 token", fingerprint, now_ms=999)
    assert not is_asked_of_postgres(f"L {'0' * 64} 1000 token", fingerprint, now_ms=1000)


async def test_the_job_tells_the_metric_and_one_server_looks(city: City) -> None:
    _, taken = await _busy_zone(city)
    holder = zone_holder(city.parts)
    await holder.beat()
    watch = drift_watch_job(city.parts, holder)
    metrics = Metrics()
    metrics.labelled_gauge("dispatcher_drift", "Drift.", ("zone", "kind"), watch.found)

    async def shown() -> dict[str, float]:
        lines = (await metrics.render()).decode().splitlines()
        return {
            line.split('kind="')[1].split('"')[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("dispatcher_drift{")
        }

    assert await shown() == {kind.value: 0 for kind in DriftKind}
    await city.redis("HSET", KEYS.trip(taken), "customer_id", "another")
    await watch.run()
    assert {k: n for k, n in (await shown()).items() if n} == {"trip": 1}
    await watch.run()  # another one has just looked: what this one saw does not count any more
    assert not any((await shown()).values())
    await holder.stop()


async def test_an_offline_driver_with_a_trip_is_loaded_with_the_zone(city: City) -> None:
    await city.online("d1", location=PLACE)
    trip = await city.trip()
    for action in ("accept", "arrive", "start"):
        assert (await city.act(driver("d1"), action, trip)).status == 200
    assert (await city.available("d1", is_online=False)).status == 200
    before = await city.parts.live.state.read_driver(KEYS, "d1")
    await city.parts.rehydration.rebuild("default")
    assert (await _fsck(city))["found"] == []
    assert await city.parts.live.state.read_driver(KEYS, "d1") == before
    assert await city.redis("ZSCORE", KEYS.present, "driver:d1") is None
    assert (await city.act(driver("d1"), "complete", trip)).status == 200
