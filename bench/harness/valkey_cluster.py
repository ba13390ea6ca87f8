"""A cluster of real nodes, started and broken from a script that has no event loop."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
#: What a cluster is set to where a failover within seconds is wanted; the engines' default is 15 s.
NODE_TIMEOUT_MS = 2_000
LOOK_S = 0.01
GIVE_UP_S = 60.0


class Cluster:
    """The cluster of the tests: three primaries with a replica each."""

    def __init__(self, folder: Path) -> None:
        if str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))
        nodes = importlib.import_module("tests.harness.valkey_nodes")
        self.zones: list[str] = [zones[0] for zones in nodes.zones_on_each_node()]
        self._cluster: Any = nodes.ValkeyCluster(folder)
        self.url: str = self._cluster.url

    def __enter__(self) -> Cluster:
        self._run(self._cluster.ready())
        for node in self._cluster.nodes:
            self._run(node.ask("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT_MS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cluster.end()

    def break_primary(self, zone: str, fault: signal.Signals) -> tuple[Any, float]:
        """Kills or freezes the primary of a zone; it, and when that was done."""
        node = self._run(self._cluster.primary_of(zone))
        node.signal(fault)
        return node, time.perf_counter()

    def wait_for_successor(self, zone: str, former: Any) -> float:
        """When the other nodes named another primary for the zone."""
        witness = next(
            node for node in self._cluster.nodes
            if node is not former and node.process.poll() is None
        )  # fmt: skip

        async def look() -> float:
            give_up = time.perf_counter() + GIVE_UP_S
            while (now := time.perf_counter()) < give_up:
                if await self._cluster.owner_by(witness, zone) is not former:
                    return now
                await asyncio.sleep(LOOK_S)
            raise RuntimeError(f"no successor for the primary of {zone}")

        return float(self._run(look()))

    def heal(self) -> None:
        """Brings back whoever is dead or frozen."""
        self._run(self._cluster.heal())
        for node in self._cluster.nodes:
            self._run(node.ask("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT_MS))

    @staticmethod
    def _run(work: Any) -> Any:
        return asyncio.run(work)
