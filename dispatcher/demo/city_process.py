"""The city in a process of its own, apart from the server that it talks to.

Its plan comes as the first line of standard input. Its states go to standard output, one JSON object a
line; the last one has an `outcome`. A second line of input, or the end of input, asks the city to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any, Final

import aiohttp
import orjson

from dispatcher.demo.city import City
from dispatcher.demo.city_plan import CityPlan

_REPORT_S: Final = 0.5
#: The plan is one line with every pickup in it.
_PLAN_BYTES: Final = 1 << 26


async def main() -> None:
    """Reads the plan, runs its city, and writes what happens."""
    stdin = asyncio.StreamReader(limit=_PLAN_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    plan = CityPlan.decode(await stdin.readline())
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        city = City(plan, session)
        watcher = asyncio.create_task(_watch_for_stop(city, stdin, plan.server_pid))
        reporter = asyncio.create_task(_report(city))
        reporter.add_done_callback(city.stats.keep_error)
        try:
            try:
                await city.run()
            finally:
                reporter.cancel()
                await city.close()
        finally:
            watcher.cancel()
        _write_line(city.state() | {"outcome": city.stats.outcome()})


async def _report(city: City) -> None:
    while True:
        city.mark_reachable()
        _write_line(city.state())
        await asyncio.sleep(_REPORT_S)


async def _watch_for_stop(city: City, stdin: asyncio.StreamReader, server_pid: int) -> None:
    """Stops the city at the next line of input.

    The end of input means that the parent was killed: then this process ends, and the server too.
    """
    if not await stdin.readline():
        with contextlib.suppress(ProcessLookupError):
            os.kill(server_pid, signal.SIGTERM)
        os._exit(1)
    city.stopping.set()


def _write_line(state: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(state) + b"\n")
    sys.stdout.buffer.flush()
