"""What `dispatcher.live.protocol` leans on inside redis-py is there, and behaves as it expects.

A failure here says that the installed redis-py or hiredis has changed: adapt `protocol`, then the bound in
pyproject.toml.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import fakeredis
import hiredis
import pytest
import redis
import uvloop
from redis.exceptions import ResponseError

import dispatcher.live
from dispatcher.core.errors import CorruptState, StoreUnavailable
from dispatcher.live.client import connect
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.protocol import Call, CallProtocol, RedisProtocol, has_socket

#: The minor version of redis-py that all of this was tested with.
TESTED = (8, 1)


class _Replies(RedisProtocol):
    """Keeps what comes."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.closed_with: list[Exception | None] = []

    def replies_received(self) -> None:
        while (reply := self.parser.gets()) is not False:
            self.replies.put_nowait(reply)

    def closed(self, error: Exception | None) -> None:
        self.closed_with.append(error)

    async def ask(self, *command: Any) -> Any:
        self.transport.write(hiredis.pack_command(command))
        return await asyncio.wait_for(self.replies.get(), 5)


@pytest.fixture
async def connection(client: Any) -> AsyncIterator[Any]:
    """A connection that redis-py has opened."""
    opened = await client.connection_pool.get_connection()
    yield opened
    await opened.disconnect(nowait=True)
    await client.connection_pool.release(opened)


def test_the_installed_version_is_the_one_that_was_tested() -> None:
    installed = tuple(int(part) for part in redis.__version__.split(".")[:2])
    assert installed == TESTED, "run this file's tests with it, then raise TESTED and the bound"


# --- the connection


async def test_a_connection_has_the_writer_of_a_stream(connection: Any) -> None:
    writer = connection._writer
    assert isinstance(writer, asyncio.StreamWriter)
    for method in ("write", "abort", "get_protocol", "set_protocol", "is_closing"):
        assert callable(getattr(writer.transport, method)), method
    assert isinstance(writer.transport.get_protocol(), asyncio.StreamReaderProtocol)
    assert has_socket(connection)


async def test_a_connection_that_ended_after_the_handshake_is_refused(
    client: Any, connection: Any
) -> None:
    """Nobody would tell whoever reads in redis-py's place that it has ended."""
    await connection.send_command("CLIENT", "ID")
    number = await connection.read_response()
    await client.execute_command("CLIENT", "KILL", "ID", number)
    async with asyncio.timeout(10):
        while not connection._reader.at_eof():
            await asyncio.sleep(0)
    with pytest.raises(redis.exceptions.ConnectionError):
        _Replies(connection)


async def test_a_connection_of_fakeredis_has_no_socket() -> None:
    client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(version=(7,)))
    fake = await client.connection_pool.get_connection()
    assert fake._writer is not None
    assert not has_socket(fake)
    await client.aclose()


def test_a_connection_under_uvloop_has_one(redis_url: str) -> None:
    """Servers run on uvloop, whose transports are of no class of asyncio's."""

    async def look() -> bool:
        client = connect(redis_url)
        try:
            pool = client.connection_pool
            taken = await pool.get_connection()
            try:
                return has_socket(taken)
            finally:
                await pool.release(taken)
        finally:
            await client.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(look())


async def test_a_connection_comes_after_its_handshake(client: Any, connection: Any) -> None:
    """It is authenticated, in its database, of RESP2, and no reply to redis-py is still to come."""
    await client.set("here", "yes")
    own = _Replies(connection)
    assert connection.is_connected
    assert await own.ask("GET", "here") == "yes"
    await client.hset("hash", "a", "1")
    assert await own.ask("HGETALL", "hash") == ["a", "1"], "RESP3 would give a map"
    assert " resp=2 " in await own.ask("CLIENT", "INFO")
    assert own.replies.empty()


async def test_bytes_reach_our_protocol_and_no_longer_the_stream(connection: Any) -> None:
    own = _Replies(connection)
    assert connection._writer.transport.get_protocol() is own
    assert await own.ask("PING") == "PONG"
    assert not connection._reader._buffer


async def test_redis_py_closes_a_connection_that_we_read(connection: Any) -> None:
    own = _Replies(connection)
    await asyncio.wait_for(connection.disconnect(), 5)  # waits until its stream hears of the end
    assert not connection.is_connected
    assert own.transport.is_closing()
    assert (own.is_open, own.closed_with) == (False, [None])


async def test_a_connection_that_was_given_back_is_opened_anew(client: Any) -> None:
    pool = client.connection_pool
    first = await pool.get_connection()
    old = _Replies(first).transport
    await first.disconnect(nowait=True)
    await pool.release(first)
    second = await pool.get_connection()
    assert second is first, "the pool keeps it"
    assert second._writer.transport is not old
    assert await _Replies(second).ask("PING") == "PONG"
    await second.disconnect(nowait=True)
    await pool.release(second)


async def test_the_end_of_a_connection_is_heard(client: Any, connection: Any) -> None:
    own = _Replies(connection)
    number = await own.ask("CLIENT", "ID")
    await client.client_kill_filter(_id=number)
    async with asyncio.timeout(5):
        while own.is_open:
            await asyncio.sleep(0.001)
    assert len(own.closed_with) == 1


# --- the parser and the packer


def test_a_parser_says_when_no_whole_reply_is_there() -> None:
    parser = hiredis.Reader(encoding="utf-8", replyError=ResponseError)
    assert parser.gets() is False
    parser.feed(b"*2\r\n:1\r\n$-1\r\n+O")
    assert parser.gets() == [1, None]
    assert parser.gets() is False
    parser.feed(b"K\r\n-NOSCRIPT No matching script.\r\n")
    assert parser.gets() == "OK"
    error = parser.gets()
    assert isinstance(error, ResponseError)
    assert str(error) == "NOSCRIPT No matching script."


class _Word(StrEnum):
    ONE = "one"


async def test_a_command_is_packed_as_redis_py_packs_it(connection: Any) -> None:
    command = ("SET", "ключ", b"\x00\xff", 7, -1, 2**53, 50.1, _Word.ONE, "")
    assert hiredis.pack_command(command) == b"".join(connection.pack_command(*command))


# --- calls


async def test_each_reply_belongs_to_the_oldest_call(connection: Any) -> None:
    answered: list[tuple[Any, Any]] = []
    done = 0

    def batch_done() -> None:
        nonlocal done
        done += 1

    calls = CallProtocol(connection, lambda call, reply: answered.append((call, reply)), batch_done)
    loop = asyncio.get_running_loop()

    def echo(text: str) -> Call:
        command = ("ECHO", text)
        return Call(command, loop.create_future(), hiredis.pack_command(command))

    batches = [[echo(f"{batch}-{n}") for n in range(3)] for batch in range(4)]
    for batch in batches:
        calls.send(batch)
    async with asyncio.timeout(5):
        while done < 4:
            await asyncio.sleep(0.001)
    assert answered == [(call, call.command[1]) for batch in batches for call in batch]


async def test_a_reply_that_is_no_text_fails_its_own_call_alone(client: Any) -> None:
    pipeline = Pipeline(client)
    stumbled: list[str] = []
    pipeline.on_corrupt = stumbled.extend
    await client.hset("odd", mapping={"a": b"\xff", "b": "1"})
    before = await pipeline.command("CLIENT", "ID")
    calls = [pipeline.command(*each) for each in (("ECHO", "1"), ("HGETALL", "odd"), ("ECHO", "2"))]
    first, odd, last = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, last, type(odd)) == ("1", "2", CorruptState)
    assert stumbled == ["odd"]
    assert await pipeline.command("CLIENT", "ID") == before
    await pipeline.close()


async def test_a_name_that_is_no_text_keeps_no_scan_from_its_end(client: Any) -> None:
    """It is no key of ours, though it begins like one."""
    others = (b"dsp:z:\xff", b"\xff")
    for name in (b"dsp:{z}:\xff", b"dsp:{z}:a\xfe", b"dsp:{z}:ok", *others):
        await client.set(name, 1)
    pipeline = Pipeline(client)
    assert [name async for page in pipeline.scan("dsp:{z}:epoch", "dsp:{z}:") for name in page] == [
        "dsp:{z}:ok"
    ]
    assert await client.exists(*others) == 2
    await pipeline.close()


async def test_a_redis_that_is_silent_is_away(client: Any) -> None:
    pipeline = Pipeline(client, timeout_s=0.05)
    assert await pipeline.command("PING") == "PONG"
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(pipeline.command("BLPOP", "nothing", 0), 5)
    assert await pipeline.command("PING") == "PONG", "on a new connection"
    await pipeline.close()


async def test_a_client_sends_nothing_by_itself_again(redis_url: str) -> None:
    """A script may have run before its connection was lost."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            seen.append(data)
            if b"EVALSHA" in data:
                break
            writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
    with pytest.raises(redis.ConnectionError):
        await client.execute_command("EVALSHA", "0" * 40, 0)
    assert sum(data.count(b"EVALSHA") for data in seen) == 1
    await client.aclose()
    server.close()


# --- the fence


def test_no_other_module_touches_private_parts() -> None:
    """A name that begins with one _ is read from oneself, or it is of a named tuple."""
    of_named_tuples = {"_make", "_replace", "_asdict", "_fields", "_field_defaults"}
    found: dict[str, set[str]] = {}
    for path in Path(dispatcher.live.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not re.match("_[^_]", node.attr):
                continue
            if ast.unparse(node.value) in {"self", "cls", "super()"}:
                continue
            if node.attr not in of_named_tuples:
                found.setdefault(path.stem, set()).add(node.attr)
    assert found == {"protocol": {"_writer", "_reader"}}
