"""Which node of a cluster holds which slot. Looked at anew once a call says that it may have changed.

redis-py's cluster client is not used for that: it asks one node after the other, one that hangs as well,
while every call to every node waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import structlog
from redis.cluster import parse_cluster_slots
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.address import RedisAddress
from dispatcher.live.client import connect_to

log = structlog.get_logger("dispatcher.cluster")

#: How long a look waits for all nodes once one has answered, and for the first answer.
_ALL_S: Final = 0.4
_ANY_S: Final = 2.0
#: Between two looks, at first and at most: every lost call asks for one, and a failover takes longer.
_REST_S: Final = 0.2
_MAX_REST_S: Final = 1.0
#: Nodes asked at one look, drawn by lot: each knows all the others.
_MAX_ASKED: Final = 12


class Node(NamedTuple):
    """Where a node is reached."""

    host: str
    port: int


class _View(NamedTuple):
    """The cluster as one node sees it: the newest configuration it has heard of, and who has what."""

    epoch: int
    is_ok: bool
    owners: list[Node | None]
    nodes: list[Node]


class Topology:
    """The owners of the slots."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._seeds = [Node(*host) for host in address.hosts]
        self._known = list(self._seeds)
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._clients: dict[Node, Any] = {}
        self._look: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rested_at = 0.0
        self._rest_s = _REST_S
        self._is_closed = False
        #: Called after each look and each move, once slots have other owners.
        self.on_change: Callable[[], None] = lambda: None

    def owner(self, key: str) -> Node | None:
        """The primary that holds the slot of `key`; None where nobody does."""
        return self._owners[key_slot(key.encode())]

    def primaries(self) -> set[Node]:
        """All that hold slots."""
        return {node for node in self._owners if node is not None}

    def connect(self, node: Node) -> Any:
        """A client of the node, which the caller closes."""
        return connect_to(self._address, node)

    def move(self, slot: int, node: Node) -> None:
        """A node has said that another one has the slot."""
        if self._owners[slot] != node:
            self._owners[slot] = node
            self.on_change()
        self.suspect()

    def suspect(self) -> None:
        """Something may have changed: looks anew, now or after a short rest, without waiting."""
        if not self._is_closed and self._timer is None and (self._look is None or self._look.done()):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._rested_at), self._begin)

    async def refresh(self) -> None:
        """Looks anew, and returns once that is done. Raises StoreUnavailable where no node answers."""
        look = self._look
        if look is None or look.done():
            look = self._begin()
        await asyncio.shield(look)

    def _begin(self) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._look = asyncio.create_task(self._ask_all(), name="topology")
        self._look.add_done_callback(self._looked)
        return self._look

    def _looked(self, look: asyncio.Task[None]) -> None:
        self._rested_at = asyncio.get_running_loop().time() + self._rest_s
        self._rest_s = min(2 * self._rest_s, _MAX_REST_S)
        if not look.cancelled() and look.exception():
            log.warning("no node of the cluster answers", reason=str(look.exception()))

    async def _ask_all(self) -> None:
        nodes = list(dict.fromkeys([*self._known, *self._seeds]))
        nodes = random.sample(nodes, min(len(nodes), _MAX_ASKED))
        asked = [asyncio.create_task(self._ask(node)) for node in nodes]
        try:
            # Whoever hangs is not waited for.
            _, pending = await asyncio.wait(asked, timeout=_ALL_S)
            first_by = asyncio.get_running_loop().time() + _ANY_S - _ALL_S
            while pending and not any(_has_answered(task) for task in asked):
                left_s = first_by - asyncio.get_running_loop().time()
                done, pending = await asyncio.wait(
                    pending, timeout=max(left_s, 0), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
        finally:
            for task in asked:
                task.cancel()
            ends = await asyncio.gather(*asked, return_exceptions=True)
        views = [end for end in ends if isinstance(end, _View)]
        if not views:
            raise StoreUnavailable(f"no node of the cluster answers: {_reason(ends)}")
        await self._take(max(views, key=lambda view: (view.epoch, view.is_ok)))

    async def _ask(self, node: Node) -> _View:
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = self.connect(node)
        info: Any = await client.execute_command("CLUSTER INFO")
        ranges = parse_cluster_slots(
            await client.execute_command("CLUSTER SLOTS"), current_host=node.host
        )
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        nodes: dict[Node, None] = {}
        for (first, last), served in ranges.items():
            primary = Node(*served["primary"])
            owners[first : last + 1] = [primary] * (last + 1 - first)
            nodes |= dict.fromkeys((primary, *(Node(*replica) for replica in served["replicas"])))
        epoch = int(info["cluster_current_epoch"])
        return _View(epoch, info["cluster_state"] == "ok", owners, list(nodes))

    async def _take(self, view: _View) -> None:
        self._known = view.nodes or self._known
        if view.owners != self._owners:
            self._owners = view.owners
            self._rest_s = _REST_S / 2  # it may go on; doubled at the end of this look
            log.info("slots of the cluster", primaries=len(self.primaries()), epoch=view.epoch)
            self.on_change()
        gone = self._clients.keys() - set(self._known) - set(self._seeds)
        for client in [self._clients.pop(node) for node in gone]:
            await client.aclose()

    async def close(self) -> None:
        """Ends a look, and closes the clients."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()


def _has_answered(task: asyncio.Task[_View]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _reason(ends: list[Any]) -> str:
    """Why the nodes did not answer: the first reason that is one."""
    errors = [end for end in ends if isinstance(end, (RedisError, OSError, ValueError))]
    return str(errors[0]) if errors else "none in time"
