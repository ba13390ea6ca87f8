"""A primary that real Sentinels name: found, followed, and checked before it decides."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config import SettingsError
from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.channel_nodes import channel_nodes
from dispatcher.live.deployment import open_pipeline
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.preflight import check_redis
from dispatcher.live.publisher import Publisher
from dispatcher.live.pubsub import Listener, Subscriber
from dispatcher.live.settlement import Message
from tests.harness.valkey_nodes import SentinelGroup, free_ports

KEYS = keys_of("default")


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[SentinelGroup]:
    async with SentinelGroup.run(tmp_path) as running:
        yield running


async def _until_answered(pipeline: Pipeline) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(StoreUnavailable):
                await pipeline.command("INCR", KEYS.trip("calls"))
                return
            await asyncio.sleep(0.02)


async def test_a_primary_that_dies_has_a_successor(group: SentinelGroup) -> None:
    """Calls and messages go on there; the zone is cold, though the replica has its epoch."""
    (nobody,) = free_ports(1)
    url = group.url(nobody, database=3)
    await check_redis(url)
    heard: list[str] = []
    resynced = asyncio.Event()
    news = asyncio.Event()

    def hear(payload: bytes) -> None:
        heard.append(payload.decode())
        news.set()

    subscriber = Subscriber(channel_nodes(url))
    subscriber.subscribe(keys_of("default").channel("driver:d1"), Listener(hear, resynced.set))
    try:
        async with asyncio.timeout(20):
            await resynced.wait()
        async with open_pipeline(url) as pipeline:
            pipeline.epochs = [KEYS.epoch]
            await _until_answered(pipeline)
            run_id = await pipeline.run_id(KEYS.epoch)
            assert run_id == (await group.primary.ask("INFO", "server"))["run_id"]
            await pipeline.command("SET", KEYS.epoch, f"1 0 {run_id}")
            assert await group.primary.ask("WAIT", "1", "5000") == 1
            assert "db3" in await group.replica.ask("INFO", "keyspace")

            resynced.clear()
            group.primary.signal(signal.SIGKILL)
            with pytest.raises(StoreUnavailable):
                await pipeline.command("GET", KEYS.epoch)
            await _until_answered(pipeline)
            assert await pipeline.command("GET", KEYS.epoch) is None
            new_id = await pipeline.run_id(KEYS.epoch)
            assert new_id == (await group.replica.ask("INFO", "server"))["run_id"]
            async with asyncio.timeout(30):
                await resynced.wait()
                await Publisher(pipeline).publish("default", [Message(["driver:d1"], "news")])
                await news.wait()
            assert heard == ["news"]
    finally:
        await subscriber.stop()


async def test_a_primary_that_hangs_has_a_successor(
    group: SentinelGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections stand, and are given up at the deadline of a call."""
    monkeypatch.setattr("dispatcher.live.client._REPLY_TIMEOUT_S", 0.5)
    watcher = ("ACL", "SETUSER", "watcher", "on", ">a secret", "+@all")
    await group.sentinel.ask(*watcher)
    url = f"{group.url()}?sentinel_username=watcher&sentinel_password=a%20secret"
    async with open_pipeline(url, timeout_s=0.5) as pipeline:
        await _until_answered(pipeline)
        group.primary.signal(signal.SIGSTOP)
        await _until_answered(pipeline)
        new_id = await pipeline.run_id(KEYS.epoch)
        assert new_id == (await group.replica.ask("INFO", "server"))["run_id"]


async def test_a_sentinel_that_does_not_know_the_master(group: SentinelGroup) -> None:
    url = group.url().replace("/dispatch/", "/hunter/")
    with pytest.raises(
        SettingsError, match=r"_URL: the Sentinels know no master hunter, only dispatch$"
    ):
        await check_redis(url)
    data_node = f"redis+sentinel://127.0.0.1:{group.primary.port}/dispatch"
    with pytest.raises(SettingsError, match=r"_URL: no Sentinel names .*:\d+ is no Sentinel"):
        await check_redis(data_node)
    with pytest.raises(SettingsError, match=r"_URL: is a Sentinel: write redis\+sentinel://"):
        await check_redis(f"redis://127.0.0.1:{group.sentinel.port}")
    with pytest.raises(
        SettingsError, match=r"_URL: 127\.0\.0\.1:\d+ is a Sentinel, not one of a cluster"
    ):
        await check_redis(f"redis+cluster://127.0.0.1:{group.sentinel.port}")
    (nobody,) = free_ports(1)
    with pytest.raises(SettingsError, match=r"_URL: no Sentinel names the master x: .*refused|failed"):
        await check_redis(f"redis+sentinel://:hunter2@127.0.0.1:{nobody}/x")
    await group.primary.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(SettingsError, match=r"_URL: maxmemory-policy is allkeys-lru"):
        await check_redis(group.url())
