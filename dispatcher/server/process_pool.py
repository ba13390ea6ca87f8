"""The workers of `dispatcher serve --workers N`, which are server processes that share a port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Final

import structlog

from dispatcher.config import ENV_PREFIX, Settings
from dispatcher.core.stop_signal import StopSignal
from dispatcher.server.worker import BEAT_INTERVAL_S, READY

_log = structlog.get_logger("dispatcher")

_MIN_BACKOFF_S: Final = 0.5  # before a dead worker is replaced; doubled for each that dies early
_MAX_BACKOFF_S: Final = 10.0
_HEALTHY_AFTER_S: Final = 30.0  # a worker that lived longer did not die of how it was started
#: A worker that has not stopped this long after the drain window is killed.
_KILLED_AFTER_WINDOW_S: Final = 4.0
_START_TIMEOUT_S: Final = 60.0  # until the first beat, which comes once the imports are done


class ServerError(Exception):
    """The server cannot run on; the message says why."""


class ProcessPool:
    """Keeps `settings.workers` processes running on `port` until `stop` is set.

    `settings` must hold the URLs of both engines; `on_ready` is called when all workers serve.
    """

    def __init__(
        self, settings: Settings, port: int, on_ready: Callable[[], None], stop: StopSignal
    ) -> None:
        self._environment = _worker_environment(settings, port)
        self._metrics_dir = ""
        self._silent_beats = max(2, round(settings.worker_timeout_s / BEAT_INTERVAL_S))
        self._ready = [asyncio.Event() for _ in range(settings.workers)]
        self._on_ready = on_ready
        self._stop = stop

    async def run(self) -> None:
        """Run the workers, and others for those that die, until `stop`.

        Raises ServerError if a worker ends before it was ready once.
        """
        with tempfile.TemporaryDirectory(prefix="dispatcher-metrics-") as self._metrics_dir:
            await self._run_workers()

    async def _run_workers(self) -> None:
        announcing = asyncio.create_task(self._announce())
        workers = [
            asyncio.create_task(self._keep_running(number, ready))
            for number, ready in enumerate(self._ready)
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            self._stop.set()
            announcing.cancel()
            await asyncio.gather(*workers, announcing, return_exceptions=True)

    async def _announce(self) -> None:
        for ready in self._ready:
            await ready.wait()
        self._on_ready()

    async def _keep_running(self, number: int, ready: asyncio.Event) -> None:
        """Run one worker, and another when it dies, until `stop`; `ready` is set at the first."""
        loop = asyncio.get_running_loop()
        backoff_s = _MIN_BACKOFF_S
        while not self._stop.is_set():
            started_at = loop.time()
            status = await self._run_worker(number, ready)
            if self._stop.is_set():
                return
            if not ready.is_set():
                raise ServerError(f"worker {number} ended with status {status} before it was ready")
            if loop.time() - started_at > _HEALTHY_AFTER_S:
                backoff_s = _MIN_BACKOFF_S
            _log.error("Worker died", worker=number, status=status, restart_in_s=backoff_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stop.wait()
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def _run_worker(self, number: int, ready: asyncio.Event) -> int:
        """Run one worker from start to end; its exit status, negative for a signal."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dispatcher", "_worker"),
            *("--number", str(number), "--metrics-dir", self._metrics_dir),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,  # its end tells the worker that the supervisor is gone
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the supervisor, which then stops the workers
        )
        pulse = _Pulse(silent_beats=self._silent_beats)
        listening = asyncio.create_task(pulse.listen(process, ready))
        watching = asyncio.create_task(pulse.watch())
        stopping = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((ended, stopping, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and not ended.done():
                _log.error("Worker is silent and is killed", worker=number, pid=process.pid)
                process.kill()
            elif not ended.done():
                process.terminate()
                await asyncio.wait((ended,), timeout=self._stop.remaining_s(_KILLED_AFTER_WINDOW_S))
        finally:
            if process.returncode is None:
                process.kill()
            for task in (listening, watching, stopping):
                task.cancel()
        return await ended


class _Pulse:
    """Whether a worker's event loop turns, by the lines that it writes.

    Silence is counted in turns of this process' own loop: where the whole machine stood still, all
    of them were as silent.
    """

    def __init__(self, *, silent_beats: int) -> None:
        self._allowed = silent_beats
        self._left = round(_START_TIMEOUT_S / BEAT_INTERVAL_S)

    async def listen(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        """Hear every line until the worker ends."""
        assert process.stdout is not None
        async for line in process.stdout:
            self._left = self._allowed
            if line == READY:
                ready.set()

    async def watch(self) -> None:
        """Return once the worker has been silent for too long."""
        loop = asyncio.get_running_loop()
        while self._left > 0:
            began_s = loop.time()
            await asyncio.sleep(BEAT_INTERVAL_S)
            if loop.time() - began_s < 2 * BEAT_INTERVAL_S:  # else this process stood still itself
                self._left -= 1


def _worker_environment(settings: Settings, port: int) -> dict[str, str]:
    """This process' environment, with what the command line and the engines add to it."""
    secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
    added: dict[str, object] = {
        "redis_url": settings.redis_url,
        "database_url": settings.database_url,
        "jwt_secret": secret,
        "data_dir": settings.data_dir,
        "host": settings.host,
        "port": port,
        "workers": settings.workers,
    }
    variables = {
        f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in added.items() if value is not None
    }
    return {**os.environ, **variables}
