"""A worker whose event loop stands still is replaced; one that is only busy or starting is not."""

from __future__ import annotations

import asyncio
import urllib.request

import psutil

from tests.harness.servers import Serve, workers_of


def _answer(url: str) -> int:
    with urllib.request.urlopen(f"{url}/healthz", timeout=5) as response:
        return int(response.status)


async def test_a_stopped_worker_is_replaced(serve: Serve) -> None:
    server = await serve("--workers", "2", env={"DISPATCHER_WORKER_TIMEOUT_S": "2"})
    victim, other = workers_of(server)
    victim.suspend()
    async with asyncio.timeout(20):
        while victim in (workers := workers_of(server)) or len(workers) < 2:
            await asyncio.sleep(0.05)
        # The port is taken over too: no connection waits for the one that is gone.
        while not any("serving" in line for line in server.log_lines()[-1:]):
            await asyncio.sleep(0.05)
    assert other in workers, "the neighbour works on"
    lines = [line for line in server.log_lines() if "Worker is silent and is killed" in line]
    assert len(lines) == 1
    for _ in range(10):
        assert await asyncio.to_thread(_answer, server.url) == 200


async def test_a_supervisor_that_slept_kills_nobody(serve: Serve) -> None:
    """Where the machine stood still, so did everybody's beat."""
    server = await serve("--workers", "2", env={"DISPATCHER_WORKER_TIMEOUT_S": "2"})
    workers = workers_of(server)
    everyone = [psutil.Process(server.process.pid), *workers]
    for process in everyone:
        process.suspend()
    await asyncio.sleep(3.0)  # longer than a silence is allowed; nothing can be awaited of the sleeping
    for process in everyone:
        process.resume()
    for _ in range(10):
        assert await asyncio.to_thread(_answer, server.url) == 200
    assert workers_of(server) == workers
    assert not any("silent" in line for line in server.log_lines())
