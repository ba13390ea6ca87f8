"""What every test of the services is held to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

#: What was cancelled comes to its end within.
_LAST_TURNS_S = 0.5


@pytest.fixture(autouse=True)
async def _no_task_left() -> AsyncIterator[None]:
    """Fails where a test, or the services it ran, leave a task: the tests after it share the loop."""
    before = asyncio.all_tasks()
    yield
    if left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        _, left = await asyncio.wait(left, timeout=_LAST_TURNS_S)
    assert not left, left
