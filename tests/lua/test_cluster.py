"""The scripts and the pipeline on a real cluster: three primaries with a replica each."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.core.errors import ReplyLost, StoreUnavailable
from dispatcher.live.channel_nodes import channel_nodes
from dispatcher.live.deployment import open_pipeline
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.publisher import Publisher
from dispatcher.live.pubsub import Listener, Subscriber
from dispatcher.live.settlement import Message
from dispatcher.resources import LUA_DIR
from tests.harness.lua_zone import WarmLimits, limit
from tests.harness.valkey_nodes import ValkeyCluster, free_ports, zones_on_each_node
from tests.lua.walk import Walk

SCRIPTS = sorted(path.stem for path in LUA_DIR.glob("*.lua"))
ZONES = zones_on_each_node()
#: One zone on each node.
FIRST, SECOND, THIRD = (zones[0] for zones in ZONES)


@pytest.fixture
async def pipeline(cluster: ValkeyCluster) -> AsyncIterator[Pipeline]:
    async with _opened(cluster) as opened:
        yield opened


@contextlib.asynccontextmanager
async def _opened(cluster: ValkeyCluster, **more: Any) -> AsyncIterator[Pipeline]:
    async with open_pipeline(cluster.url, **more) as opened:
        opened.epochs = [keys_of(zone).epoch for zones in ZONES for zone in zones]
        yield opened


async def _ask(pipeline: Pipeline, zone: str, times: int = 1) -> bool:
    """Whether the node of a zone answers these calls, which leave together."""
    limits, keys = WarmLimits(pipeline), keys_of(zone)
    calls = (limits.check_limit(keys, [limit(100_000)]) for _ in range(times))
    return all(admission.is_admitted for admission in await asyncio.gather(*calls))


async def _until_answered(pipeline: Pipeline, zone: str) -> None:
    """Writes as an app does, until the zone's node answers."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(StoreUnavailable):
                await pipeline.command("INCR", keys_of(zone).trip("calls"))
                return
            await asyncio.sleep(0.02)


async def test_every_script_runs_in_a_cluster(pipeline: Pipeline) -> None:
    """Every key is declared and of one slot: a cluster refuses a script that breaks that."""
    ran: set[str] = set()
    run = pipeline.run
    pipeline.run = lambda script, *rest: ran.add(script) or run(script, *rest)  # type: ignore[method-assign, func-returns-value]
    await asyncio.gather(*(Walk(pipeline, keys_of(name)).take() for name in (FIRST, SECOND, THIRD)))
    assert sorted(ran) == SCRIPTS


async def test_a_script_that_a_node_has_forgotten(pipeline: Pipeline, cluster: ValkeyCluster) -> None:
    await (await cluster.primary_of(SECOND)).ask("SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(_ask(pipeline, zone, 50) for zone in (FIRST, SECOND, THIRD)))
    assert all(answers)


async def test_each_zone_is_asked_where_it_is(pipeline: Pipeline, cluster: ValkeyCluster) -> None:
    run_ids = [await pipeline.run_id(keys_of(zone).epoch) for zone in (FIRST, SECOND, THIRD)]
    nodes = [await cluster.primary_of(zone) for zone in (FIRST, SECOND, THIRD)]
    assert run_ids == [(await node.ask("INFO", "server"))["run_id"] for node in nodes]
    for zone in (FIRST, SECOND):
        await pipeline.command("SET", keys_of(zone).ready, "1")
    found = [name async for page in pipeline.scan(keys_of(FIRST).epoch, "dsp:") for name in page]
    assert keys_of(FIRST).ready in found
    assert keys_of(SECOND).ready not in found


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_node_that_fails_stops_no_calls_of_another_one(
    cluster: ValkeyCluster, fault: signal.Signals
) -> None:
    """Neither those of the same turn nor later ones; its own calls end, and its zones come back."""
    # A deadline helps nobody here.
    async with _opened(cluster, timeout_s=60) as pipeline:
        await _fail(pipeline, cluster, fault)


async def _fail(pipeline: Pipeline, cluster: ValkeyCluster, fault: signal.Signals) -> None:
    await asyncio.gather(*(_ask(pipeline, zone) for zone in (FIRST, SECOND, THIRD)))
    node = await cluster.primary_of(SECOND)
    node.signal(fault)
    lost = [asyncio.create_task(_ask(pipeline, zone, 5)) for zone in ZONES[1]]
    async with asyncio.timeout(20):
        for _ in range(8):
            assert all(await asyncio.gather(*(_ask(pipeline, z) for z in (*ZONES[0], *ZONES[2]))))
    successor = await cluster.take_over(node)
    await _until_answered(pipeline, SECOND)  # though a frozen node says nothing still
    assert (
        await pipeline.run_id(keys_of(SECOND).epoch) == (await successor.ask("INFO", "server"))["run_id"]
    )
    async with asyncio.timeout(20):  # a silent node that has a successor is not waited for
        ended = await asyncio.gather(*lost, return_exceptions=True)
    assert {type(end) for end in ended} <= {ReplyLost, StoreUnavailable}


async def test_the_successor_of_a_node_that_is_left_alone_is_found_though_nobody_calls(
    cluster: ValkeyCluster,
) -> None:
    """Postgres decides meanwhile, so that no call meets the dead node any more."""
    key = keys_of(SECOND).epoch
    async with _opened(cluster, breaks=True) as pipeline:
        await _ask(pipeline, SECOND)
        node = await cluster.primary_of(SECOND)
        node.signal(signal.SIGKILL)
        with pytest.raises(StoreUnavailable):
            await _ask(pipeline, SECOND)
        assert await pipeline.is_away(key)
        assert not pipeline.is_left_alone(keys_of(FIRST).epoch)
        await cluster.take_over(node)
        async with asyncio.timeout(20):
            while pipeline.is_left_alone(key):
                await asyncio.sleep(0.02)
        assert await _ask(pipeline, SECOND)


async def test_a_zone_on_a_new_node_is_not_asked_before_it_is_checked(
    pipeline: Pipeline, cluster: ValkeyCluster
) -> None:
    """A replica may lack the last writes: what it decides on first has to be loaded anew."""
    keys = keys_of(THIRD)
    run_id = await pipeline.run_id(keys.epoch)
    await pipeline.command("SET", keys.epoch, f"1 0 {run_id}")
    node = await cluster.primary_of(THIRD)
    assert await node.ask("WAIT", "1", "5000") == 1
    node.signal(signal.SIGKILL)
    successor = await cluster.take_over(node)
    assert await successor.ask("GET", keys.epoch) == f"1 0 {run_id}"
    await _until_answered(pipeline, THIRD)
    assert await pipeline.command("GET", keys.epoch) is None


async def test_a_slot_that_moves(pipeline: Pipeline, cluster: ValkeyCluster) -> None:
    """While it moves and once it has, each call runs once, where the slot is; others are not held up."""
    zone = "moving"
    keys = keys_of(zone)
    source = await cluster.primary_of(zone)
    target = next(node for node in await cluster.primaries() if node is not source)
    await _ask(pipeline, zone)
    await cluster.begin_move(zone, source, target)
    await pipeline.command("SET", keys.ready, "new keys are made at the target")
    assert await _ask(pipeline, FIRST, 10)
    assert await source.ask("EXISTS", keys.limit("general", "d1")) == 1
    assert await _ask(pipeline, zone), "what has not moved yet is asked at the source"
    with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
        await pipeline.command("MGET", keys.ready, keys.limit("general", "d1"))
    await cluster.end_move(zone, source, target)
    assert await _ask(pipeline, zone, 50)
    assert await target.ask("LLEN", keys.limit("general", "d1")) == 52
    assert await target.ask("GET", keys.ready) is not None
    assert await pipeline.run_id(keys.epoch) == (await target.ask("INFO", "server"))["run_id"]


async def test_a_zone_that_moves_to_a_node_that_is_connected_is_checked_there(
    pipeline: Pipeline, cluster: ValkeyCluster
) -> None:
    zone = "moved-cold"
    keys = keys_of(zone)
    pipeline.epochs = [*pipeline.epochs, keys.epoch]
    await asyncio.gather(*(_ask(pipeline, z) for z in (zone, FIRST, SECOND, THIRD)))
    await pipeline.command("SET", keys.epoch, f"1 0 {await pipeline.run_id(keys.epoch)}")
    source = await cluster.primary_of(zone)
    target = next(node for node in await cluster.primaries() if node is not source)
    await cluster.begin_move(zone, source, target)
    await cluster.end_move(zone, source, target)
    assert await target.ask("GET", keys.epoch) is not None
    assert await pipeline.command("GET", keys.epoch) is None


async def test_messages_reach_whoever_listens_though_zones_change_their_nodes(
    pipeline: Pipeline, cluster: ValkeyCluster
) -> None:
    """By a failover, by a move; whoever listens is told that it may have missed something."""
    zones = [FIRST, SECOND, "told"]
    heard: list[str] = []
    resynced: list[int] = []
    news = asyncio.Event()

    def hear(payload: bytes) -> None:
        heard.append(payload.decode())
        news.set()

    async def tell(zone: str, name: str) -> None:
        async with asyncio.timeout(20):
            while name not in heard:
                with contextlib.suppress(StoreUnavailable):
                    await publisher.publish(zone, [Message(["driver:d1"], name)])
                news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), 0.1)

    publisher = Publisher(pipeline)
    subscriber = Subscriber(channel_nodes(cluster.url))
    await subscriber.open()
    for zone in zones:
        listener = Listener(hear, lambda: resynced.append(len(heard)))
        subscriber.subscribe(keys_of(zone).channel("driver:d1"), listener)
    try:
        for zone in zones:
            await tell(zone, f"to {zone}")
        node = await cluster.primary_of(SECOND)
        node.signal(signal.SIGKILL)
        await cluster.take_over(node)
        await tell(FIRST, "meanwhile")
        await tell(SECOND, "after the failover")
        source = await cluster.primary_of("told")
        target = next(n for n in await cluster.primaries() if n is not source)
        await cluster.begin_move("told", source, target)
        await cluster.end_move("told", source, target)
        await tell("told", "after the move")
        assert len(resynced) >= len(zones) + 2, "at first, and anew"
    finally:
        await subscriber.stop()


async def test_nobody_has_the_slot(pipeline: Pipeline, cluster: ValkeyCluster) -> None:
    """Told at once, and noticed once somebody has it."""
    zone = "nobody"
    node = await cluster.primary_of(zone)
    await cluster.drop_slot(zone)
    async with asyncio.timeout(20):
        while True:
            try:
                await _ask(pipeline, zone)
            except StoreUnavailable as error:
                if "no node has the slot" in str(error):
                    break
            await asyncio.sleep(0.02)
    with pytest.raises(StoreUnavailable, match="CLUSTERDOWN"):
        await pipeline.run_id(keys_of(zone).epoch)
    assert await _ask(pipeline, FIRST)
    await cluster.give_slot(zone, node)
    await _until_answered(pipeline, zone)


async def test_a_server_starts_while_a_node_is_away(cluster: ValkeyCluster) -> None:
    node = await cluster.primary_of(SECOND)
    node.signal(signal.SIGKILL)
    async with open_pipeline(cluster.url) as pipeline:
        assert await _ask(pipeline, FIRST)
        with pytest.raises(StoreUnavailable):
            await _ask(pipeline, SECOND)
        await cluster.take_over(node)
        await _until_answered(pipeline, SECOND)


async def test_no_node_answers(cluster: ValkeyCluster) -> None:
    (nobody,) = free_ports(1)
    with pytest.raises(StoreUnavailable, match="no node of the cluster answers"):
        async with open_pipeline(f"redis+cluster://127.0.0.1:{nobody}"):
            pass
