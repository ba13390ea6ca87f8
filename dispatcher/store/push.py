"""Messages between servers: sharded pub/sub, one channel a zone, so they stay on the zone's node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import structlog
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError

from dispatcher.store.keys import keys_of
from dispatcher.store.pipeline import Pipeline, connect

log = structlog.get_logger("dispatcher.push")

_RETRY_S = 0.5
#: A subscription that is silent this long is checked by a ping.
_QUIET_S = 15.0

Deliver = Callable[[list[str], Any], None]


class Push:
    """Subscribes to the zones' channels. A message is a JSON list of [addresses, frame].

    `deliver` gets the addresses and the frame; `resync` is called once a lost subscription
    stands again: what was sent meanwhile is gone, so whoever listens has to be told the state anew.
    """

    def __init__(
        self,
        url: str,
        *,
        cluster: bool,
        zones: list[str],
        deliver: Deliver,
        resync: Callable[[], None],
    ) -> None:
        self._url = url
        self._cluster = cluster
        self._channels = [keys_of(zone).push for zone in zones]
        self._deliver = deliver
        self._resync = resync
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to listen; returns once every subscription stands."""
        ready = [asyncio.Event() for _ in self._groups()]
        self._tasks = [
            asyncio.create_task(self._listen(channels, event), name="push")
            for channels, event in zip(self._groups(), ready, strict=True)
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in ready)), 10)

    def _groups(self) -> list[list[str]]:
        # In a cluster each channel lives on its slot's node; elsewhere one connection hears all.
        return [[c] for c in self._channels] if self._cluster else [self._channels]

    async def stop(self) -> None:
        """Stops listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, channels: list[str], ready: asyncio.Event) -> None:
        while True:
            try:
                await self._subscribed(channels, ready)
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("subscription lost", channels=len(channels), error=str(error))
            await asyncio.sleep(_RETRY_S)

    async def _subscribed(self, channels: list[str], ready: asyncio.Event) -> None:
        client = await self._client(channels[0])
        try:
            async with client.pubsub() as pubsub:
                await pubsub.execute_command("SSUBSCRIBE", *channels)
                confirmed = 0
                while True:
                    message: Any = await pubsub.parse_response(block=True, timeout=_QUIET_S)
                    if message is None:
                        await pubsub.ping()
                    elif message[0] in ("ssubscribe", b"ssubscribe"):
                        confirmed += 1
                        if confirmed == len(channels):
                            if ready.is_set():
                                self._resync()
                            ready.set()
                    elif message[0] in ("smessage", b"smessage"):
                        self._hand_out(message[2])
        finally:
            await client.aclose()

    async def _client(self, channel: str) -> Any:
        if not self._cluster:
            return connect(self._url, cluster=False)
        cluster: RedisCluster = connect(self._url, cluster=True)
        await cluster.initialize()
        node: Any = cluster.get_node_from_key(channel)
        options = {
            k: v for k, v in cluster.connection_kwargs.items() if k in ("username", "password", "ssl")
        }
        await cluster.aclose()
        return Redis(host=node.host, port=int(node.port), decode_responses=True, **options)

    def _hand_out(self, payload: str | bytes) -> None:
        try:
            for addresses, frame in orjson.loads(payload):
                self._deliver(addresses, frame)
        except (ValueError, TypeError, LookupError, AttributeError):
            log.warning("push message is not understood", size=len(payload))


async def publish(pipeline: Pipeline, zone: str, messages: list[Any]) -> None:
    """Sends a list of [addresses, frame] to every server."""
    await pipeline.command("SPUBLISH", keys_of(zone).push, orjson.dumps(messages))
