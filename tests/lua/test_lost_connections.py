"""Connections that are lost, and servers that cannot answer: told at once, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio
import uvloop

from dispatcher.core.errors import ReplyLost, StoreUnavailable
from dispatcher.embedded.engines import EngineUrls
from dispatcher.embedded.packages import valkey_program
from dispatcher.live import pubsub
from dispatcher.live.channel_nodes import channel_nodes
from dispatcher.live.client import connect
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from tests.harness.lua_zone import WarmLimits, limit


class Proxy:
    """Stands between a client and Redis; `doom` may end a connection once bytes have passed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.chunks: list[bytes] = []
        self.connections = 0
        self.doom: Callable[[bytes], bool] = lambda _: False
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        upstream, onward = await asyncio.open_connection("127.0.0.1", self._port)

        async def back() -> None:
            with contextlib.suppress(OSError):
                while data := await upstream.read(65_536):
                    writer.write(data)
                    await writer.drain()

        task = asyncio.create_task(back())
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                self.chunks.append(data)
                doomed = self.doom(data)
                if doomed:
                    task.cancel()  # Redis gets it, the client never hears of it
                onward.write(data)
                await onward.drain()
                if doomed:
                    await asyncio.sleep(0.05)
                    break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for end in (writer, onward):
            end.close()

    def forward_to(self, port: int) -> None:
        """Connections that are made from now on lead there."""
        self._port = port

    @contextlib.asynccontextmanager
    async def listen(self, redis_url: str) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = redis_url.replace(f":{self._port}/", f":{port}/")
        try:
            yield self
        finally:
            server.close()


def _port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])


async def test_a_lost_connection_is_told_and_nothing_is_sent_twice(redis_url: str) -> None:
    async with Proxy(_port_of(redis_url)).listen(redis_url) as proxy:
        client = connect(proxy.url)
        pipeline = Pipeline(client)
        limits, keys = WarmLimits(pipeline), keys_of("lost")
        await pipeline.load_scripts()
        await asyncio.gather(*(pipeline.command("PING") for _ in range(3)))

        proxy.doom = lambda data: b"EVALSHA" in data
        results = await asyncio.gather(
            *(limits.check_limit(keys, [limit(100)]) for _ in range(20)), return_exceptions=True
        )
        assert {type(result) for result in results} == {ReplyLost}
        assert sum(chunk.count(b"EVALSHA") for chunk in proxy.chunks) <= 20
        await asyncio.sleep(0.1)
        ran = int(await _direct(redis_url, "LLEN", keys.limit("general", "d1")))
        assert 0 < ran <= 20, "they ran, and none of them twice"

        # And it goes on by itself.
        proxy.doom = lambda _: False
        assert (await limits.check_limit(keys, [limit(100)])).is_admitted
        assert int(await _direct(redis_url, "LLEN", keys.limit("general", "d1"))) == ran + 1
        await pipeline.close()
        await client.aclose()


async def test_a_connection_that_was_lost_while_idle(redis_url: str, client: Any) -> None:
    pipeline = Pipeline(client)
    await pipeline.command("PING")
    await _direct(redis_url, "CLIENT", "KILL", "ID", str(await pipeline.command("CLIENT", "ID")))
    results = await asyncio.gather(
        *(pipeline.command("INCR", "lost:count") for _ in range(5)), return_exceptions=True
    )
    numbers = [result for result in results if not isinstance(result, StoreUnavailable)]
    assert numbers in ([], [1, 2, 3, 4, 5])
    again = await pipeline.command("INCR", "lost:count")
    assert again == len(numbers) + 1


async def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        client = connect(f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        with pytest.raises(StoreUnavailable):
            await Pipeline(client).command("PING")
        await client.aclose()


async def test_what_ran_is_told_where_loading_scripts_fails(redis_url: str) -> None:
    """Only the calls that were to be sent again are lost."""
    async with Proxy(_port_of(redis_url)).listen(redis_url) as proxy:
        client = connect(proxy.url)
        pipeline = Pipeline(client)
        limits, keys = WarmLimits(pipeline), keys_of("half")
        await client.script_flush()
        proxy.doom = lambda data: b"Atomic because" in data
        call = asyncio.ensure_future(limits.check_limit(keys, [limit(5)]))
        await asyncio.sleep(0)
        ran = pipeline.command("INCR", "half:count")
        results = await asyncio.gather(call, ran, return_exceptions=True)
        assert isinstance(results[0], StoreUnavailable)
        assert results[1] == 1
        await pipeline.close()
        await client.aclose()


async def test_a_server_that_cannot_write_is_unavailable(client: Any) -> None:
    pipeline = Pipeline(client)
    limits, keys = WarmLimits(pipeline), keys_of("oom")
    assert (await limits.check_limit(keys, [limit(5)])).is_admitted
    await client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="memory"):
            await limits.check_limit(keys, [limit(5)])
    finally:
        await client.config_set("maxmemory", "0")
    admission = await limits.check_limit(keys, [limit(5)])
    assert admission.limit is not None
    assert admission.limit.remaining == 3, "the refused call was not counted"


@contextlib.contextmanager
def _other_node(directory: Path, redis_url: str) -> Iterator[int]:
    """The port of another Valkey of the same password."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    password = urlsplit(redis_url).password or ""
    command = [
        str(valkey_program()), "--bind", "127.0.0.1", "--port", str(port), "--save", "",
        "--dir", str(directory), "--requirepass", password,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait(10)


async def test_a_node_that_was_demoted_is_left_for_its_successor(redis_url: str, tmp_path: Path) -> None:
    """Behind one name: the connection stands, and would lead to a replica for good."""
    with _other_node(tmp_path, redis_url) as old:
        new = _port_of(redis_url)
        old_url = redis_url.replace(f":{new}/", f":{old}/")
        async with Proxy(old).listen(old_url) as proxy:
            client = connect(proxy.url)
            pipeline = Pipeline(client)
            async with asyncio.timeout(10):
                while True:  # it starts
                    with contextlib.suppress(StoreUnavailable):
                        await pipeline.command("SET", "demoted:key", "1")
                        break
                    await asyncio.sleep(0.01)
            limits, keys = WarmLimits(pipeline), keys_of("demoted")
            assert (await limits.check_limit(keys, [limit(5)])).is_admitted
            await pipeline.load_scripts()  # by an idle connection of the pool, which leads there, too
            await _direct(old_url, "REPLICAOF", "127.0.0.1", "1")
            proxy.forward_to(new)
            with pytest.raises(StoreUnavailable, match="READONLY"):
                await limits.check_limit(keys, [limit(5)])
            assert (await limits.check_limit(keys, [limit(5)])).is_admitted
            info = await _direct(redis_url, "INFO", "server")
            assert await pipeline.run_id(keys.epoch) == info["run_id"]
            await pipeline.close()
            await client.aclose()


async def _direct(url: str, *command: str) -> Any:
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
        return await client.execute_command(*command)


async def test_a_server_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen Redis, or a path that swallows everything: the handshake has a deadline, too."""
    monkeypatch.setattr("dispatcher.live.client._REPLY_TIMEOUT_S", 0.2)
    accepted: list[asyncio.StreamWriter] = []
    listener = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = connect(f"redis://127.0.0.1:{port}/0")
    pipeline = Pipeline(client)
    try:
        async with asyncio.timeout(5):
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await pipeline.command("PING")
            with pytest.raises(StoreUnavailable):
                await pipeline.run_id("key")
    finally:
        await client.aclose()
        for writer in accepted:
            writer.close()
        listener.close()
        await listener.wait_closed()


async def test_a_subscription_is_given_up_though_nobody_tells_of_its_end(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of a connection: who listens does not wait for ever."""
    monkeypatch.setattr(pubsub, "_QUIET_S", 0.02)
    connection = await client.connection_pool.get_connection()
    subscription = pubsub._Subscription(connection, lambda *_: True)
    subscription.transport.set_protocol(asyncio.Protocol())  # no answer comes, and no end
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(subscription.watch(), 10)
    await connection.disconnect(nowait=True)
    await client.connection_pool.release(connection)


async def test_whatever_ends_a_subscription_it_is_made_anew(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw, of a library in the middle of a handshake, leaves nobody deaf."""
    monkeypatch.setattr(pubsub, "_RETRY_S", 0.01)
    nodes, stands, failures = channel_nodes(redis_url), asyncio.Event(), [AttributeError("_writer")] * 3
    make = nodes.connect

    def fail_first(node: Any) -> Any:
        if failures:
            raise failures.pop()
        return make(node)

    monkeypatch.setattr(nodes, "connect", fail_first)
    subscriber = pubsub.Subscriber(nodes)
    subscriber.subscribe("push", pubsub.Listener(lambda _: None, stands.set))
    async with asyncio.timeout(10):
        await stands.wait()
    await subscriber.stop()
    assert not failures


def test_a_subscription_that_ends_in_silence_is_told_of_by_uvloop_too(engines: EngineUrls) -> None:
    """Its transport raises where it is written to after its end, and asyncio's own does not."""

    async def end_in_silence() -> None:
        client = connect(engines.redis_url)
        connection = await client.connection_pool.get_connection()
        subscription = pubsub._Subscription(connection, lambda *_: True)
        watching = asyncio.create_task(subscription.watch())
        await asyncio.sleep(0)
        subscription.transport.abort()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(watching, 10)
        await client.aclose()

    uvloop.run(end_in_silence())


async def _steps(redis_url: str) -> int:
    """How often a task that opens a connection waits for something."""
    client = connect(redis_url)
    opening = asyncio.create_task(client.connection_pool.get_connection())
    steps = 0
    while not opening.done():
        await asyncio.sleep(0)
        steps += 1
    await client.connection_pool.release(await opening)
    await client.aclose()
    return steps


async def test_who_opens_a_connection_can_be_cancelled_at_each_step(redis_url: str) -> None:
    """Python 3.11 forgets a cancellation that comes as `asyncio.wait_for` ends, by which redis-py sends."""
    for steps in range(await _steps(redis_url)):
        client = connect(redis_url)
        opening = asyncio.create_task(client.connection_pool.get_connection())
        for _ in range(steps):
            await asyncio.sleep(0)
        if opening.cancel():
            await asyncio.wait([opening])
            assert opening.cancelled(), steps
        else:
            await client.connection_pool.release(await opening)
        assert await client.ping(), "nobody reads the answer of another one"
        await client.aclose()


async def test_a_subscriber_stops_at_each_step(redis_url: str) -> None:
    for steps in range(2 * await _steps(redis_url)):
        subscriber = pubsub.Subscriber(channel_nodes(redis_url))
        subscriber.subscribe("push", pubsub.Listener(lambda _: None))
        for _ in range(steps):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await subscriber.stop()
