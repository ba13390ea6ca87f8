"""Where channels live: on one node, or in a cluster on the nodes of their slots."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisClusterException

from dispatcher.live.client import connect


class ChannelNodes(Protocol):
    """The nodes that channels live on."""

    def owner(self, channel: str) -> Hashable:
        """The node of a channel, as far as is known."""

    def connect(self, node: Hashable) -> Any:
        """A client of a node, which the caller closes."""

    async def look_again(self) -> None:
        """A connection was lost: channels may live elsewhere by now."""

    async def close(self) -> None:
        """Lets go of all connections."""


class OneNode:
    """Every channel lives on the one node that the URL leads to."""

    def __init__(self, url: str) -> None:
        self._url = url

    def owner(self, channel: str) -> Hashable:
        return ""

    def connect(self, node: Hashable) -> Any:
        return connect(self._url, cluster=False)

    async def look_again(self) -> None:
        pass

    async def close(self) -> None:
        pass


class ClusterNodes:
    """A channel lives where the slot of its hash tag does."""

    def __init__(self, url: str) -> None:
        self._cluster: RedisCluster = connect(url, cluster=True)

    def owner(self, channel: str) -> Hashable:
        try:
            node: Any = self._cluster.get_node_from_key(channel)
        except RedisClusterException:
            return None  # nobody has the slot, or nothing is known yet: the link finds out
        return None if node is None else (node.host, int(node.port))

    def connect(self, node: Hashable) -> Any:
        if not isinstance(node, tuple):
            raise ConnectionError("no node has the slot")
        kept = ("username", "password", "ssl")
        options = {k: v for k, v in self._cluster.connection_kwargs.items() if k in kept}
        host, port = node
        return Redis(host=host, port=port, decode_responses=True, protocol=2, **options)

    async def look_again(self) -> None:
        await self._cluster.initialize()
        await self._cluster.nodes_manager.initialize()

    async def close(self) -> None:
        await self._cluster.aclose()
