"""Waiting for several, and not for the last of them for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

T = TypeVar("T")


async def gather_soon(
    works: Iterable[Coroutine[None, None, T]], *, rest_s: float
) -> list[T | BaseException]:
    """Does all works at once; their results or errors, in order.

    Whatever is not done `rest_s` after the first one has succeeded is cancelled: its error is a
    TimeoutError. Where none succeeds, all are waited for.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    pending = set(tasks)
    try:
        while pending and not any(_has_succeeded(task) for task in tasks):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=rest_s)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    return [TimeoutError("it hangs") if isinstance(e, asyncio.CancelledError) else e for e in ends]


def _has_succeeded(task: asyncio.Future[T]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
