"""Serving a rival: aiohttp on uvloop, as the dispatcher does it, and the line `ready {json}`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import uvloop
from aiohttp import web


def options(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    return parser


def serve(build: Callable[[], Awaitable[web.Application]], host: str, port: int, **about: str) -> None:
    """Serve until SIGTERM. `about` joins the URL in the line that says ready."""

    async def main() -> None:
        runner = web.AppRunner(await build(), access_log=None, handler_cancellation=False)
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        bound = runner.addresses[0][1]
        print("ready", json.dumps({"url": f"http://{host}:{bound}", **about}), flush=True)
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await stop.wait()
        await runner.cleanup()

    uvloop.run(main())
