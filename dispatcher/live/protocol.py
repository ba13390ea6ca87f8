"""Connections that redis-py opens and this package reads.

This is the one module that touches private attributes of redis-py (`_writer` of a connection);
tests/lua/test_protocol.py fails where the library changes them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis
import structlog
from redis.exceptions import ResponseError

from dispatcher.core.errors import ReplyLost
from dispatcher.observe.series import ENGINE_ERRORS, REDIS_BATCH_CALLS, REDIS_BATCH_SECONDS

log = structlog.get_logger("dispatcher.redis")

# A batch takes milliseconds: a Redis that is silent this long is away.
_REPLY_TIMEOUT_S = 5.0


class RedisProtocol(asyncio.Protocol):
    """A connection of redis-py's, after its handshake, read without redis-py's streams.

    Replies are handled as their bytes come in. redis-py's own way takes a coroutine and a timeout for
    each, which is more than all the rest of a call.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.transport: asyncio.Transport = connection._writer.transport
        self._stream_protocol = self.transport.get_protocol()
        self.transport.set_protocol(self)
        self.parser = hiredis.Reader(encoding="utf-8", replyError=ResponseError)
        self.is_open = True

    def replies_received(self) -> None:
        """There may be whole replies in the parser: with RESP2, it gives False once there are not."""
        raise NotImplementedError

    def closed(self, error: Exception | None) -> None:
        """The connection is closed, by either side."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        self.parser.feed(data)
        self.replies_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._stream_protocol.connection_lost(exc)  # redis-py waits for it when it closes
        self.closed(exc)


def has_socket(connection: Any) -> bool:
    """Whether the connection can be read by a RedisProtocol: one of fakeredis has no socket.

    Asked by what is needed of a transport: those of uvloop are no asyncio.BaseTransport.
    """
    return hasattr(getattr(connection._writer, "transport", None), "set_protocol")


class Call(NamedTuple):
    """A command, the future of its reply, whether it was sent before its script was known, and how often
    a node of a cluster has named another one."""

    command: tuple[Any, ...]
    reply: asyncio.Future[Any]
    is_repeated: bool = False
    redirects: int = 0


class CallProtocol(RedisProtocol):
    """Calls go out in batches; each reply belongs to the oldest call that has none."""

    def __init__(
        self,
        connection: Any,
        on_reply: Callable[[Call, Any], None],
        on_batch_done: Callable[[], None],
    ) -> None:
        super().__init__(connection)
        self._on_reply = on_reply
        self._on_batch_done = on_batch_done
        self._calls: deque[Call] = deque()
        # How many calls each batch on its way holds, and when it was sent.
        self._batches: deque[tuple[int, float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def send(self, batch: Sequence[Call]) -> None:
        """Writes a batch in one piece."""
        self._calls.extend(batch)
        self._batches.append((len(batch), time.perf_counter()))
        REDIS_BATCH_CALLS.observe(len(batch))
        self.transport.write(b"".join([hiredis.pack_command(call.command) for call in batch]))
        if self._timer is None:
            self._timer = self._loop.call_later(_REPLY_TIMEOUT_S, self._check_overdue)

    def replies_received(self) -> None:
        parser, calls, on_reply = self.parser, self._calls, self._on_reply
        received = 0
        while (reply := parser.gets()) is not False:
            received += 1
            on_reply(calls.popleft(), reply)
        batches = self._batches
        while received:
            unanswered, sent_s = batches[0]
            if unanswered > received:
                batches[0] = (unanswered - received, sent_s)
                break
            received -= unanswered
            batches.popleft()
            REDIS_BATCH_SECONDS.observe(time.perf_counter() - sent_s)
            self._on_batch_done()

    @property
    def silent_since(self) -> float | None:
        """When the oldest batch that has no reply was sent, by the loop's clock."""
        if not self._batches:
            return None
        return self._loop.time() - (time.perf_counter() - self._batches[0][1])

    def retire(self) -> None:
        """Takes no more batches. The owner closes it once it is noticed, with the next batch."""
        self.is_open = False

    def closed(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._calls:
            ENGINE_ERRORS.add("redis")
            log.warning("redis did not answer", calls=len(self._calls), error=str(error or "closed"))
        while self._calls:
            self._on_reply(self._calls.popleft(), ReplyLost("redis"))
        while self._batches:
            self._batches.popleft()
            self._on_batch_done()

    def _check_overdue(self) -> None:
        self._timer = None
        if not self._batches:
            return
        _, sent_s = self._batches[0]
        left_s = sent_s + _REPLY_TIMEOUT_S - time.perf_counter()
        if left_s <= 0:
            self.transport.abort()
        else:
            self._timer = self._loop.call_later(left_s, self._check_overdue)
