"""A stop has an end, whatever its parts wait for."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.stop_signal import StopSignal


async def _hang() -> None:
    await asyncio.Event().wait()


async def test_the_time_runs_from_the_first_signal() -> None:
    stop = StopSignal(0.0)
    assert stop.remaining_s(5.0) == 5.0
    stop.set()
    await asyncio.sleep(0.01)
    left_s = stop.remaining_s(5.0)
    assert left_s < 5.0
    stop.set()
    assert stop.remaining_s(5.0) <= left_s


async def test_a_step_in_time() -> None:
    stop = StopSignal(0.0)
    stop.set()
    assert await stop.finish(asyncio.sleep(0), 1.0)


async def test_a_step_that_hangs_is_given_up() -> None:
    stop = StopSignal(0.01)
    stop.set()
    assert not await stop.finish(_hang(), 0.01)


async def test_a_step_whose_clean_up_waits_anew_is_given_up() -> None:
    cancels = 0

    async def clean_up() -> None:
        nonlocal cancels
        for _ in range(3):
            try:
                await _hang()
            except asyncio.CancelledError:
                cancels += 1

    stop = StopSignal(0.0)
    stop.set()
    assert await stop.finish(clean_up(), 0.0)
    assert cancels == 3


async def test_a_step_that_fails() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await StopSignal(0.0).finish(fail(), 1.0)


async def test_work_that_a_stop_interrupts() -> None:
    stop = StopSignal(0.0)
    work = asyncio.create_task(stop.interrupt(_hang()))
    await asyncio.sleep(0)
    stop.set()
    assert await work is None


async def test_work_that_nothing_interrupts() -> None:
    assert await StopSignal(0.0).interrupt(asyncio.sleep(0, "done")) == "done"
