"""The checks at start, of a real cluster: each refusal names the node or the zone."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest

from dispatcher.config import SettingsError
from dispatcher.embedded.engines import EngineUrls
from dispatcher.live.deployment import open_pipeline
from dispatcher.live.keys import keys_of
from dispatcher.live.permissions import CLUSTER_COMMANDS
from dispatcher.live.preflight import check_redis
from tests.harness.least_privilege import acl_line
from tests.harness.valkey_nodes import ValkeyCluster, free_ports, zones_on_each_node
from tests.lua.walk import Walk

ZONES = [zones[0] for zones in zones_on_each_node()]


@pytest.fixture
async def user_url(cluster: ValkeyCluster) -> AsyncIterator[str]:
    """The URL of a user who may do what the shipped ACL file says, and no more."""
    for node in cluster.nodes:
        await node.ask("ACL", "SETUSER", "app", *acl_line()[2:], ">a secret")
    yield cluster.url.replace("://", "://app:a%20secret@")
    for node in cluster.nodes:
        if node.process.poll() is None:
            await node.ask("ACL", "DELUSER", "app")


async def test_what_is_asked_for_is_enough(user_url: str, cluster: ValkeyCluster) -> None:
    await check_redis(user_url, zones=ZONES)
    async with open_pipeline(user_url) as pipeline:
        await Walk(pipeline, keys_of(ZONES[0])).take()
        zone = "asked-for"
        source = await cluster.primary_of(zone)
        target = next(node for node in await cluster.primaries() if node is not source)
        await cluster.begin_move(zone, source, target)
        await pipeline.command("SET", keys_of(zone).ready, "1")
        await cluster.end_move(zone, source, target)


@pytest.mark.parametrize("command", CLUSTER_COMMANDS)
async def test_a_command_that_the_user_lacks(
    user_url: str, cluster: ValkeyCluster, command: str
) -> None:
    for node in cluster.nodes:
        await node.ask("ACL", "SETUSER", "app", f"-{command.lower().replace(' ', '|')}")
    reason = r"127\.0\.0\.1:\d+: its user may not run ASKING"
    if command != "ASKING":  # without these, not even the nodes are known
        reason = r"no node of the cluster answers: .*no permissions to run the 'cluster\|(info|slots)'"
    with pytest.raises(SettingsError, match=rf"^DISPATCHER_REDIS_URL: {reason}"):
        await check_redis(user_url, zones=ZONES)


async def test_a_wrong_password(cluster: ValkeyCluster) -> None:
    with pytest.raises(SettingsError, match=r"_URL: Redis cannot be reached: .*password") as caught:
        await check_redis(cluster.url.replace("://", "://app:hunter2@"))
    assert "hunter2" not in str(caught.value)


async def test_a_node_that_evicts(cluster: ValkeyCluster) -> None:
    node = await cluster.primary_of(ZONES[1])
    await node.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    try:
        with pytest.raises(SettingsError, match=rf"_URL: 127\.0\.0\.1:{node.port}: maxmemory-policy is"):
            await check_redis(cluster.url, zones=ZONES)
    finally:
        await node.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_a_node_that_takes_no_writes(cluster: ValkeyCluster) -> None:
    node = await cluster.primary_of(ZONES[1])
    await node.ask("CONFIG", "SET", "min-replicas-to-write", "3")
    try:
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{node.port}: Redis cannot be written"):
            await check_redis(cluster.url, zones=ZONES)
    finally:
        await node.ask("CONFIG", "SET", "min-replicas-to-write", "0")


async def test_a_zone_that_no_node_has(cluster: ValkeyCluster) -> None:
    zone = "homeless"
    node = await cluster.primary_of(zone)
    await cluster.drop_slot(zone)
    try:
        with pytest.raises(SettingsError, match=r"_URL: no node .* has the slot of the zone homeless$"):
            await check_redis(cluster.url, zones=[*ZONES, zone])
        await check_redis(cluster.url, zones=ZONES)
    finally:
        await cluster.give_slot(zone, node)


async def test_a_server_may_start_while_a_node_is_away(cluster: ValkeyCluster) -> None:
    node = await cluster.primary_of(ZONES[1])
    node.signal(signal.SIGKILL)
    try:
        await check_redis(cluster.url, zones=ZONES)
    finally:
        await cluster.take_over(node)


async def test_what_is_no_cluster(cluster: ValkeyCluster, engines: EngineUrls) -> None:
    alone = engines.redis_url.replace("redis://", "redis+cluster://").removesuffix("/0")
    for url in (alone, f"{alone},127.0.0.1:{cluster.nodes[0].port}"):
        with pytest.raises(SettingsError, match=r"127\.0\.0\.1:\d+ is a single node in standalone mode"):
            await check_redis(url)
    with pytest.raises(SettingsError, match=r"_URL: is a node of a cluster: write redis\+cluster://"):
        await check_redis(cluster.nodes[0].url)
    (nobody,) = free_ports(1)
    with pytest.raises(SettingsError, match=r"_URL: Redis cannot be reached: "):
        await check_redis(f"redis+cluster://127.0.0.1:{nobody}")
