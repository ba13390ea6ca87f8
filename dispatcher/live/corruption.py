"""What Redis holds and no server has written: who stumbles over it reports the keys, and goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from dispatcher.core.errors import CorruptState
from dispatcher.live.redis_errors import UNREADABLE

log = structlog.get_logger("dispatcher.redis")

_SHOWN_KEYS: Final = 12  # of a failed call, in the log


class CorruptionReports:
    """Tells of keys that calls stumbled over."""

    def __init__(self) -> None:
        #: Told of them (live/mending.py).
        self.on_corrupt: Callable[[Sequence[str]], None] = lambda names: None

    def corrupt(self, names: Sequence[str], reason: Exception | str) -> CorruptState:
        """What a caller is told where a key holds what it should not. Has these keys looked into."""
        log.error("redis holds what it should not", keys=list(names[:_SHOWN_KEYS]), reason=str(reason))
        self.on_corrupt(names)
        return CorruptState(f"redis holds what it should not: {reason}")

    @contextlib.contextmanager
    def decoding(self, *names: str) -> Iterator[None]:
        """What is read of these keys is decoded within. Raises CorruptState where it cannot be."""
        try:
            yield
        except UNREADABLE as error:
            raise self.corrupt(names, repr(error)) from error
