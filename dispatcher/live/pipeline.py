"""Calls to Redis that arrive together travel together.

One write, one read and one wake-up of Redis are then shared by many calls, so calls are gathered:
while batches are on their way, the next one fills. Nothing waits on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Hashable, Sequence
from contextvars import Context
from typing import Any

import hiredis
from redis.exceptions import RedisError

from dispatcher.core.errors import CorruptState, ReplyLost, StoreUnavailable
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.breaker import Breaker, LeftAlone
from dispatcher.live.corruption import CorruptionReports
from dispatcher.live.keys import keys_of
from dispatcher.live.permissions import find_refusals
from dispatcher.live.protocol import REPLY_TIMEOUT_S, Call, CallProtocol, has_socket, log_unanswered
from dispatcher.live.redis_errors import error_of, is_demoted, is_no_help, is_unknown_script
from dispatcher.live.scanning import scan_names
from dispatcher.live.scripts import LuaScripts
from dispatcher.live.zone_check import check_zones, run_id_of

# A batch this large keeps Redis busy for some 5 ms; larger ones only delay the first reply.
_MAX_BATCH = 512
# Batches on their way at once: the next ones fill Redis' input while the first is answered.
_MAX_IN_FLIGHT = 4
# This many calls leave at once: Redis works on them while we take the next requests.
_SEND_AT_ONCE = 16
# What a probe writes goes by itself.
_PROBE_MS = 1_000


class Pipeline(CorruptionReports, LeftAlone):
    """Gathers calls of one event loop. `run` calls a script, `command` anything else.

    A Redis that is silent for `timeout_s` is away. With `breaks`, one that is away or no help fails
    every call at once, until a write to it has gone through.
    """

    def __init__(
        self,
        redis: Any,
        scripts: LuaScripts | None = None,
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
        breaks: bool = False,
    ) -> None:
        super().__init__()
        self._redis = redis
        self._timeout_s = timeout_s
        self.breaker = Breaker(self._probe, timeout_s=timeout_s) if breaks else None
        self._scripts = scripts or LuaScripts.read()
        self._loop: asyncio.AbstractEventLoop | None = None
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
        """Calls `lua/<script>.lua`, as `command`. Raises StoreUnavailable where Redis did not answer."""
        return self.command("EVALSHA", self._scripts.digests[script], len(keys), *keys, *args)

    def command(self, *command: Any) -> asyncio.Future[Any]:
        """Sends one command. A caller that is cancelled leaves its reply to be read and dropped.

        Raises TypeError or UnicodeEncodeError at once where an argument is no text, number or bytes.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self.put(Call(command, reply, hiredis.pack_command(command)))
        return reply

    def put(self, call: Call) -> None:
        """Sends a call after all that wait."""
        if self.breaker is not None and self.breaker.reason:
            self._answer(call, StoreUnavailable(self.breaker.reason))
            return
        self._waiting.append(call)
        if self._in_flight < _MAX_IN_FLIGHT:
            if len(self._waiting) >= _SEND_AT_ONCE:
                self.flush()
            elif not self._is_scheduled:
                self._is_scheduled = True
                (self._loop or asyncio.get_running_loop()).call_soon(self.flush)

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
        task = asyncio.get_running_loop().create_task(work, context=Context())  # not this call's alone
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
        self._run_id = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._redis.connection_pool.get_connection()
                if has_socket(connection):
                    self._run_id = await check_zones(
                        connection, lambda: self.epochs, self._scripts.texts["mark_cold"]
                    )
                    ends = (self._answer, self._batches_done, self._closed)
                    self._connection = CallProtocol(connection, *ends, timeout_s=self._timeout_s)
        except (RedisError, OSError, TimeoutError) as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
                await self._redis.connection_pool.release(connection)
            waiting, self._waiting = self._waiting, []
            log_unanswered(len(waiting), error)
            self.leave_alone(f"not reached: {error}")
            for call in waiting:
                self._answer(call, StoreUnavailable("redis"))
            return
        if not has_socket(connection):
            self._sent_by_client = True
            await self._redis.connection_pool.release(connection)

    async def _reopen(self, lost: CallProtocol) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            # Idle connections lead to the same node: none of them may be what comes next.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
        await self._release(lost)
        await self._open()

    def _closed(self, connection: CallProtocol, *, is_silent: bool) -> None:
        """A connection is lost: whether Redis is away is found out at once, and not by the next call."""
        if self.breaker is None or connection is not self._connection:
            return
        if is_silent:
            self.leave_alone("silent")
        self._connection = None
        self._spawn(self._reopen(connection), batches=_MAX_IN_FLIGHT)

    async def is_away(self, key: str) -> bool:
        """The same, but where the node's connection was lost just now, once it is known."""
        while self._tasks and self._connection is None and not self.is_left_alone(key):
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        return self.is_left_alone(key)

    async def _probe(self) -> None:
        # Idle connections may lead to a node that was replaced behind its name.
        await self._redis.connection_pool.disconnect(inuse_connections=False)
        # A node of a cluster takes keys of its own zones.
        epoch = next(iter(self.epochs), keys_of(DEFAULT_ZONE).epoch)
        await self._redis.set(epoch.removesuffix("epoch") + "ready", 1, px=_PROBE_MS)
        # What it may not do now, the next call would find out: rights may have been taken away.
        zone = epoch.partition("{")[2].partition("}")[0]
        if refusals := await find_refusals(self._redis, [zone]):
            raise StoreUnavailable(f"NOPERM its user may not {'; nor '.join(refusals)}")

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
            log_unanswered(len(batch), error)
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
            if is_no_help(reply):
                self.leave_alone(str(reply))
            told = error_of(reply)
            if isinstance(told, CorruptState):
                told = self.corrupt(call.keys, told)
                told.__cause__ = reply
            if not call.reply.done():
                call.reply.set_exception(told)
        elif not call.reply.done():
            call.reply.set_result(reply)

    async def _load_and_repeat(self) -> None:
        # Who comes from now on may lack another script, and has it loaded anew.
        calls, self._unknown_scripts = self._unknown_scripts, []
        try:
            for digest in {call.command[1] for call in calls}:
                await self._redis.script_load(self._scripts.text_of(digest))
        except (RedisError, OSError, TimeoutError) as failure:
            log_unanswered(len(calls), failure)
            for call in calls:
                self._answer(call._replace(is_repeated=True), StoreUnavailable("redis"))
            return
        self._waiting += [call._replace(is_repeated=True) for call in calls]

    def node_of(self, key: str) -> Hashable:
        """The node that is asked about `key`: calls to one node are answered in their order."""
        return ""

    async def load_scripts(self) -> None:
        """Makes the scripts known to Redis that calls run; one for operators, once it is asked for."""
        for text in self._scripts.texts_for_calls():
            await self._redis.script_load(text)

    async def run_id(self, key: str) -> str:
        """The run id of the server that holds `key`: another one after a restart or failover."""
        # Asked where scripts run: while a failover goes on, another connection may lead elsewhere.
        return run_id_of(await self.command("INFO", "server"))

    def scan(self, key: str, prefix: str) -> AsyncIterator[list[str]]:
        """The keys that begin with `prefix` on the server that holds `key`, in pages.

        A key may come twice. Raises StoreUnavailable.
        """
        return scan_names(self.command, prefix)

    async def drain(self) -> None:
        """Waits for what is on its way."""
        while self._waiting or self._in_flight or self._tasks:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Waits for what is on its way, then lets go of the connection."""
        if self.breaker is not None:
            await self.breaker.close()
        await self.drain()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._release(connection)
