"""Calls to Redis that arrive together travel together.

One write, one read and one wake-up of Redis are then shared by many calls, so calls are gathered:
while batches are on their way, the next one fills. Nothing waits on purpose.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import structlog
from redis.asyncio import RedisCluster
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.protocol import Line, can_be_taken
from dispatcher.resources import LUA_DIR

log = structlog.get_logger("dispatcher.redis")

_INCLUDE = re.compile(r'^--- @include "([a-z_]+)"$', re.MULTILINE)
# A batch this large keeps Redis busy for some 5 ms; larger ones only delay the first reply.
_MOST = 512
_AWAY = (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)  # a server that is loading counts as a lost connection there
# Batches on their way at once: the next ones fill Redis' input while the first is answered.
_LANES = 4
# So many calls leave at once: Redis works on them while we take the next requests.
_EAGER = 16
# A batch takes milliseconds: a Redis that is silent this long is away.
_REPLY_S = 5.0
# What a connection says of errors that redis-py has classes for.
_CODES_OF_AWAY = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
)


def read_script(name: str, directory: Path = LUA_DIR) -> str:
    """The text of `lua/<name>.lua` with its includes, which are one level deep."""

    def included(match: re.Match[str]) -> str:
        return (directory / "lib" / f"{match[1]}.lua").read_text()

    return _INCLUDE.sub(included, (directory / f"{name}.lua").read_text())


class _Call(NamedTuple):
    """A command, who waits for its reply, and whether it was sent before its script was known."""

    command: tuple[Any, ...]
    reply: asyncio.Future[Any]
    again: bool = False


class _Line(Line):
    """Calls go out in batches; each reply is the oldest call's that has none."""

    def __init__(
        self, connection: Any, answered: Callable[[_Call, Any], None], finished: Callable[[], None]
    ) -> None:
        super().__init__(connection)
        self._answered = answered
        self._finished = finished
        self._calls: deque[_Call] = deque()
        # How many calls the batches on their way hold, and when the first of them has taken too long.
        self._batches: deque[tuple[int, float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None

    def send(self, batch: Sequence[_Call]) -> None:
        """Writes a batch in one piece."""
        self._calls.extend(batch)
        self._batches.append((len(batch), self._loop.time() + _REPLY_S))
        self.transport.write(b"".join([hiredis.pack_command(call.command) for call in batch]))
        if self._watch is None:
            self._watch = self._loop.call_later(_REPLY_S, self._look)

    def received(self) -> None:
        parser, calls, answered = self.parser, self._calls, self._answered
        taken = 0
        while (reply := parser.gets()) is not False:
            taken += 1
            answered(calls.popleft(), reply)
        batches = self._batches
        while taken:
            left, deadline = batches[0]
            if left > taken:
                batches[0] = (left - taken, deadline)
                break
            taken -= left
            batches.popleft()
            self._finished()

    def lost(self, error: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._calls:
            log.warning("redis did not answer", calls=len(self._calls), error=str(error or "closed"))
        while self._calls:
            self._answered(self._calls.popleft(), StoreUnavailable("redis"))
        while self._batches:
            self._batches.popleft()
            self._finished()

    def _look(self) -> None:
        self._watch = None
        if not self._batches:
            return
        _, deadline = self._batches[0]
        if deadline <= self._loop.time():
            self.transport.abort()
        else:
            self._watch = self._loop.call_at(deadline, self._look)


class Pipeline:
    """Gathers calls of one event loop. `run` calls a script, `command` anything else."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._waiting: list[_Call] = []
        self._unknown: list[_Call] = []  # their scripts were
        self._line: _Line | None = None
        # A cluster has many connections, and fakeredis has no socket: their clients send.
        self._by_client = isinstance(redis, RedisCluster)
        self._lanes = 0
        self._scheduled = False
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._texts = {path.stem: read_script(path.stem) for path in sorted(LUA_DIR.glob("*.lua"))}
        self._shas = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in self._texts.items()
        }

    def run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> asyncio.Future[Any]:
        """Calls `lua/<script>.lua`. Raises StoreUnavailable where Redis did not answer."""
        return self.command("EVALSHA", self._shas[script], len(keys), *keys, *args)

    def command(self, *command: Any) -> asyncio.Future[Any]:
        """Sends one command. A caller that is cancelled leaves its reply to be read and dropped."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Call(command, reply))
        if self._lanes < _LANES:
            if len(self._waiting) >= _EAGER:
                self.flush()
            elif not self._scheduled:
                self._scheduled = True
                loop.call_soon(self.flush)
        return reply

    def flush(self) -> None:
        """What waits leaves now, not at the end of the turn, as far as there are lanes."""
        self._scheduled = False
        while self._waiting and self._lanes < _LANES:
            line = self._line
            if line is None and not self._by_client:
                self._spawn(self._open(), lanes=_LANES)
                return
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            if line is None:
                self._spawn(self._send_by_client(batch))
            elif line.is_open:
                self._lanes += 1
                line.send(batch)
            else:
                self._waiting[:0] = batch
                self._line = None
                self._spawn(self._reopen(line), lanes=_LANES)

    def _spawn(self, work: Coroutine[Any, Any, None], *, lanes: int = 1) -> None:
        self._lanes += lanes
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._finished(lanes)

        task.add_done_callback(ended)

    def _finished(self, lanes: int = 1) -> None:
        self._lanes -= lanes
        if self._waiting:
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self.flush)
        elif not self._lanes:
            self._idle.set()

    async def _open(self) -> None:
        try:
            connection = await self._redis.connection_pool.get_connection()
        except (RedisError, OSError, TimeoutError) as error:
            waiting, self._waiting = self._waiting, []
            log.warning("redis did not answer", calls=len(waiting), error=str(error))
            for call in waiting:
                self._answer(call, StoreUnavailable("redis"))
            return
        if can_be_taken(connection):
            self._line = _Line(connection, self._answer, self._finished)
        else:
            self._by_client = True
            await self._redis.connection_pool.release(connection)

    async def _reopen(self, lost: _Line) -> None:
        await self._let_go(lost)
        await self._open()

    async def _let_go(self, line: _Line) -> None:
        await line.connection.disconnect(nowait=True)
        await self._redis.connection_pool.release(line.connection)

    async def _send_by_client(self, batch: list[_Call]) -> None:
        try:
            pipeline: Any = self._redis.pipeline()
            for call in batch:
                pipeline.execute_command(*call.command)
            replies = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("redis did not answer", calls=len(batch), error=str(error))
            replies = [StoreUnavailable("redis")] * len(batch)
        except BaseException:
            for call in batch:
                call.reply.cancel()
            raise
        for call, reply in zip(batch, replies, strict=True):
            self._answer(call, reply)

    def _answer(self, call: _Call, reply: Any) -> None:
        if isinstance(reply, Exception):
            if not call.again and _is_unknown_script(reply):
                # The rest of the batch has run: only what failed is sent again.
                self._unknown.append(call)
                if len(self._unknown) == 1:
                    self._spawn(self._make_known())
            elif not call.reply.done():
                call.reply.set_exception(_meaning(reply))
        elif not call.reply.done():
            call.reply.set_result(reply)

    async def _make_known(self) -> None:
        error: Exception | None = None
        try:
            await self.load_scripts()
        except (RedisError, OSError, TimeoutError) as failure:
            log.warning("redis did not answer", calls=len(self._unknown), error=str(failure))
            error = StoreUnavailable("redis")
        calls, self._unknown = self._unknown, []
        for call in calls:
            if error is None:
                self._waiting.append(call._replace(again=True))
            else:
                self._answer(call._replace(again=True), error)

    async def load_scripts(self) -> None:
        """Makes every script known to Redis (to every primary of a cluster)."""
        for text in self._texts.values():
            await self._redis.script_load(text)

    async def run_id(self, key: str) -> str:
        """The run id of the server that holds `key`: another one after a restart or failover."""
        try:
            if isinstance(self._redis, RedisCluster):
                node: Any = self._redis.get_node_from_key(key)
                info: Any = await self._redis.info("server", target_nodes=node)
                info = info.get(node.name, info)
            else:
                info = await self._redis.info("server")
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable("redis") from error
        return str(info["run_id"])

    async def close(self) -> None:
        """Waits for what is on its way, then lets go of the connection."""
        while self._waiting or self._lanes:
            self._idle.clear()
            await self._idle.wait()
        if self._line is not None:
            line, self._line = self._line, None
            await self._let_go(line)


def _is_unknown_script(error: Exception) -> bool:
    return isinstance(error, NoScriptError) or str(error).startswith("NOSCRIPT")


def _meaning(error: Exception) -> Exception:
    # Answers of a server that is starting, failing over, full or read-only: nothing was done.
    # redis-py cuts the code off where it has a class for it; one error has one future.
    away = isinstance(error, _AWAY) or str(error).startswith(_CODES_OF_AWAY)
    if away or not isinstance(error, ResponseError):
        return StoreUnavailable(str(error))
    return error
