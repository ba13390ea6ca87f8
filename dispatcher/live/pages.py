"""What a long sorted set or stream holds, in pages: no command keeps Redis busy for long.

Both raise StoreUnavailable, and CorruptState of what is no UTF-8.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from dispatcher.live.pipeline import Pipeline


async def members(pipeline: Pipeline, key: str, *, count: int) -> AsyncIterator[list[str]]:
    """The members of a sorted set, about `count` at once. A member may come twice."""
    cursor = "0"
    while True:
        cursor, found = await pipeline.command("ZSCAN", key, cursor, "COUNT", count)
        # A client that parses replies itself gives pairs.
        yield [pair[0] for pair in found] if found and not isinstance(found[0], str) else found[::2]
        if int(cursor) == 0:
            return


async def entries(
    pipeline: Pipeline, key: str, *, after: str = "-", count: int
) -> AsyncIterator[list[tuple[str, Any]]]:
    """The entries of a stream from an id on, `count` at most at once: ids and fields."""
    while page := await pipeline.command("XRANGE", key, after, "+", "COUNT", count):
        yield page
        after = f"({page[-1][0]}"
