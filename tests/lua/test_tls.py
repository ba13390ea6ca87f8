"""TLS with certificates of both sides, to one node, by Sentinel and in a cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from dispatcher.config import SettingsError
from dispatcher.live.address import parse_address
from dispatcher.live.channel_nodes import channel_nodes
from dispatcher.live.deployment import open_pipeline
from dispatcher.live.keys import keys_of
from dispatcher.live.preflight import check_redis
from dispatcher.live.publisher import Publisher
from dispatcher.live.pubsub import Listener, Subscriber
from dispatcher.live.settlement import Message
from tests.harness.lua_zone import WarmLimits, limit
from tests.harness.tls import Authority, TlsFront
from tests.harness.valkey_nodes import SentinelGroup, ValkeyCluster, ValkeyNode, free_ports


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def options(authority: Authority) -> str:
    """The query of a URL with everything that a client needs."""
    client = authority.issue("client")
    return f"ssl_ca_certs={authority.file}&ssl_certfile={client.certificate}&ssl_keyfile={client.key}"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ValkeyNode]:
    """One node with a user who may do what a server does."""
    (port,) = free_ports(1)
    running = ValkeyNode(tmp_path / "node", port)
    try:
        await running.until("uptime_in_seconds", "INFO", "server")
        await running.ask("ACL", "SETUSER", "app", "on", ">a secret", "~dsp:*", "&dsp:*", "+@all")
        yield running
    finally:
        running.end()


async def _use(url: str) -> None:
    """Scripts and messages, both on connections that this package reads itself."""
    await check_redis(url)
    heard = asyncio.Event()

    stands = asyncio.Event()
    subscriber = Subscriber(channel_nodes(url))
    listener = Listener(lambda _: heard.set(), stands.set)
    subscriber.subscribe(keys_of("default").channel("driver:d1"), listener)
    try:
        async with asyncio.timeout(20):
            await stands.wait()
        async with open_pipeline(url) as pipeline:
            calls = (
                WarmLimits(pipeline).check_limit(keys_of("default"), [limit(100_000)])
                for _ in range(600)  # more than one record of TLS
            )
            assert all(admission.is_admitted for admission in await asyncio.gather(*calls))
            await Publisher(pipeline).publish("default", [Message(["driver:d1"], "x" * 100_000)])
            async with asyncio.timeout(20):
                await heard.wait()
    finally:
        await subscriber.stop()


async def _use_to_the_end(url: str, front: TlsFront) -> None:
    """A loop that ends before a TLS connection has ended leaves it open, and says so."""
    await _use(url)
    async with asyncio.timeout(20):
        while front.ended < front.encrypted:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # the other side's end is read


async def test_a_node_with_certificates_and_a_user(
    authority: Authority, options: str, node: ValkeyNode
) -> None:
    with TlsFront(authority, node.port) as front:
        url = f"rediss://app:a%20secret@127.0.0.1:{front.port}/2?{options}"
        await _use(url)
        assert "app" in await node.ask("ACL", "USERS")
        # Servers run on uvloop, whose TLS is another one.
        await asyncio.to_thread(uvloop.run, _use_to_the_end(url, front))
        assert front.encrypted > 4
        assert front.plain == 0


async def test_a_locked_key_is_opened(authority: Authority, options: str, node: ValkeyNode) -> None:
    authority.issue("locked", "a password")
    with TlsFront(authority, node.port) as front:
        locked = options.replace("client.", "locked.")
        await check_redis(f"rediss://127.0.0.1:{front.port}?{locked}&ssl_password=a%20password")


def test_certificates_may_be_replaced_while_a_server_runs(authority: Authority, options: str) -> None:
    tls = parse_address(f"rediss://127.0.0.1?{options}").tls
    assert tls is not None
    first = tls.get()
    assert tls.get() is first
    renewed = authority.issue("client")
    os.utime(renewed.certificate, ns=(0, 0))
    assert tls.get() is not first


def test_only_the_authority_that_is_named_is_trusted(options: str) -> None:
    tls = parse_address(f"rediss://127.0.0.1?{options}").tls
    assert tls is not None
    assert len(tls.get().get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("ssl_ca_certs=", "ssl_ca_certs=/nowhere"), r"ssl_ca_certs: /nowhere\S* cannot be read: No such file"),
        (("authority.pem", "other.pem"), "CERTIFICATE_VERIFY_FAILED"),
        (("&ssl_certfile", "&client_name=x#"), "Redis cannot be reached: "),
        (("client.key", "stranger.key"), "KEY_VALUES_MISMATCH|key values mismatch"),
        (("client", "locked"), "PEM|BAD_DECRYPT|bad decrypt|password"),
        (("a%20secret", "hunter2"), "invalid username-password|WRONGPASS"),
        (("rediss://", "redis://"), "ssl_ca_certs needs rediss://"),
    ],
)  # fmt: skip
async def test_what_is_refused(
    authority: Authority,
    options: str,
    node: ValkeyNode,
    change: tuple[str, str],
    reason: str,
    tmp_path: Path,
) -> None:
    Authority(tmp_path, "other")
    authority.issue("stranger")
    authority.issue("locked", "hunter2")
    with TlsFront(authority, node.port) as front:
        url = f"rediss://app:a%20secret@127.0.0.1:{front.port}?{options}"
        changed = url.replace(*change)
        assert changed != url
        with pytest.raises(SettingsError, match=rf"^DISPATCHER_REDIS_URL: .*({reason})") as caught:
            await check_redis(changed.partition("#")[0])
        assert "secret" not in str(caught.value)
        assert "hunter2" not in str(caught.value)


async def test_a_primary_by_its_sentinels(authority: Authority, options: str, tmp_path: Path) -> None:
    """TLS to the Sentinels as well."""
    async with SentinelGroup.run(tmp_path) as group:
        with (
            TlsFront(authority, group.primary.port) as front,
            TlsFront(authority, group.sentinel.port) as watch,
        ):
            # The Sentinel, which has no TLS, reaches the primary by the same port as the clients.
            await group.sentinel.ask("SENTINEL", "MONITOR", "by-tls", "127.0.0.1", front.port, 1)
            await _use(f"rediss+sentinel://127.0.0.1:{watch.port}/by-tls?{options}")
            assert front.encrypted
            assert watch.encrypted
            assert watch.plain == 0


async def test_a_cluster(authority: Authority, options: str, tmp_path: Path) -> None:
    """The nodes that the first one names are asked by TLS, too."""
    nodes = ValkeyCluster(tmp_path, primaries=1, replicas=False)
    try:
        await nodes.ready()
        (node,) = nodes.nodes
        with TlsFront(authority, node.port) as front:
            await node.ask("CONFIG", "SET", "cluster-announce-port", front.port)
            await node.until(f":{front.port}@", "CLUSTER", "NODES")
            await _use(f"rediss+cluster://127.0.0.1:{front.port}?{options}")
            assert front.encrypted
            assert front.plain == 0
    finally:
        nodes.end()
