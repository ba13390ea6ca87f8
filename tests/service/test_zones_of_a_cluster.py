"""Zones on the nodes of a real cluster: one whose node fails is on its own, and comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import orjson
import pytest

from dispatcher.background import degraded_zones_job
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import Zone, Zones
from dispatcher.live.channel_nodes import channel_nodes
from dispatcher.live.keys import keys_of
from dispatcher.live.publisher import Publisher
from dispatcher.live.pubsub import Listener, Subscriber
from dispatcher.live.settlement import Message
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
        await _until_redis_decides(city, broken)
        entries = await city.redis("XRANGE", keys_of(broken).events, "-", "+")
        told = [orjson.loads(fields[1]) for _, fields in entries]
        assert ("accepted", 1) in {(event["event"], event["trip"]["version"]) for event in told}
        assert (await city.hash(before[broken]))["current_status"] == "accepted"
        assert await city.double_assignments() == 0


async def _until_redis_decides(city: City, zone: str) -> None:
    """Does a server's rounds until a zone's node is asked again, and has heard of everything."""
    degraded_zones = degraded_zones_job(city.parts)
    async with asyncio.timeout(30):
        while True:
            await degraded_zones.run()
            with contextlib.suppress(StoreUnavailable):
                if not city.parts.authorities.of(zone).is_degraded:
                    await city.parts.rehydration.warm(zone)
                    await city.reconcile().run()
                    return
            await asyncio.sleep(0.05)


async def test_a_node_is_away_when_a_server_starts(cluster: ValkeyCluster, database_url: str) -> None:
    """Its zone is loaded once it is back; messages are heard from the others meanwhile, and then from it."""
    zones = Zones([Zone(name) for name in NAMES])
    broken, *others = NAMES
    node = await cluster.primary_of(broken)
    node.signal(signal.SIGKILL)
    heard: list[str] = []
    subscriber = Subscriber(channel_nodes(cluster.url))
    await subscriber.open()
    for zone in NAMES:
        listener = Listener(lambda payload: heard.append(payload.decode()))
        subscriber.subscribe(keys_of(zone).channel("driver:d1"), listener)
    try:
        async with open_city(cluster.url, database_url, zones=zones) as city, asyncio.timeout(30):
            publisher = Publisher(city.parts.live.pipeline)
            for zone in others:
                await city.trip(zone=zone)
                await publisher.publish(zone, [Message(["driver:d1"], zone)])
            await cluster.take_over(node)
            while broken not in heard:
                with contextlib.suppress(StoreUnavailable):
                    await publisher.publish(broken, [Message(["driver:d1"], broken)])
                await asyncio.sleep(0.02)
            await _until_redis_decides(city, broken)
            await city.online("d1", zone=broken)
            assert code_of(await city.act(driver("d1"), "accept", await city.trip(zone=broken))) == (
                "trip_accepted"
            )
            assert set(heard) >= set(NAMES)
    finally:
        await subscriber.stop()
