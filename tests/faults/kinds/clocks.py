"""A clock that jumps: that of Redis, by which everything in it is timed, or that of a server."""

from __future__ import annotations

import asyncio
from random import Random

from tests.faults.clock import LOOKS_EVERY_S
from tests.faults.stage import Stage


async def leap(stage: Stage, random: Random) -> None:
    """The wall clock of Redis or of a server leaps ahead or back, and is set right again after a while."""
    clock = random.choice([stage.redis_clock, *stage.server_clocks])
    clock.leap(random.choice([-20.0, -3.0, 1.5, 20.0]))
    try:
        await asyncio.sleep(LOOKS_EVERY_S + random.uniform(0.5, 2.0))
    finally:
        clock.leap(0.0)
