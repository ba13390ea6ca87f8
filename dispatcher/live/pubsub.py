"""Messages between servers: sharded pub/sub, one channel a zone, so they stay on the zone's node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import hiredis
import orjson
import structlog
from redis.exceptions import RedisError, ResponseError

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.address import Kind, parse_address
from dispatcher.live.client import connect
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.protocol import RedisProtocol
from dispatcher.live.topology import Topology

log = structlog.get_logger("dispatcher.pubsub")

_RETRY_S = 0.5
#: A subscription that is silent this long is checked by a ping, and given up after as long again.
_QUIET_S = 5.0
#: How long a start waits for all subscriptions, once one stands.
_OTHERS_S = 2.0
#: How long a start waits for the first subscription.
_FIRST_S = 10.0

Deliver = Callable[[list[str], Any], None]


class _Subscription(RedisProtocol):
    """Hands on what comes."""

    def __init__(self, connection: Any, heard: Callable[[Any], None]) -> None:
        super().__init__(connection)
        self._heard = heard
        self._messages = 0
        self._closed = asyncio.Event()
        self._error: Exception | None = None

    def replies_received(self) -> None:
        parser, heard = self.parser, self._heard
        while (message := parser.gets()) is not False:
            self._messages += 1
            # Refused, or ended by a cluster that moved the slot: another connection asks anew.
            if isinstance(message, ResponseError) or message[0] == "sunsubscribe":
                self._error = message if isinstance(message, ResponseError) else None
                self.transport.abort()
                return
            heard(message)

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
            if self._messages != before:
                asked = False
            elif asked:
                self.transport.abort()
            else:
                self.transport.write(hiredis.pack_command(("PING",)))
                asked = True
        raise ConnectionError(str(self._error or "closed"))


class Subscriber:
    """Subscribes to the zones' channels. A message is a JSON list of [addresses, frame].

    `deliver` gets the addresses and the frame; `resync` is called once a lost subscription
    stands again: what was sent meanwhile is gone, so whoever listens has to be told the state anew.
    """

    def __init__(
        self,
        url: str,
        *,
        zones: list[str],
        deliver: Deliver,
        resync: Callable[[], None],
    ) -> None:
        self._url = url
        address = parse_address(url)
        self._topology = Topology(address) if address.kind is Kind.CLUSTER else None
        self._channels = [keys_of(zone).push for zone in zones]
        self._deliver = deliver
        self._resync = resync
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> bool:
        """Begins to listen; returns once every subscription stands, or a node of a cluster is away.

        False where none stands in time. One that stands later tells that messages were missed.
        """
        ready = [asyncio.Event() for _ in self._groups()]
        self._tasks = [
            asyncio.create_task(self._listen(channels, event), name="subscriber")
            for channels, event in zip(self._groups(), ready, strict=True)
        ]
        standing = [asyncio.create_task(event.wait()) for event in ready]
        done, _ = await asyncio.wait(standing, timeout=_FIRST_S, return_when=asyncio.FIRST_COMPLETED)
        if done:
            await asyncio.wait(standing, timeout=_OTHERS_S)
        for waiting, event in zip(standing, ready, strict=True):
            waiting.cancel()
            event.set()
        return bool(done)

    def _groups(self) -> list[list[str]]:
        # In a cluster each channel lives on its slot's node; elsewhere one connection hears all.
        return [[c] for c in self._channels] if self._topology else [self._channels]

    async def stop(self) -> None:
        """Stops listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._topology is not None:
            await self._topology.close()

    async def _listen(self, channels: list[str], ready: asyncio.Event) -> None:
        while True:
            try:
                await self._subscribed(channels, ready)
            except (StoreUnavailable, RedisError, OSError, TimeoutError) as error:
                log.warning("subscription lost", channels=len(channels), error=str(error))
            await asyncio.sleep(_RETRY_S)

    async def _subscribed(self, channels: list[str], ready: asyncio.Event) -> None:
        confirmed = 0

        def heard(message: Any) -> None:
            nonlocal confirmed
            if message[0] == "smessage":
                self._hand_out(message[2])
            elif message[0] == "ssubscribe":
                confirmed += 1
                if confirmed == len(channels):
                    if ready.is_set():
                        self._resync()
                    ready.set()

        client = await self._client(channels[0])
        try:
            subscription = _Subscription(await client.connection_pool.get_connection(), heard)
            command: Any = ("SSUBSCRIBE", *channels)
            subscription.transport.write(hiredis.pack_command(command))
            await subscription.watch()
        finally:
            await client.aclose()

    async def _client(self, channel: str) -> Any:
        if self._topology is None:
            return connect(self._url)
        # A subscription begins, or begins anew: its node may be another one now.
        await self._topology.refresh()
        node = self._topology.owner(channel)
        if node is None:
            raise StoreUnavailable("no node of the cluster has the slot")
        return self._topology.connect(node)

    def _hand_out(self, payload: str | bytes) -> None:
        try:
            for addresses, frame in orjson.loads(payload):
                self._deliver(addresses, frame)
        except (ValueError, TypeError, LookupError, AttributeError):
            log.warning("push message is not understood", size=len(payload))


class Publisher:
    """Sends messages to every server."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def publish(self, zone: str, messages: list[Any]) -> None:
        """Sends a list of [addresses, frame] on the zone's channel. Raises StoreUnavailable."""
        await self._pipeline.command("SPUBLISH", keys_of(zone).push, orjson.dumps(messages))
