"""A periodic timer for paced loads, finer on Linux than the event loop's timers (1 ms)."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable

INTERVAL_S = 0.00025 if sys.platform == "linux" else 0.001
_CLOCK_MONOTONIC = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class PeriodicTimer:
    """Calls `callback` every `INTERVAL_S` until stopped.

    On Linux it is a timerfd, by way of libc: `os` offers it from Python 3.13 on.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._file = -1
        self._handle: asyncio.TimerHandle | None = None
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            self._file = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file >= 0:
            every = _Timespec(0, int(INTERVAL_S * 1e9))
            libc.timerfd_settime(self._file, 0, ctypes.byref(_Itimerspec(every, every)), None)
            self._loop.add_reader(self._file, self._expired)
        else:
            self._schedule()

    def _expired(self) -> None:
        os.read(self._file, 8)
        self._callback()

    def _schedule(self) -> None:
        self._handle = self._loop.call_later(INTERVAL_S, self._schedule)
        self._callback()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1
