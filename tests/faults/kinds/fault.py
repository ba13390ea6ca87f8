"""What a fault is, and how processes are made to stand still."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from random import Random

from tests.faults.stage import Stage

Fault = Callable[[Stage, Random], Awaitable[None]]


async def pause(pids: list[int], pause_s: float) -> None:
    """Has processes stand still, and go on as if nothing had been."""
    try:
        _send(pids, signal.SIGSTOP)
        await asyncio.sleep(pause_s)
    finally:
        _send(pids, signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # a session of Postgres may have ended
            os.kill(pid, number)
