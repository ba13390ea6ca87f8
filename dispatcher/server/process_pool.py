"""The server processes of `dispatcher serve --workers N`, seen from the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable

import structlog

from dispatcher.config import ENV_PREFIX, Settings

_log = structlog.get_logger("dispatcher")

_BACKOFF_S = 0.5  # before a dead worker is replaced; doubled for each that dies young
_BACKOFF_MAX_S = 10.0
_YOUNG_S = 30.0  # a worker that lived longer than this was healthy
_STOP_MARGIN_S = 10.0  # on top of the drain window, before a worker is killed


class ServerError(Exception):
    """The server cannot run on; the message says why."""


async def run_workers(
    settings: Settings, port: int, on_ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Keep `settings.workers` processes running until `stop`.

    A worker that ends before all of them were ready once ends the server with ServerError.
    """
    environment = _worker_environment(settings, port)
    ready = [asyncio.Event() for _ in range(settings.workers)]
    grace_s = settings.drain_s + _STOP_MARGIN_S
    all_ready = asyncio.create_task(_when_all(ready, on_ready))
    workers = [
        asyncio.create_task(_keep_worker(number, environment, ready[number], stop, grace_s))
        for number in range(settings.workers)
    ]
    try:
        await asyncio.gather(*workers)
    finally:
        stop.set()
        all_ready.cancel()
        await asyncio.gather(*workers, all_ready, return_exceptions=True)


async def _when_all(ready: list[asyncio.Event], on_ready: Callable[[], None]) -> None:
    for event in ready:
        await event.wait()
    on_ready()


async def _keep_worker(
    number: int,
    environment: dict[str, str],
    ready: asyncio.Event,
    stop: asyncio.Event,
    grace_s: float,
) -> None:
    """Run one worker, and another when it dies, until `stop`."""
    loop = asyncio.get_running_loop()
    backoff_s = _BACKOFF_S
    while not stop.is_set():
        born = loop.time()
        status = await _run_worker(environment, ready, stop, grace_s)
        if stop.is_set():
            return
        if not ready.is_set():
            raise ServerError(f"worker {number} ended with status {status} before it was ready")
        if loop.time() - born > _YOUNG_S:
            backoff_s = _BACKOFF_S
        _log.error("Worker died", worker=number, status=status, restart_in_s=backoff_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), backoff_s)
        backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)


async def _run_worker(
    environment: dict[str, str], ready: asyncio.Event, stop: asyncio.Event, grace_s: float
) -> int:
    """One worker from start to end; its exit status, negative for a signal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatcher", "_worker"),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the supervisor, which then stops them
    )
    told = asyncio.create_task(_watch_ready(process, ready))
    stopping = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
            await asyncio.wait((ended,), timeout=grace_s)
    finally:
        if process.returncode is None:
            process.kill()
        told.cancel()
        stopping.cancel()
    return await ended


async def _watch_ready(process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
    if process.stdout is not None:
        async for line in process.stdout:  # to the end, so that the pipe never fills
            if line == b"ready\n":
                ready.set()


def _worker_environment(settings: Settings, port: int) -> dict[str, str]:
    """This environment, with what the command line and the embedded engines added to it."""
    secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
    values: dict[str, object] = {
        "redis_url": settings.redis_url,
        "database_url": settings.database_url,
        "jwt_secret": secret,
        "data_dir": settings.data_dir,
        "host": settings.host,
        "port": port,
        "workers": settings.workers,
    }
    added = {
        f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in values.items() if value is not None
    }
    return {**os.environ, **added}
