"""A cluster's calls, in one queue a node: a node that is away or hangs keeps its own calls waiting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from redis.exceptions import RedisClusterException

from dispatcher.live.protocol import Call

# A script's first key stands behind its digest and the number of its keys; any other command's is first.
_SCRIPTS = ("EVALSHA", "EVAL")


class NodeQueues:
    """Sends each node of a cluster its own batches, a few at a time."""

    def __init__(
        self,
        redis: Any,
        send: Callable[[list[Call]], Coroutine[Any, Any, None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        *,
        max_batch: int,
        max_in_flight: int,
    ) -> None:
        self._redis = redis
        self._send = send
        self._spawn = spawn
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._waiting: dict[str, list[Call]] = defaultdict(list)
        self._in_flight: dict[str, int] = defaultdict(int)

    def put(self, calls: Sequence[Call]) -> None:
        """Has calls sent as soon as their nodes take them, in their order."""
        for call in calls:
            self._waiting[self._node_of(call)].append(call)
        for node in list(self._waiting):
            self._flush(node)

    def _node_of(self, call: Call) -> str:
        command = call.command
        return self.node_of(command[3 if command[0] in _SCRIPTS else 1])

    def node_of(self, key: str) -> str:
        """The name of the node that has a key's slot, or empty."""
        try:
            return str(self._redis.get_node_from_key(key).name)
        except RedisClusterException:
            return ""  # nobody has the slot yet: the client finds out when it sends

    def _flush(self, node: str) -> None:
        waiting = self._waiting[node]
        while waiting and self._in_flight[node] < self._max_in_flight:
            batch, waiting[: self._max_batch] = waiting[: self._max_batch], []
            self._in_flight[node] += 1
            self._spawn(self._send_batch(node, batch))
        if not waiting:
            del self._waiting[node]

    async def _send_batch(self, node: str, batch: list[Call]) -> None:
        try:
            await self._send(batch)
        finally:
            self._in_flight[node] -= 1
            if node in self._waiting:
                self._flush(node)
            elif not self._in_flight[node]:
                del self._in_flight[node]
