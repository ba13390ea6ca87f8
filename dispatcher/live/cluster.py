"""Calls to a cluster: a pipeline a node, so that one that is away or hangs delays its own calls only."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import hiredis
import structlog
from redis.exceptions import RedisError

from dispatcher.core.errors import CorruptState, ReplyLost, StoreUnavailable
from dispatcher.core.stragglers import gather_soon
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.protocol import REPLY_TIMEOUT_S, Call
from dispatcher.live.scripts import LuaScripts
from dispatcher.live.topology import Node, Topology

log = structlog.get_logger("dispatcher.cluster")

#: What is asked of a node itself, whatever it holds.
_KEYLESS: Final = ("ASKING", "INFO", "SCAN")
#: A node without an address of its own is where it was asked.
_REDIRECTION: Final = re.compile(
    r"(?P<word>MOVED|ASK) (?P<slot>\d{1,5}) (?P<host>\S*):(?P<port>\d{1,5})"
)
#: What a node says that has, or is, a successor; one that is full has none.
_FAILING_OVER: Final = ("CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY")
#: Nodes that disagree about a slot send a call to each other; a failover settles that.
_MAX_REDIRECTS: Final = 5
#: How long a start waits for the scripts of all nodes, once one has them.
_LOAD_S: Final = 1.0
#: A node that is silent this long may have a successor already. Its calls may still be answered.
_SILENT_S: Final = 0.5


class ClusterPipeline(Pipeline):
    """The pipeline of a whole cluster: each call goes to the node that holds its key."""

    def __init__(
        self,
        topology: Topology,
        scripts: LuaScripts | None = None,
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
        breaks: bool = False,
    ) -> None:
        self._topology = topology
        self._lanes: dict[Node, _Lane] = {}
        super().__init__(None, scripts)
        self._timeout_s, self._breaks = timeout_s, breaks  # each node breaks alone
        self._left_alone = 0  # of nodes that have gone
        self._watch: asyncio.TimerHandle | None = None
        topology.on_change = self._assign

    @property
    def epochs(self) -> Sequence[str]:
        """Epochs of the zones, each checked on the connections to its own node."""
        return self._epochs

    @epochs.setter
    def epochs(self, epochs: Sequence[str]) -> None:
        self._epochs = tuple(epochs)
        self._assign()

    def put(self, call: Call) -> None:
        node = self._topology.owner(call.key)
        if node is None:
            self._topology.suspect()
            if not call.reply.done():
                call.reply.set_exception(StoreUnavailable("CLUSTERDOWN no node has the slot"))
            return
        self._lane(node).put(call)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(_SILENT_S, self._look)

    def flush(self) -> None:
        for lane in list(self._lanes.values()):
            lane.flush()

    def queue(self) -> int:
        return sum(lane.queue() for lane in self._lanes.values())

    async def run_id(self, key: str) -> str:
        return await self._lane_of(key).run_id(key)

    async def scan(self, key: str, prefix: str) -> AsyncIterator[list[str]]:
        async for found in self._lane_of(key).scan(key, prefix):
            yield found

    async def load_scripts(self) -> None:
        """Makes every script known to every primary that answers. Raises where none does."""
        loads = [self._lane(node).load_scripts() for node in self._topology.primaries()]
        # Whoever lacks a script is given it later, so that one that hangs is not waited for.
        ends = await gather_soon(loads, rest_s=_LOAD_S)
        errors = [end for end in ends if end is not None]
        for error in errors:
            if not isinstance(error, (RedisError, OSError, TimeoutError)) or len(errors) == len(ends):
                raise error
            log.warning("scripts not loaded into a node", error=str(error))

    def times_left_alone(self) -> int:
        return self._left_alone + sum(lane.times_left_alone() for lane in self._lanes.values())

    def is_left_alone(self, key: str) -> bool:
        is_left_alone = self._breaks
        if self._topology.owner(key) is not None:
            is_left_alone = self._lane_of(key).is_left_alone(key)
        if is_left_alone:
            # Nobody calls a node that is left alone, so that no call would tell of its successor.
            self._topology.suspect()
        return is_left_alone

    async def is_away(self, key: str) -> bool:
        if self._topology.owner(key) is None:
            return self.is_left_alone(key)
        return await self._lane_of(key).is_away(key)

    def node_of(self, key: str) -> Node | None:
        """The node that is asked about `key`."""
        return self._topology.owner(key)

    def redirect(self, lane: _Lane, call: Call, error: Exception) -> bool:
        """Whether a call that failed has been sent to another node."""
        named = _REDIRECTION.fullmatch(str(error))
        if named is not None:
            node = Node(named["host"] or lane.node.host, int(named["port"]))
            is_moved = named["word"] == "MOVED"
            if is_moved:
                self._topology.move(int(named["slot"]), node)
            if call.redirects < _MAX_REDIRECTS:
                again = call._replace(redirects=call.redirects + 1)
                (self._lane(node).put if is_moved else self._lane(node).ask)(again)
                return True
        if isinstance(error, (StoreUnavailable, ReplyLost)) or str(error).startswith(_FAILING_OVER):
            self._topology.suspect()
        return False

    def _lane_of(self, key: str) -> _Lane:
        node = self._topology.owner(key)
        if node is None:
            self._topology.suspect()
            raise StoreUnavailable("CLUSTERDOWN no node has the slot")
        return self._lane(node)

    def _lane(self, node: Node) -> _Lane:
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = _Lane(
                self, node, self._topology.connect(node), self._scripts,
                timeout_s=self._timeout_s, breaks=self._breaks,
            )  # fmt: skip
            lane.epochs = [epoch for epoch in self._epochs if self._topology.owner(epoch) == node]
        return lane

    def _assign(self) -> None:
        """Slots may have other owners: what waits for a former one goes to the new one."""
        primaries = self._topology.primaries()
        moved: list[Call] = []
        for node, lane in list(self._lanes.items()):
            moved += lane.take_moved()
            if node in primaries:
                lane.gain([epoch for epoch in self._epochs if self._topology.owner(epoch) == node])
            else:
                del self._lanes[node]
                self._left_alone += lane.times_left_alone()
                self._spawn(lane.leave(), batches=0)
        for call in moved:
            self.put(call)

    def _look(self) -> None:
        """Asks whether a node that is silent has a successor, as long as calls are on their way."""
        self._watch = None
        loop = asyncio.get_running_loop()
        if any(lane.silent_s > _SILENT_S for lane in self._lanes.values()):
            self._topology.suspect()
        if any(lane.is_busy for lane in self._lanes.values()):
            self._watch = loop.call_later(_SILENT_S, self._look)

    async def close(self) -> None:
        """Waits for what is on its way, then lets go of all connections."""
        while any(lane.is_busy for lane in self._lanes.values()):
            await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))
        if self._watch is not None:
            self._watch.cancel()
        self._topology.on_change = lambda: None
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        await super().close()


class _Lane(Pipeline):
    """The pipeline of one node."""

    def __init__(
        self,
        cluster: ClusterPipeline,
        node: Node,
        redis: Any,
        scripts: LuaScripts,
        **breaking: Any,
    ) -> None:
        super().__init__(redis, scripts, **breaking)
        self.node = node
        self._cluster = cluster
        self._opening_since: float | None = None

    @property
    def is_busy(self) -> bool:
        """Whether anything waits, or is on its way."""
        return bool(self._waiting or self._in_flight or self._tasks)

    @property
    def silent_s(self) -> float:
        """How long the node has not answered what it was asked."""
        since = self._opening_since
        if since is None and self._connection is not None:
            since = self._connection.silent_since
        return 0.0 if since is None else asyncio.get_running_loop().time() - since

    def ask(self, call: Call) -> None:
        """Sends a call about a slot that is on its way to this node."""
        self.put(_unheard("ASKING"))
        self.put(call)

    def gain(self, epochs: Sequence[str]) -> None:
        """Zones that come to this node are checked before anything else is asked about them."""
        gained = set(epochs).difference(self.epochs)
        self.epochs = epochs
        if not gained or self._connection is None or not self._connection.is_open:
            return  # they are checked on the next connection
        if not self._run_id:
            self._connection.retire()
            return
        script = self._scripts.texts["mark_cold"]
        for epoch in gained:
            check = _unheard("EVAL", script, 1, epoch, self._run_id)
            self.put(check._replace(redirects=_MAX_REDIRECTS))

    def take_moved(self) -> list[Call]:
        """Takes back what has not been sent, and belongs to another node now."""
        moved: list[Call] = []
        stays: list[Call] = []
        for call in self._waiting:
            is_here = call.command[0] in _KEYLESS or self._cluster.node_of(call.key) == self.node
            (stays if is_here else moved).append(call)
        self._waiting = stays
        return moved

    async def leave(self) -> None:
        """The node has no slots any more. What it has taken it may still answer, unless it hangs."""
        if self._connection is not None and self.silent_s > _SILENT_S:
            self._connection.transport.abort()
        await self.close()

    async def close(self) -> None:
        await super().close()
        await self._redis.aclose()

    async def _open(self) -> None:
        self._opening_since = asyncio.get_running_loop().time()
        try:
            await super()._open()
        finally:
            self._opening_since = None

    def _answer(self, call: Call, reply: Any) -> None:
        if isinstance(reply, Exception) and self._cluster.redirect(self, call, reply):
            return
        super()._answer(call, reply)

    def corrupt(self, names: Sequence[str], reason: Exception | str) -> CorruptState:
        return self._cluster.corrupt(names, reason)


def _unheard(*command: Any) -> Call:
    """A call whose end nobody waits for."""
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    reply.add_done_callback(lambda done: done.cancelled() or done.exception())
    return Call(command, reply, hiredis.pack_command(command))
