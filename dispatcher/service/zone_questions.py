"""Questions about a zone that are asked together with those about other zones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class ZoneQuestions(Generic[T]):
    """While one question about several zones is under way, the next one gathers.

    `ask` gets the zones, and says what it found of some of them; `none` stands for the others.
    """

    def __init__(self, ask: Callable[[list[str]], Awaitable[Mapping[str, T]]], none: T) -> None:
        self._ask = ask
        self._none = none
        self._waiting: dict[str, asyncio.Future[T]] = {}
        self._task: asyncio.Task[None] | None = None

    async def of(self, zone: str) -> T:
        """What is so of a zone at some time after this call. Raises what `ask` raises."""
        answer = self._waiting.get(zone)
        if answer is None:
            answer = self._waiting[zone] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._ask_all())
        return await asyncio.shield(answer)

    async def _ask_all(self) -> None:
        await asyncio.sleep(0)
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            try:
                found = await self._ask(list(waiting))
            except Exception as error:
                for answer in waiting.values():
                    # An exception that nobody waits for any more is no news.
                    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
                    answer.set_exception(error)
            else:
                for zone, answer in waiting.items():
                    answer.set_result(found.get(zone, self._none))
