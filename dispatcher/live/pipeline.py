"""Calls to Redis that arrive together travel together.

One write, one read and one wake-up of Redis are then shared by many calls, so calls are gathered:
while batches are on their way, the next one fills. Nothing waits on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextvars import Context
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from dispatcher.core.errors import ReplyLost, StoreUnavailable
from dispatcher.live.protocol import Call, CallProtocol, has_socket
from dispatcher.live.redis_errors import error_of, is_demoted, is_unknown_script
from dispatcher.live.scripts import LuaScripts
from dispatcher.observe.series import ENGINE_ERRORS

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
        self._sent_by_client = False  # fakeredis has no socket: its client sends
        self._in_flight = 0
        self._is_scheduled = False
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Epochs of the zones. Another Redis than they were loaded into may answer on a new
        #: connection: they are dropped before it is asked anything.
        self.epochs: Sequence[str] = ()
        self._run_id = ""

    def run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> asyncio.Future[Any]:
        """Calls `lua/<script>.lua`. Raises StoreUnavailable where Redis did not answer."""
        return self.command("EVALSHA", self._scripts.digests[script], len(keys), *keys, *args)

    def command(self, *command: Any) -> asyncio.Future[Any]:
        """Sends one command. A caller that is cancelled leaves its reply to be read and dropped."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self.put(Call(command, reply))
        return reply

    def put(self, call: Call) -> None:
        """Sends a call after all that wait."""
        self._waiting.append(call)
        if self._in_flight < _MAX_IN_FLIGHT:
            if len(self._waiting) >= _SEND_AT_ONCE:
                self.flush()
            elif not self._is_scheduled:
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Sends what waits now, and not at the end of the turn, as far as batches may be in flight."""
        self._is_scheduled = False
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

    def queue(self) -> int:
        """How many calls wait for a batch on its way to be answered."""
        return len(self._waiting)

    def _spawn(self, work: Coroutine[Any, Any, None], *, batches: int = 1) -> None:
        self._in_flight += batches
        # In no call's context: what is logged there is about many calls.
        task = asyncio.get_running_loop().create_task(work, context=Context())
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
            ENGINE_ERRORS.add("redis")
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
        self._run_id = ""
        if not self.epochs:
            return
        script = self._scripts.texts["mark_cold"]
        checked: set[str] = set()
        refused: list[ResponseError] = []
        try:
            await connection.send_command("INFO", "server")
            self._run_id = _run_id_of(await connection.read_response())
        except ResponseError as error:
            refused.append(error)
        # A cluster may move other zones here meanwhile.
        while self._run_id and (epochs := set(self.epochs) - checked):
            for epoch in epochs:
                await connection.send_command("EVAL", script, 1, epoch, self._run_id)
                try:
                    await connection.read_response()
                except ResponseError as error:
                    refused.append(error)
            checked |= epochs
        if refused:
            # What refuses this refuses a claim, too; the reconcile job looks again.
            log.warning(
                "zones not checked on a new connection", zones=len(refused), error=str(refused[0])
            )

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
            ENGINE_ERRORS.add("redis")
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

    async def load_scripts(self) -> None:
        """Makes every script known to Redis."""
        for text in self._scripts.texts.values():
            await self._redis.script_load(text)

    async def run_id(self, key: str) -> str:
        """The run id of the server that holds `key`: another one after a restart or failover.

        Asked where scripts run: while a failover goes on, another connection may lead elsewhere.
        """
        return _run_id_of(await self.command("INFO", "server"))

    async def scan(self, key: str, prefix: str) -> AsyncIterator[list[str]]:
        """The keys that begin with `prefix` on the server that holds `key`, in pages.

        A key may come twice. Raises StoreUnavailable.
        """
        cursor: Any = "0"
        while True:
            cursor, found = await self.command(
                "SCAN", cursor, "MATCH", prefix + "*", "COUNT", _SCAN_KEYS
            )
            yield found
            if int(cursor) == 0:
                return

    async def drain(self) -> None:
        """Waits for what is on its way."""
        while self._waiting or self._in_flight or self._tasks:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Waits for what is on its way, then lets go of the connection."""
        await self.drain()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._release(connection)


def _run_id_of(info: Any) -> str:
    if isinstance(info, dict):  # a client has read it already
        return str(info["run_id"])
    (run_id,) = _RUN_ID.findall(str(info))
    return str(run_id)
