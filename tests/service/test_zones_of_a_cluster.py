"""Zones on the nodes of a real cluster: one whose node fails is on its own, and comes back by itself."""

from __future__ import annotations

import asyncio
import signal

import orjson
import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import Zone, Zones
from dispatcher.live.keys import keys_of
from tests.harness.services import City, code_of, driver, open_city
from tests.harness.valkey_nodes import ValkeyCluster, zones_on_each_node

NAMES = [zones[0] for zones in zones_on_each_node()]


async def _race(city: City, zone: str, trip_id: str) -> list[str]:
    """Two drivers accept at once, and ask again for as long as their node is away."""

    async def accept(name: str) -> str:
        async with asyncio.timeout(30):
            while True:
                try:
                    return code_of(await city.act(driver(name), "accept", trip_id, f"key-{name}"))
                except StoreUnavailable:
                    await asyncio.sleep(0.02)

    return await asyncio.gather(*(accept(f"{zone}-{number}") for number in (1, 2)))


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_primary_is_lost(
    cluster: ValkeyCluster, database_url: str, fault: signal.Signals
) -> None:
    """With claims that its replica has not heard of; the other zones decide all the while."""
    zones = Zones([Zone(name) for name in NAMES])
    async with open_city(cluster.url, database_url, zones=zones, request_deadline_s=1) as city:
        for zone in NAMES:
            await city.online(f"{zone}-1", f"{zone}-2", zone=zone)
        before = {zone: await city.trip(zone=zone) for zone in NAMES}
        broken, *others = NAMES
        node = await cluster.primary_of(broken)
        node.signal(fault)
        lost = asyncio.create_task(_race(city, broken, before[broken]))
        for zone in others:
            won = await _race(city, zone, before[zone])
            assert sorted(won) == ["trip_accepted", "trip_already_assigned"]
            trip = await city.trip(zone=zone)
            assert code_of(await city.act(driver(f"{zone}-1"), "decline", trip)) == "trip_declined"
        await cluster.take_over(node)
        assert sorted(await lost) == ["trip_accepted", "trip_already_assigned"]
        await city.reconcile().run()
        entries = await city.redis("XRANGE", keys_of(broken).events, "-", "+")
        told = [orjson.loads(fields[1]) for _, fields in entries]
        assert ("accepted", 1) in {(event["event"], event["trip"]["version"]) for event in told}
        assert await city.double_assignments() == 0
