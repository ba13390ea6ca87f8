"""Calls to Redis that arrive together travel together.

One write, one read and one wake-up of Redis are then shared by many calls, so calls are gathered:
while batches are on their way, the next one fills. Nothing waits on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Coroutine, Hashable, Sequence
from typing import Any

import structlog
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError, ResponseError

from dispatcher.core.errors import ReplyLost, StoreUnavailable
from dispatcher.live.node_queues import NodeQueues
from dispatcher.live.protocol import Call, CallProtocol, has_socket
from dispatcher.live.redis_errors import error_of, is_demoted, is_unknown_script
from dispatcher.live.scripts import LuaScripts

log = structlog.get_logger("dispatcher.redis")

# A batch this large keeps Redis busy for some 5 ms; larger ones only delay the first reply.
_MAX_BATCH = 512
# Batches on their way at once: the next ones fill Redis' input while the first is answered.
_MAX_IN_FLIGHT = 4
# This many calls leave at once: Redis works on them while we take the next requests.
_SEND_AT_ONCE = 16
_RUN_ID = re.compile(r"run_id:(\w+)")
# Keys looked at by one SCAN: it keeps Redis busy for less than a millisecond.
_SCAN_KEYS = 1_000


class Pipeline:
    """Gathers calls of one event loop. `run` calls a script, `command` anything else."""

    def __init__(self, redis: Any, scripts: LuaScripts | None = None) -> None:
        self._redis = redis
        self._scripts = scripts or LuaScripts.read()
        self._waiting: list[Call] = []
        self._unknown_scripts: list[Call] = []
        self._connection: CallProtocol | None = None
        # A cluster has many connections, and fakeredis has no socket: their clients send.
        self._nodes: NodeQueues | None = None
        if isinstance(redis, RedisCluster):
            self._nodes = NodeQueues(
                redis,
                self._send_by_client,
                lambda work: self._spawn(work, batches=0),
                max_batch=_MAX_BATCH,
                max_in_flight=_MAX_IN_FLIGHT,
            )
        self._sent_by_client = False
        self._in_flight = 0
        self._is_scheduled = False
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Epochs of the zones. Another Redis than they were loaded into may answer on a new
        #: connection: they are dropped before it is asked anything.
        self.epochs: Sequence[str] = ()

    def run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> asyncio.Future[Any]:
        """Calls `lua/<script>.lua`. Raises StoreUnavailable where Redis did not answer."""
        return self.command("EVALSHA", self._scripts.digests[script], len(keys), *keys, *args)

    def command(self, *command: Any) -> asyncio.Future[Any]:
        """Sends one command. A caller that is cancelled leaves its reply to be read and dropped."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(Call(command, reply))
        if self._in_flight < _MAX_IN_FLIGHT:
            if len(self._waiting) >= _SEND_AT_ONCE:
                self.flush()
            elif not self._is_scheduled:
                self._is_scheduled = True
                loop.call_soon(self.flush)
        return reply

    def flush(self) -> None:
        """Sends what waits now, and not at the end of the turn, as far as batches may be in flight."""
        self._is_scheduled = False
        if self._nodes is not None:
            waiting, self._waiting = self._waiting, []
            self._nodes.put(waiting)
            return
        while self._waiting and self._in_flight < _MAX_IN_FLIGHT:
            connection = self._connection
            if connection is None and not self._sent_by_client:
                self._spawn(self._open(), batches=_MAX_IN_FLIGHT)
                return
            batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
            if connection is None:
                self._spawn(self._send_by_client(batch))
            elif connection.is_open:
                self._in_flight += 1
                connection.send(batch)
            else:
                self._waiting[:0] = batch
                self._connection = None
                self._spawn(self._reopen(connection), batches=_MAX_IN_FLIGHT)

    def _spawn(self, work: Coroutine[Any, Any, None], *, batches: int = 1) -> None:
        self._in_flight += batches
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._batches_done(batches)

        task.add_done_callback(ended)

    def _batches_done(self, batches: int = 1) -> None:
        self._in_flight -= batches
        if self._waiting:
            if not self._is_scheduled:
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self.flush)
        elif not self._in_flight:
            self._idle.set()

    async def _open(self) -> None:
        connection: Any = None
        try:
            connection = await self._redis.connection_pool.get_connection()
            if has_socket(connection):
                await self._mark_cold(connection)
        except (RedisError, OSError, TimeoutError) as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
                await self._redis.connection_pool.release(connection)
            waiting, self._waiting = self._waiting, []
            log.warning("redis did not answer", calls=len(waiting), error=str(error))
            for call in waiting:
                self._answer(call, StoreUnavailable("redis"))
            return
        if has_socket(connection):
            self._connection = CallProtocol(connection, self._answer, self._batches_done)
        else:
            self._sent_by_client = True
            await self._redis.connection_pool.release(connection)

    async def _mark_cold(self, connection: Any) -> None:
        if not self.epochs:
            return
        script = self._scripts.texts["mark_cold"]
        try:
            await connection.send_command("INFO", "server")
            (run_id,) = _RUN_ID.findall(str(await connection.read_response()))
            for epoch in self.epochs:
                await connection.send_command("EVAL", script, 1, epoch, run_id)
                await connection.read_response()
        except ResponseError as error:
            # What refuses this refuses a claim, too; the reconcile job looks again.
            log.warning("zones not checked on a new connection", error=str(error))

    async def _reopen(self, lost: CallProtocol) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            # Idle connections lead to the same node: none of them may be what comes next.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
        await self._release(lost)
        await self._open()

    async def _release(self, lost: CallProtocol) -> None:
        await lost.connection.disconnect(nowait=True)
        await self._redis.connection_pool.release(lost.connection)

    async def _send_by_client(self, batch: list[Call]) -> None:
        try:
            pipeline: Any = self._redis.pipeline()
            for call in batch:
                pipeline.execute_command(*call.command)
            replies = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("redis did not answer", calls=len(batch), error=str(error))
            replies = [ReplyLost("redis")] * len(batch)
        except BaseException:
            for call in batch:
                call.reply.cancel()
            raise
        for call, reply in zip(batch, replies, strict=True):
            self._answer(call, reply)

    def _answer(self, call: Call, reply: Any) -> None:
        if isinstance(reply, Exception):
            if not call.is_repeated and is_unknown_script(reply):
                # The rest of the batch has run: only what failed is sent again.
                self._unknown_scripts.append(call)
                if len(self._unknown_scripts) == 1:
                    self._spawn(self._load_and_repeat())
                return
            if self._connection is not None and is_demoted(reply):
                self._connection.retire()  # the next batch connects anew
            if not call.reply.done():
                call.reply.set_exception(error_of(reply))
        elif not call.reply.done():
            call.reply.set_result(reply)

    async def _load_and_repeat(self) -> None:
        error: Exception | None = None
        try:
            await self.load_scripts()
        except (RedisError, OSError, TimeoutError) as failure:
            log.warning("redis did not answer", calls=len(self._unknown_scripts), error=str(failure))
            error = StoreUnavailable("redis")
        calls, self._unknown_scripts = self._unknown_scripts, []
        for call in calls:
            repeated = call._replace(is_repeated=True)
            if error is None:
                self._waiting.append(repeated)
            else:
                self._answer(repeated, error)

    def node_of(self, key: str) -> Hashable:
        """The node that is asked about `key`: calls to one node are answered in their order."""
        return "" if self._nodes is None else self._nodes.node_of(key)

    async def load_scripts(self) -> None:
        """Makes every script known to Redis (to every primary of a cluster)."""
        for text in self._scripts.texts.values():
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

    async def scan(self, key: str, prefix: str) -> AsyncIterator[list[str]]:
        """The keys that begin with `prefix` on the server that holds `key`, in pages.

        A key may come twice. Raises StoreUnavailable.
        """
        on_node: dict[str, Any] = {}
        if isinstance(self._redis, RedisCluster):
            on_node["target_nodes"] = self._redis.get_node_from_key(key)
        cursor: Any = "0"
        while True:
            try:
                reply: Any = await self._redis.execute_command(
                    "SCAN", cursor, "MATCH", prefix + "*", "COUNT", _SCAN_KEYS, **on_node
                )
            except (RedisError, OSError, TimeoutError) as error:
                raise StoreUnavailable("redis") from error
            cursor, found = reply
            if isinstance(cursor, dict):  # a cluster's client gives one a node
                (cursor,) = cursor.values()
            yield found
            if int(cursor) == 0:
                return

    async def close(self) -> None:
        """Waits for what is on its way, then lets go of the connection."""
        while self._waiting or self._in_flight or self._tasks:
            self._idle.clear()
            await self._idle.wait()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._release(connection)
