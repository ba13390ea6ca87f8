"""The names of keys, in pages. What is no UTF-8 is no name of ours, and would end every scan."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import structlog

from dispatcher.core.errors import CorruptState

log = structlog.get_logger("dispatcher.mending")

# Keys looked at by one SCAN: it keeps Redis busy for less than a millisecond.
_SCAN_KEYS: Final = 1_000
#: What Redis' user may drop (docs/redis.acl).
_DROPPABLE: Final = re.compile(rb"dsp:\{.*\}:.*", re.DOTALL)


async def scan_names(command: Callable[..., Awaitable[Any]], prefix: str) -> AsyncIterator[list[str]]:
    """The keys that begin with `prefix`; one may come twice. Those whose names are no UTF-8 are dropped.

    `command` sends a command. Raises StoreUnavailable.
    """
    cursor: Any = "0"
    while True:
        try:
            cursor, got = await command("SCAN", cursor, "MATCH", prefix + "*", "COUNT", _SCAN_KEYS)
        except CorruptState as error:
            cause = error.__cause__
            if not isinstance(cause, UnicodeDecodeError) or not _DROPPABLE.fullmatch(cause.object):
                raise
            await command("UNLINK", cause.object)
            log.warning("key dropped whose name is no text", key=repr(cause.object))
            continue
        yield got
        if int(cursor) == 0:
            return
