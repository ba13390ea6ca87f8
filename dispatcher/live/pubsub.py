"""Messages between servers: sharded pub/sub. A server hears what one of its own listens to, no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import structlog
from redis.exceptions import RedisError, ResponseError

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.channel_nodes import ChannelNodes
from dispatcher.live.protocol import RedisProtocol

log = structlog.get_logger("dispatcher.pubsub")

_RETRY_S: Final = 0.5
#: A subscription that is silent this long is checked by a ping, and given up after as long again.
_QUIET_S: Final = 5.0
#: How long a connection may take to open or to close, before another one is made.
_CONNECT_S: Final = 10.0


def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens to a channel. `stands` is called whenever the subscription stands, for the first time
    or again: what was sent before is gone. `lost` is called when it does not any more."""

    heard: Callable[[bytes], None]
    stands: Callable[[], None] = _nothing
    lost: Callable[[], None] = _nothing


class Subscriber:
    """The channels that this server listens to; one connection to each node that has some of them."""

    def __init__(self, nodes: ChannelNodes) -> None:
        self._nodes = nodes
        self._listeners: dict[str, Listener] = {}
        self._links: dict[Hashable, _Link] = {}
        self._places: dict[str, _Link] = {}
        self._is_stopped = False
        #: How many messages have come.
        self.received = 0

    def __len__(self) -> int:
        return len(self._listeners)

    async def open(self) -> None:
        """Learns where channels live; where that cannot be had yet, subscriptions stand later."""
        with contextlib.suppress(StoreUnavailable, RedisError, OSError, TimeoutError):
            await self._nodes.look_again()

    def subscribe(self, channel: str, listener: Listener) -> None:
        """Listens to a channel that nobody here listens to yet, as soon as its node can be reached."""
        self._listeners[channel] = listener
        self._place(channel)

    def unsubscribe(self, channel: str) -> None:
        """Nobody here listens to the channel any more."""
        if self._listeners.pop(channel, None) is not None:
            self._places.pop(channel).remove(channel)

    def is_up(self, channel: str) -> bool:
        """Whether the subscription to a channel stands."""
        link = self._places.get(channel)
        return link is not None and link.is_up(channel)

    async def stop(self) -> None:
        """Stops listening."""
        self._is_stopped = True
        links = [*self._links.values()]
        self._links.clear()
        await asyncio.gather(*(link.stop() for link in links))
        await self._nodes.close()

    def _place(self, channel: str) -> None:
        if self._is_stopped:
            return
        node = self._nodes.owner(channel)
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = _Link(node, self._nodes, self)
        self._places[channel] = link
        link.add(channel)

    # --- what links say

    def heard(self, channel: str, payload: bytes) -> None:
        """A message has come."""
        self.received += 1
        listener = self._listeners.get(channel)
        if listener is not None:
            listener.heard(payload)

    def stands(self, channel: str) -> None:
        """A subscription stands."""
        listener = self._listeners.get(channel)
        if listener is not None:
            listener.stands()

    def lost(self, channels: list[str]) -> None:
        """These subscriptions do not stand any more."""
        for channel in channels:
            listener = self._listeners.get(channel)
            if listener is not None:
                listener.lost()

    def left(self, node: Hashable, channels: list[str]) -> None:
        """A link has ended with these channels: they may live on other nodes by now."""
        if self._is_stopped:
            return
        self._links.pop(node, None)
        for channel in channels:
            if channel in self._listeners:
                self._place(channel)


class _Link:
    """The connection to one node. It ends when it is lost; what it had is then placed anew."""

    def __init__(self, node: Hashable, nodes: ChannelNodes, subscriber: Subscriber) -> None:
        self._node = node
        self._nodes = nodes
        self._subscriber = subscriber
        self._channels: set[str] = set()
        self._confirmed: set[str] = set()
        #: Commands on their way, by channel: only the answer to the last one counts.
        self._asked: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._waiting: list[tuple[str, str]] = []
        self._connection: _Subscription | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="subscriber")

    def add(self, channel: str) -> None:
        """Subscribes to a channel, now or with the connection."""
        self._channels.add(channel)
        self._send("SSUBSCRIBE", channel)

    def remove(self, channel: str) -> None:
        """Leaves a channel."""
        self._channels.discard(channel)
        self._confirmed.discard(channel)
        self._send("SUNSUBSCRIBE", channel)

    def is_up(self, channel: str) -> bool:
        """Whether the subscription to a channel stands."""
        return channel in self._confirmed

    async def stop(self) -> None:
        """Closes the connection."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _send(self, command: str, channel: str) -> None:
        if self._connection is None:
            return  # the connection begins with all channels
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append((command, channel))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if (connection := self._connection) is None or connection.transport.is_closing():
            return  # the next connection begins with all channels
        for command, channel in waiting:
            unanswered = self._asked if command == "SSUBSCRIBE" else self._left
            unanswered[channel] = unanswered.get(channel, 0) + 1
        # A command a channel: those of different slots may not share one in a cluster.
        commands: list[Any] = waiting
        connection.transport.write(b"".join([hiredis.pack_command(each) for each in commands]))

    async def _run(self) -> None:
        try:
            await self._listen()
        except (StoreUnavailable, RedisError, OSError, TimeoutError) as error:
            log.warning("subscription lost", channels=len(self._channels), error=str(error))
        except Exception:
            # Whatever it was, a link that has ended without a word would leave its users deaf for good.
            log.exception("subscription failed", channels=len(self._channels))
        finally:
            self._connection = None
            confirmed, self._confirmed = list(self._confirmed), set()
            self._subscriber.lost(confirmed)
        await asyncio.sleep(_RETRY_S)
        try:
            await self._nodes.look_again()
        except (StoreUnavailable, RedisError, OSError, TimeoutError):
            pass  # asked again when the next connection is lost
        except Exception:
            log.exception("nodes of channels not found")
        self._subscriber.left(self._node, list(self._channels))

    async def _listen(self) -> None:
        client = self._nodes.connect(self._node)
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection = await client.connection_pool.get_connection()
            self._connection = _Subscription(connection, self._take)
            self._waiting = [("SSUBSCRIBE", channel) for channel in self._channels]
            self._flush()
            await self._connection.watch()
        finally:
            async with asyncio.timeout(_CONNECT_S):
                await client.aclose()

    def _take(self, kind: bytes, name: bytes, payload: Any) -> bool:
        """Takes what has come; False where the connection is of no use any more."""
        channel = name.decode(errors="replace")
        if kind == b"smessage":
            self._subscriber.heard(channel, payload)
        elif kind == b"ssubscribe":
            if _answered(self._asked, channel) and channel in self._channels:
                self._confirmed.add(channel)
                self._subscriber.stands(channel)
        elif kind == b"sunsubscribe":
            if channel not in self._left:
                return False  # a cluster has moved the slot
            _answered(self._left, channel)
        return True


def _answered(unanswered: dict[str, int], channel: str) -> bool:
    """Notes an answer; whether it was that to the last command."""
    left = unanswered.get(channel, 1) - 1
    if left:
        unanswered[channel] = left
    else:
        unanswered.pop(channel, None)
    return not left


class _Subscription(RedisProtocol):
    """Hands on what comes."""

    def __init__(self, connection: Any, take: Callable[[bytes, bytes, Any], bool]) -> None:
        super().__init__(connection)
        # Bytes: frames go to sockets as they came, and a text that is none breaks no connection.
        self.parser = hiredis.Reader(replyError=ResponseError)
        self._take = take
        self._messages = 0
        self._closed = asyncio.Event()
        self._error: Exception | None = None

    def replies_received(self) -> None:
        parser, take = self.parser, self._take
        while (message := parser.gets()) is not False:
            self._messages += 1
            is_refused = isinstance(message, ResponseError)
            # The answer to a ping is no list of three.
            if is_refused or (len(message) == 3 and not take(*message)):
                self._error = message if is_refused else None
                self.transport.abort()
                return

    def closed(self, error: Exception | None) -> None:
        self._error = self._error or error
        self._closed.set()

    async def watch(self) -> None:
        """Until the connection is lost, or is so silent that it must be; raises ConnectionError."""
        asked = False
        while not self._closed.is_set():
            before = self._messages
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_S):
                    await self._closed.wait()
            if self._closed.is_set():
                break  # uvloop raises where a transport that has ended is written to
            if self._messages != before:
                asked = False
            elif asked:
                self.transport.abort()  # and nobody may tell of it
                raise ConnectionError("no answer")
            else:
                self.transport.write(hiredis.pack_command(("PING",)))
                asked = True
        raise ConnectionError(str(self._error or "closed"))
