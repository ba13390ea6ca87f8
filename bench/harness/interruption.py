"""Signals that interrupt a script: it unwinds, and so stops its servers before it exits."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def exit_on_signals() -> None:
    """Makes SIGTERM and SIGHUP unwind the script, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda received, _: sys.exit(128 + received))


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Delivers signals only at the end of the block.

    An exception inside `Popen` would lose the child that it has just started.
    """
    received: list[int] = []

    def defer(number: int, _: FrameType | None) -> None:
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, defer) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received:
        signal.raise_signal(number)
