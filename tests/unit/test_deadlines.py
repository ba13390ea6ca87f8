"""Deadlines of requests: ended in time, cancelled once, and never for somebody else."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.service.deadlines import Deadline, Deadlines


async def _wait(deadlines: Deadlines, event: asyncio.Event) -> tuple[str, Deadline]:
    deadline = deadlines.begin()
    try:
        with deadline:
            await event.wait()
    except StoreUnavailable:
        return "expired", deadline
    return "done", deadline


async def test_who_waits_too_long_is_ended_and_can_go_on() -> None:
    deadlines, never = Deadlines(0.05), asyncio.Event()
    said, _ = await _wait(deadlines, never)
    assert said == "expired"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # a cancellation that was left over would end this
    said, _ = await _wait(deadlines, never)
    assert said == "expired", "the next one, too"


async def test_who_is_done_in_time_is_left_alone() -> None:
    deadlines, soon, never = Deadlines(0.2), asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(_wait(deadlines, soon))
    other = asyncio.create_task(_wait(deadlines, never))
    await asyncio.sleep(0)
    soon.set()
    said, deadline = await task
    assert said == "done"
    said, _ = await other
    assert said == "expired"
    assert not deadline.expired()


async def test_who_is_cancelled_by_others_stays_cancelled() -> None:
    deadlines = Deadlines(5.0)
    task = asyncio.create_task(_wait(deadlines, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_thousand_at_once_end_each() -> None:
    deadlines, never = Deadlines(0.05), asyncio.Event()
    found = await asyncio.gather(*(_wait(deadlines, never) for _ in range(1_000)))
    assert {said for said, _ in found} == {"expired"}
