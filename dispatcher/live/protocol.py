"""Connections that redis-py opens and this package reads.

This is the one module that touches private attributes of redis-py (`_writer` and `_reader` of a
connection); tests/lua/test_protocol.py fails where the library changes them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis
import structlog
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import ResponseError

from dispatcher.core.errors import ReplyLost
from dispatcher.observe.series import ENGINE_ERRORS, REDIS_BATCH_CALLS, REDIS_BATCH_SECONDS

log = structlog.get_logger("dispatcher.redis")

#: A batch takes milliseconds: a Redis that is silent this long is away, where no other time is set.
REPLY_TIMEOUT_S = 5.0
_LAST_CHANCE_S = 0.05


class RedisProtocol(asyncio.Protocol):
    """A connection of redis-py's, after its handshake, read without redis-py's streams.

    Replies are handled as their bytes come in. redis-py's own way takes a coroutine and a timeout for
    each, which is more than all the rest of a call.
    """

    def __init__(self, connection: Any) -> None:
        """Raises redis.exceptions.ConnectionError where the connection has ended by now.

        Redis may have ended it right after the handshake. redis-py's stream knows that, and nobody
        would tell it to whoever reads in its place: they would wait for ever.
        """
        self.connection = connection
        self.transport: asyncio.Transport = connection._writer.transport
        if self.transport.is_closing() or connection._reader.at_eof():
            raise NotConnected("ended after the handshake")
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


#: Where commands have their first key, if it does not follow their name.
_FIRST_KEY = {"EVALSHA": 3, "EVAL": 3, "XGROUP": 2, "XREADGROUP": 7}


def log_unanswered(calls: int, error: object) -> None:
    """Redis did not answer so many calls."""
    ENGINE_ERRORS.add("redis")
    log.warning("redis did not answer", calls=calls, error=str(error))


class Call(NamedTuple):
    """A command, the future of its reply, the bytes that are sent, whether it was sent before its script
    was known, and how often a node of a cluster has named another one.

    It is packed when it is made, and not with its batch: who asks for nonsense is told, and nobody else.
    """

    command: tuple[Any, ...]
    reply: asyncio.Future[Any]
    packed: bytes
    is_repeated: bool = False
    redirects: int = 0

    @property
    def key(self) -> str:
        """The first key: all keys of a call are of one node."""
        return str(self.command[_FIRST_KEY.get(self.command[0], 1)])

    @property
    def keys(self) -> list[str]:
        """The keys of a script; of any other command its first."""
        if self.command[0] == "EVALSHA":
            return [str(name) for name in self.command[3 : 3 + int(self.command[2])]]
        return [self.key] if len(self.command) > 1 else []


class CallProtocol(RedisProtocol):
    """Calls go out in batches; each reply belongs to the oldest call that has none."""

    def __init__(
        self,
        connection: Any,
        on_reply: Callable[[Call, Any], None],
        on_batch_done: Callable[[], None],
        on_closed: Callable[..., None] | None = None,
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        super().__init__(connection)
        self._on_closed = on_closed
        self._timeout_s = timeout_s
        self._is_silent = False
        self._on_reply = on_reply
        self._on_batch_done = on_batch_done
        self._calls: deque[Call] = deque()
        # How many calls each batch on its way holds, when its reply is overdue, and when it was sent.
        self._batches: deque[tuple[int, float, float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def send(self, batch: Sequence[Call]) -> None:
        """Writes a batch in one piece."""
        self._calls.extend(batch)
        self._batches.append((len(batch), self._loop.time() + self._timeout_s, time.perf_counter()))
        REDIS_BATCH_CALLS.observe(len(batch))
        self.transport.write(b"".join([call.packed for call in batch]))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._check_overdue)

    def replies_received(self) -> None:
        parser, calls, on_reply = self.parser, self._calls, self._on_reply
        received = 0
        while True:
            try:
                reply = parser.gets()
            except UnicodeDecodeError as error:
                reply = error  # the parser goes on with the next one
            if reply is False:
                break
            received += 1
            on_reply(calls.popleft(), reply)
        self._is_silent = False
        batches = self._batches
        while received:
            unanswered, deadline, sent_s = batches[0]
            if unanswered > received:
                batches[0] = (unanswered - received, deadline, sent_s)
                break
            received -= unanswered
            batches.popleft()
            REDIS_BATCH_SECONDS.observe(time.perf_counter() - sent_s)
            self._on_batch_done()

    @property
    def silent_since(self) -> float | None:
        """When the oldest batch that has no reply was sent, by the loop's clock."""
        return self._batches[0][1] - self._timeout_s if self._batches else None

    def retire(self) -> None:
        """Takes no more batches. The owner closes it once it is noticed, with the next batch."""
        self.is_open = False

    def closed(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._calls:
            log_unanswered(len(self._calls), error or "closed")
        while self._calls:
            self._on_reply(self._calls.popleft(), ReplyLost("redis"))
        while self._batches:
            self._batches.popleft()
            self._on_batch_done()
        if self._on_closed is not None:
            self._on_closed(self, is_silent=self._is_silent)

    def _check_overdue(self) -> None:
        self._timer = None
        if not self._batches:
            return
        _, deadline, _ = self._batches[0]
        if deadline > self._loop.time():
            self._timer = self._loop.call_at(deadline, self._check_overdue)
        elif self._is_silent:
            self.transport.abort()
        else:
            # This process may have stood still itself: what has come meanwhile is read first.
            self._is_silent = True
            self._timer = self._loop.call_later(_LAST_CHANCE_S, self._check_overdue)
