"""Servers that die, at once or at a point of the road, and servers that stand still."""

from __future__ import annotations

import asyncio
from random import Random

from tests.faults.kinds.fault import Fault, pause
from tests.faults.stage import Stage

#: Where a change can be halted, in the order of the road.
POINTS = ("after_claim", "before_commit", "after_commit", "before_settle", "after_settle")


async def kill_server(stage: Stage, random: Random) -> None:
    """A server dies at once and comes back."""
    await stage.restart_server(random.randrange(2))


async def pause_server(stage: Stage, random: Random) -> None:
    """A server stands still, longer than a claim's lease or shorter, and goes on as if nothing had been."""
    await pause([stage.servers[random.randrange(2)].process.pid], random.uniform(0.2, 2.5))


async def die_together(stage: Stage, random: Random) -> None:
    """Both servers lose Redis and die with what they were about to tell it; it comes back without that."""
    stage.proxy.cut()
    await asyncio.sleep(random.uniform(0.02, 0.2))  # what was claimed is committed meanwhile
    stage.kill_servers()
    if random.random() < 0.5:
        await stage.restart_empty()
    else:
        await stage.fail_over(0)
    await asyncio.gather(stage.restart_server(0), stage.restart_server(1))


def _kill_at(point: str) -> Fault:
    async def kill(stage: Stage, random: Random) -> None:
        place = random.randrange(2)
        await stage.restart_server(place, halt_at=point)
        await stage.wait_until_halted(place, within_s=3.0)
        await stage.restart_server(place)

    kill.__name__ = f"kill_{point}"
    kill.__doc__ = (
        f"A server whose changes have all come to `{point}`, and no further, dies and comes back."
    )
    return kill


KILLED_ON_THE_ROAD = tuple(_kill_at(point) for point in POINTS)
