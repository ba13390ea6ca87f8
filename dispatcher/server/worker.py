"""One of several server processes, started by the supervisor's process pool."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import Final

from dispatcher.config import load_settings
from dispatcher.core.stop_signal import StopSignal
from dispatcher.observe import logs
from dispatcher.observe.worker_metrics import WorkerPlace
from dispatcher.server.process import import_app, run_app, run_until_signal
from dispatcher.web.listening import bind_socket

#: What a worker writes on standard output, for its supervisor.
READY: Final = b"ready\n"
BEAT: Final = b"beat\n"
#: How often it writes BEAT.
BEAT_INTERVAL_S: Final = 1.0


def run_worker(place: WorkerPlace) -> None:
    """Serve until SIGINT or SIGTERM, with settings that come through the environment alone.

    Writes BEAT on standard output for as long as its event loop turns, and READY once it serves. Its
    standard input is a pipe from the supervisor: the end of file there means that the supervisor is
    gone, even by SIGKILL, and ends this process too.
    """
    settings = load_settings()
    logs.configure(settings, worker=place.number)
    os.set_blocking(1, False)
    threading.Thread(target=_exit_with_supervisor, daemon=True).start()
    import_app()  # before the first beat: nothing else holds the event loop up for so long
    sock = bind_socket(settings.host, settings.port, shared=True)

    async def serve(stop: StopSignal) -> None:
        beating = asyncio.create_task(_beat())
        try:
            await run_app(settings, sock, lambda: _tell(READY), stop, place)
        finally:
            beating.cancel()

    run_until_signal(serve, drain_s=settings.drain_s)


async def _beat() -> None:
    while True:
        _tell(BEAT)
        await asyncio.sleep(BEAT_INTERVAL_S)


def _tell(line: bytes) -> None:
    # A supervisor that does not read for hours, since it is stopped itself, is not waited for.
    with contextlib.suppress(BlockingIOError):
        os.write(1, line)


def _exit_with_supervisor() -> None:
    # This runs in a thread, not in the event loop, so that it works however busy the loop is. It
    # does not drain: the supervisor was killed, and the next server may already own its engines and
    # its port. It does not read sys.stdin, whose lock a daemon thread would still hold when the
    # interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(1)
