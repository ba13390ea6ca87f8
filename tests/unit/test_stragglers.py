"""Several works at once: who is late is not waited for, unless nobody has succeeded."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.stragglers import gather_soon


async def _give(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def _fail() -> int:
    raise ValueError("no")


async def _hang(cancelled: list[bool]) -> int:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.append(True)
        raise
    return 0


async def test_all_that_come_are_given_in_order() -> None:
    assert await gather_soon([_give(1), _give(2)], rest_s=60) == [1, 2]
    assert await gather_soon([], rest_s=60) == []


async def test_who_hangs_is_cancelled_once_another_has_succeeded() -> None:
    cancelled: list[bool] = []
    first, second, third = await gather_soon([_hang(cancelled), _fail(), _give(3)], rest_s=0.01)
    assert isinstance(first, TimeoutError)
    assert isinstance(second, ValueError)
    assert third == 3
    assert cancelled == [True]


async def test_where_none_succeeds_all_are_waited_for() -> None:
    async def fail_late() -> int:
        await asyncio.sleep(0.02)
        raise OSError("late")

    ends = await gather_soon([_fail(), fail_late()], rest_s=0)
    assert [type(end) for end in ends] == [ValueError, OSError]


async def test_a_caller_that_is_cancelled_takes_all_along() -> None:
    cancelled: list[bool] = []
    task = asyncio.create_task(gather_soon([_hang(cancelled), _hang(cancelled)], rest_s=60))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == [True, True]
