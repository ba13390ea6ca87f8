"""Where channels live: on one node, or in a cluster on the nodes of their slots."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

from dispatcher.live.address import Kind, parse_address
from dispatcher.live.client import connect
from dispatcher.live.topology import Node, Topology


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


def channel_nodes(url: str) -> ChannelNodes:
    """The nodes of what a URL leads to. Raises ValueError."""
    address = parse_address(url)
    return _ClusterNodes(Topology(address)) if address.kind is Kind.CLUSTER else _OneNode(url)


class _OneNode:
    """Every channel lives on the one node that the URL leads to."""

    def __init__(self, url: str) -> None:
        self._url = url

    def owner(self, channel: str) -> Hashable:
        return ""

    def connect(self, node: Hashable) -> Any:
        return connect(self._url)

    async def look_again(self) -> None:
        pass

    async def close(self) -> None:
        pass


class _ClusterNodes:
    """A channel lives where the slot of its hash tag does."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def owner(self, channel: str) -> Hashable:
        return self._topology.owner(channel)

    def connect(self, node: Hashable) -> Any:
        if not isinstance(node, Node):
            raise ConnectionError("no node has the slot")
        return self._topology.connect(node)

    async def look_again(self) -> None:
        await self._topology.refresh()

    async def close(self) -> None:
        await self._topology.close()
