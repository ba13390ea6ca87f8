"""What every server process does: bind its socket, heed signals, run the application."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any

import uvloop

from dispatcher.config import Settings
from dispatcher.core.stop_signal import STOPPED_AFTER_WINDOW_S, StopSignal
from dispatcher.observe.worker_metrics import WorkerPlace


def run_until_signal(main: Callable[[StopSignal], Coroutine[Any, Any, None]], *, drain_s: float) -> None:
    """Run `main` in an event loop, with an event that SIGINT, SIGTERM and SIGHUP set.

    Further signals change nothing: what `main` does after the first one is not interrupted. A process
    that still lives when its time is over, because something holds the event loop or a thread, is
    ended with status 1.
    """
    uvloop.run(_with_signals(main, drain_s))


def import_app() -> ModuleType:
    """The application; it is imported late, since a supervisor of several workers never needs it."""
    return importlib.import_module("dispatcher.app")


async def run_app(
    settings: Settings,
    sock: socket.socket,
    on_ready: Callable[[], None],
    stop: StopSignal,
    place: WorkerPlace | None = None,
) -> None:
    """Serve on a bound socket until `stop`, then drain; calls `on_ready` once it serves.

    `place` is given to one of several workers.
    """
    await import_app().run(settings, sock, on_ready, stop, place)


async def _with_signals(main: Callable[[StopSignal], Coroutine[Any, Any, None]], drain_s: float) -> None:
    stop = StopSignal(drain_s)
    loop = asyncio.get_running_loop()

    def begin() -> None:
        if not stop.is_set():
            stop.set()
            overdue = threading.Timer(drain_s + STOPPED_AFTER_WINDOW_S, os._exit, args=(1,))
            overdue.daemon = True
            overdue.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, begin)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored, and so it stays
        loop.add_signal_handler(signal.SIGHUP, begin)
    await main(stop)
