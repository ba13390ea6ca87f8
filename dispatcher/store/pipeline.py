"""Calls to Redis that arrive together travel together.

A pipeline of redis-py costs the event loop about a third of what single calls cost, so calls are
gathered: while one batch is on its way, the next one fills. Nothing waits on purpose.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hiredis
import structlog
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
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
from dispatcher.store.files import LUA_DIR

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
# Batches on their way at once: the second one fills Redis' input while the first is answered.
_LANES = 2
# A batch takes milliseconds: a Redis that is silent this long is away.
_REPLY_S = 5.0


def connect(url: str, *, cluster: bool) -> Any:
    """A client that never sends a command twice by itself: a script may have run already."""
    once = Retry(NoBackoff(), 0)
    if cluster:
        return RedisCluster.from_url(
            url,
            decode_responses=True,
            protocol=2,
            retry=once,
            socket_connect_timeout=2,
            socket_timeout=5,
        )
    return Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        retry=once,
        socket_connect_timeout=2,
        max_connections=256,
    )


def read_script(name: str, directory: Path = LUA_DIR) -> str:
    """The text of `lua/<name>.lua` with its includes, which are one level deep."""

    def included(match: re.Match[str]) -> str:
        return (directory / "lib" / f"{match[1]}.lua").read_text()

    return _INCLUDE.sub(included, (directory / f"{name}.lua").read_text())


class Pipeline:
    """Gathers calls of one event loop. `run` calls a script, `command` anything else."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._lanes = 0
        self._scheduled = False
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
        self._waiting.append((command, reply))
        if not self._scheduled and self._lanes < _LANES:
            self._scheduled = True
            loop.call_soon(self._start)
        return reply

    def _start(self) -> None:
        self._scheduled = False
        if not self._waiting or self._lanes >= _LANES:
            return
        self._lanes += 1
        task = asyncio.get_running_loop().create_task(self._drain())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                await self._send(batch)
        finally:
            self._lanes -= 1

    async def _send(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        try:
            replies = await self._execute([command for command, _ in batch])
            again = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if again:
                # The rest of the batch has run: only what failed is sent again.
                fresh = await self._again([batch[i][0] for i in again])
                for i, reply in zip(again, fresh, strict=True):
                    replies[i] = reply
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("redis did not answer", calls=len(batch), error=str(error))
            replies = [StoreUnavailable("redis")] * len(batch)
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if isinstance(reply, StoreUnavailable):
                future.set_exception(StoreUnavailable("redis"))
            elif isinstance(reply, ResponseError):
                future.set_exception(_meaning(reply))
            elif isinstance(reply, Exception):
                future.set_exception(StoreUnavailable(str(reply)))
            else:
                future.set_result(reply)

    async def _again(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        try:
            await self.load_scripts()
            return await self._execute(commands)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("redis did not answer", calls=len(commands), error=str(error))
            return [StoreUnavailable("redis")] * len(commands)

    async def _execute(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        if not isinstance(self._redis, RedisCluster):
            return await self._exchange(commands)
        pipeline: Any = self._redis.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _exchange(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """One write, then the replies: redis-py's connections at half the cost of its pipeline."""
        pool = self._redis.connection_pool
        connection = await pool.get_connection()
        replies: list[Any] = []
        try:
            async with asyncio.timeout(_REPLY_S):
                packed = b"".join([hiredis.pack_command(command) for command in commands])
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        replies.append(await connection.read_response(disconnect_on_error=False))
                    except ResponseError as error:
                        replies.append(error)
        except BaseException:
            # Replies that were not read must not be taken for those of the next batch.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)
        return replies

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
        """Waits for what is on its way."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _meaning(error: ResponseError) -> Exception:
    # Answers of a server that is starting, failing over, full or read-only: nothing was done.
    # The client cuts the code off where it has a class for it.
    if isinstance(error, _AWAY) or str(error).startswith(("MISCONF", "NOREPLICAS", "BUSY")):
        return StoreUnavailable(str(error))
    return error
