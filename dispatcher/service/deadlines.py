"""One deadline for each request, without a timer for each: a timer costs a loser a tenth of its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Final, TypeVar

from dispatcher.core.errors import StoreUnavailable

T = TypeVar("T")

#: A deadline is noticed after this part of the allowed time at most.
_TICKS: Final = 32


class Deadline:
    """When a request's time is over; its task is cancelled then, as by asyncio.timeout."""

    __slots__ = ("_cancelling", "_is_expired", "_open", "at_s", "task")

    def __init__(
        self, task: asyncio.Task[object], at_s: float, open_deadlines: dict[Deadline, None]
    ) -> None:
        self.task = task
        self._open = open_deadlines
        #: By the event loop's clock.
        self.at_s = at_s
        self._cancelling = task.cancelling()
        self._is_expired = False

    def expired(self) -> bool:
        """Whether the time is over."""
        return self._is_expired

    def expire(self) -> None:
        """Cancels the task."""
        self._is_expired = True
        self.task.cancel()

    def __enter__(self) -> Deadline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The request has ended. Raises StoreUnavailable where its time was over, and nobody else has
        cancelled its task."""
        self._open.pop(self, None)
        if (
            self._is_expired
            and self.task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise StoreUnavailable("the request's time is over") from None


class Deadlines:
    """The open deadlines of one event loop. All have the same time, so the oldest ends first."""

    def __init__(self, allowed_s: float) -> None:
        self._allowed_s = allowed_s
        self._open: dict[Deadline, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_ticking = False

    def begin(self) -> Deadline:
        """The deadline of the current task's request, which is to be left once that has ended."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        deadline = Deadline(task, loop.time() + self._allowed_s, self._open)
        self._open[deadline] = None
        if not self._is_ticking:
            self._is_ticking = True
            loop.call_later(self._allowed_s / _TICKS, self._tick, loop)
        return deadline

    async def keep(self, work: Awaitable[T]) -> T:
        """Does a request's work within its time. Raises StoreUnavailable once that is over."""
        with self.begin():
            return await work

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        overdue = []
        for deadline in self._open:
            if deadline.at_s > now_s:
                break
            overdue.append(deadline)
        for deadline in overdue:
            del self._open[deadline]
            deadline.expire()
        if self._open:
            loop.call_later(self._allowed_s / _TICKS, self._tick, loop)
        else:
            self._is_ticking = False
