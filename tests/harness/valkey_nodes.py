"""Real nodes of Valkey from the embedded program: one alone, a cluster with replicas, Sentinels."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import RedisError

from dispatcher.embedded.packages import valkey_program
from dispatcher.live.keys import keys_of

SLOTS = 16_384
#: Long enough that a busy machine is not taken for a dead node; tests of a failover make it shorter.
_NODE_TIMEOUT_MS = 60_000
_READY_S = 30.0
#: A replica gets its primary's data without a rest in which others might ask for it as well.
_AT_ONCE = ("--repl-diskless-sync-delay", "0")


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class ValkeyNode:
    """A process of the embedded program, with a directory of its own."""

    def __init__(self, directory: Path, port: int, *settings: str, config: Path | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.port = port
        # A Sentinel has all its settings in a file, which it rewrites.
        how = (
            [str(config), "--sentinel"]
            if config
            else ["--port", str(port), "--save", "", *_AT_ONCE, *settings]
        )
        self._command = [str(valkey_program()), *how, "--dir", str(directory), "--bind", "127.0.0.1"]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def ask(self, *command: Any) -> Any:
        """What the node answers to one command."""
        client = redis.asyncio.Redis(port=self.port, decode_responses=True, protocol=2)
        async with client, asyncio.timeout(_READY_S):
            return await client.execute_command(*command)

    async def until(self, text: str, *command: Any) -> str:
        """Waits until what it answers to a command has this text."""
        async with asyncio.timeout(_READY_S):
            while True:
                with contextlib.suppress(RedisError, OSError):
                    answer = await self.ask(*command)
                    told = (
                        "\n".join(f"{k}:{v}" for k, v in answer.items())
                        if isinstance(answer, dict)
                        else str(answer)
                    )
                    if text in told:
                        return told
                await asyncio.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT; SIGKILL leaves a port that refuses."""
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait(10)

    def restart(self) -> None:
        """Starts it again after a SIGKILL, without its data."""
        self.process = self._start()

    def end(self) -> None:
        """Ends it, frozen or not."""
        self.process.kill()
        self.process.wait(10)


class ValkeyCluster:
    """Primaries with a third of the slots each, and a replica for each; `of_slot` and `of_zone` name one."""

    def __init__(self, directory: Path, *, primaries: int = 3, replicas: bool = True) -> None:
        number = primaries * (2 if replicas else 1)
        ports = free_ports(2 * number)
        self._ids = [secrets.token_hex(20) for _ in range(number)]
        shards = [secrets.token_hex(20) for _ in range(primaries)]
        bounds = [SLOTS * i // primaries for i in range(primaries + 1)]
        self.nodes: list[ValkeyNode] = []
        for own in range(number):
            place = directory / str(own)
            place.mkdir()
            lines = []
            for i in range(number):
                shard = i % primaries
                role, of = ("slave", self._ids[shard]) if i >= primaries else ("master", "-")
                flags = f"myself,{role}" if i == own else role
                slots = "" if i >= primaries else f" {bounds[shard]}-{bounds[shard + 1] - 1}"
                lines.append(
                    f"{self._ids[i]} 127.0.0.1:{ports[i]}@{ports[number + i]},,tls-port=0,"
                    f"shard-id={shards[shard]} {flags} {of} 0 0 {shard + 1} connected{slots}"
                )
            # As if the nodes had met before: they come up as a cluster at once.
            (place / "nodes.conf").write_text(
                "\n".join([*lines, f"vars currentEpoch {primaries} lastVoteEpoch 0", ""])
            )
            self.nodes.append(
                ValkeyNode(
                    place,
                    ports[own],
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    str(ports[number + own]),
                    "--cluster-require-full-coverage",
                    "no",
                    "--cluster-node-timeout",
                    str(_NODE_TIMEOUT_MS),
                    "--cluster-replica-validity-factor",
                    "0",
                    "--maxmemory-policy",
                    "noeviction",
                )
            )
        self._primaries = primaries

    @property
    def url(self) -> str:
        """All nodes, as a setting names them."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def id_of(self, node: ValkeyNode) -> str:
        return self._ids[self.nodes.index(node)]

    async def ready(self) -> None:
        """Waits until every slot is served, and every replica has its primary's data."""
        for node in self.nodes:
            await node.until("cluster_state:ok", "CLUSTER", "INFO")
            if "slave" in await node.ask("ROLE"):
                await node.until("master_link_status:up", "INFO", "replication")

    async def primary_of(self, zone: str) -> ValkeyNode:
        """The node that holds a zone, as the first one that lives sees it."""
        for node in self.nodes:
            if node.process.poll() is None:
                return await self.owner_by(node, zone)
        raise AssertionError(zone)

    async def owner_by(self, witness: ValkeyNode, zone: str) -> ValkeyNode:
        """The node that holds a zone, as another node sees it."""
        slot = slot_of(zone)
        for first, last, served, *_ in await witness.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == served[1])
        raise AssertionError(zone)

    async def replica_of(self, primary: ValkeyNode) -> ValkeyNode:
        """A replica of a primary."""
        for node in self.nodes:
            if node is not primary and node.process.poll() is None:
                role = await node.ask("ROLE")
                if role[0] == "slave" and role[2] == primary.port:
                    return node
        raise AssertionError(primary.port)

    async def take_over(self, primary: ValkeyNode) -> ValkeyNode:
        """Has a replica of a primary, dead or alive, take its place at once; returns the successor."""
        successor = await self.replica_of(primary)
        await successor.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        for node in self.nodes:
            if node is not primary and node.process.poll() is None:
                while not await self._is_master_by(node, successor):
                    await asyncio.sleep(0.01)
        return successor

    async def primaries(self) -> list[ValkeyNode]:
        """Those that live."""
        living = [node for node in self.nodes if node.process.poll() is None]
        return [node for node in living if (await node.ask("ROLE"))[0] == "master"]

    async def begin_move(self, zone: str, source: ValkeyNode, target: ValkeyNode) -> None:
        """From now on new keys of a zone are made at the target; the others stay for now."""
        slot = slot_of(zone)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    async def end_move(self, zone: str, source: ValkeyNode, target: ValkeyNode) -> None:
        """Moves the keys, and tells everybody who has the slot now."""
        slot = slot_of(zone)
        keys = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1_000)
        if keys:
            await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        for node in (target, source, *await self.primaries()):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    async def drop_slot(self, zone: str) -> None:
        """Nobody has a zone any more."""
        for node in self.nodes:
            await node.ask("CLUSTER", "DELSLOTS", slot_of(zone))

    async def give_slot(self, zone: str, owner: ValkeyNode) -> None:
        """A zone that nobody had is this node's."""
        await owner.ask("CLUSTER", "ADDSLOTS", slot_of(zone))

    async def _is_master_by(self, witness: ValkeyNode, node: ValkeyNode) -> bool:
        """Whether a node is a primary, as another one sees it."""
        lines = str(await witness.ask("CLUSTER", "NODES")).splitlines()
        (flags,) = (line.split()[2] for line in lines if line.startswith(self.id_of(node)))
        return "master" in flags

    async def clear(self) -> None:
        """Empties the primaries."""
        for node in self.nodes:
            if (await node.ask("ROLE"))[0] == "master":
                await node.ask("FLUSHALL")

    async def heal(self) -> None:
        """Brings back whoever was frozen or killed, and waits until all is whole."""
        for node in self.nodes:
            if node.process.poll() is not None:
                node.restart()
            node.process.send_signal(signal.SIGCONT)
        await self.ready()
        # One that comes back follows whoever has the last slot it had, which a test may have moved.
        primaries = await self.primaries()
        follows = {node: await node.ask("ROLE") for node in self.nodes if node not in primaries}
        spare = [node for node, role in follows.items() if self._is_second(node, role, follows)]
        for primary in primaries:
            if primary.port not in {role[2] for role in follows.values()}:
                await spare.pop().ask("CLUSTER", "REPLICATE", self.id_of(primary))
                await self.ready()

    @staticmethod
    def _is_second(node: ValkeyNode, role: Any, follows: dict[ValkeyNode, Any]) -> bool:
        """Whether a replica is not the first one of its primary."""
        return next(other for other, its in follows.items() if its[2] == role[2]) is not node

    def end(self) -> None:
        for node in self.nodes:
            node.end()


def slot_of(zone: str) -> int:
    """The slot of all keys of a zone."""
    return int(key_slot(keys_of(zone).epoch.encode()))


def zones_on_each_node(primaries: int = 3) -> list[list[str]]:
    """Names of zones by the primary that has them at first, a few for each."""
    found: list[list[str]] = [[] for _ in range(primaries)]
    number = 0
    while min(map(len, found)) < 3:
        name = f"z{number}"
        shard = slot_of(name) * primaries // SLOTS
        found[shard].append(name)
        number += 1
    return found


class SentinelGroup:
    """A primary with a replica, and a Sentinel that knows the primary as `dispatch`."""

    master = "dispatch"

    def __init__(self, primary: ValkeyNode, replica: ValkeyNode, sentinel: ValkeyNode) -> None:
        self.primary, self.replica, self.sentinel = primary, replica, sentinel

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, directory: Path, *settings: str) -> AsyncIterator[SentinelGroup]:
        """A group that is ready: the replica has its primary's data, and the Sentinel knows both."""
        ports = free_ports(3)
        with contextlib.ExitStack() as stack:
            primary = ValkeyNode(directory / "primary", ports[0], *settings)
            stack.callback(primary.end)
            follow = ("--replicaof", f"127.0.0.1 {ports[0]}")
            replica = ValkeyNode(directory / "replica", ports[1], *settings, *follow)
            stack.callback(replica.end)
            await replica.until("master_link_status:up", "INFO", "replication")
            # Only now: a Sentinel that finds no replica looks again after ten seconds.
            config = directory / "sentinel.conf"
            config.write_text(
                f"port {ports[2]}\n"
                f"sentinel monitor {cls.master} 127.0.0.1 {ports[0]} 1\n"
                f"sentinel down-after-milliseconds {cls.master} 300\n"
                f"sentinel failover-timeout {cls.master} 3000\n"
            )
            sentinel = ValkeyNode(directory / "sentinel", ports[2], config=config)
            stack.callback(sentinel.end)
            await sentinel.until(str(ports[1]), "SENTINEL", "REPLICAS", cls.master)
            yield cls(primary, replica, sentinel)

    def url(self, *others: int, database: int = 0) -> str:
        """The Sentinel, and others that may not be there."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (*others, self.sentinel.port))
        return f"redis+sentinel://{hosts}/{self.master}/{database}"
