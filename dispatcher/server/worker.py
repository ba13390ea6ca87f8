"""One of several server processes, started by the supervisor's process pool."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from dispatcher.config import load_settings
from dispatcher.observe import logs
from dispatcher.observe.worker_metrics import WorkerPlace
from dispatcher.server.process import bind_socket, run_app, run_until_signal


def run_worker(place: WorkerPlace) -> None:
    """Serve until SIGINT or SIGTERM, with settings that come through the environment alone.

    Prints `ready` on standard output once it serves. Its standard input is a pipe from the
    supervisor: the end of file there means that the supervisor is gone, even by SIGKILL, and ends
    this process too.
    """
    settings = load_settings()
    logs.configure(settings, worker=place.number)
    threading.Thread(target=_exit_with_supervisor, daemon=True).start()
    sock = bind_socket(settings.host, settings.port, shared=True)

    async def serve(stop: asyncio.Event) -> None:
        await run_app(settings, sock, _print_ready, stop, place)

    run_until_signal(serve)


def _print_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _exit_with_supervisor() -> None:
    # This runs in a thread, not in the event loop, so that it works however busy the loop is. It
    # does not drain: the supervisor was killed, and the next server may already own its engines and
    # its port. It does not read sys.stdin, whose lock a daemon thread would still hold when the
    # interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(1)
