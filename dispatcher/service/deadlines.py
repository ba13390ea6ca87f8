"""One deadline for each request, without a timer for each: a timer costs a loser a tenth of its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from dispatcher.core.errors import StoreUnavailable

T = TypeVar("T")

#: A deadline is noticed after this part of the allowed time at most.
_TICKS: Final = 32


class Deadline:
    """When a request's time is over; its task is cancelled then, as by asyncio.timeout."""

    __slots__ = ("_cancelling", "_is_expired", "at_s", "task")

    def __init__(self, task: asyncio.Task[object], at_s: float) -> None:
        self.task = task
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

    def uncancel(self) -> bool:
        """Takes the cancellation back; False where somebody else has cancelled the task, too."""
        return not self._is_expired or self.task.uncancel() <= self._cancelling


class Deadlines:
    """The open deadlines of one event loop. All have the same time, so the oldest ends first."""

    def __init__(self, allowed_s: float) -> None:
        self._allowed_s = allowed_s
        self._open: dict[Deadline, None] = {}
        self._is_ticking = False

    def begin(self) -> Deadline:
        """The deadline of the current task's request."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        deadline = Deadline(task, loop.time() + self._allowed_s)
        self._open[deadline] = None
        if not self._is_ticking:
            self._is_ticking = True
            loop.call_later(self._allowed_s / _TICKS, self._tick, loop)
        return deadline

    async def keep(self, work: Awaitable[T]) -> T:
        """Does a request's work within its time. Raises StoreUnavailable once that is over."""
        deadline = self.begin()
        try:
            result = await work
        except asyncio.CancelledError:
            if self.end(deadline) and deadline.expired():
                raise StoreUnavailable("the request's time is over") from None
            raise
        except BaseException:
            self.end(deadline)
            raise
        self.end(deadline)
        return result

    def end(self, deadline: Deadline) -> bool:
        """The request has ended. False where its task was cancelled by somebody else, too."""
        self._open.pop(deadline, None)
        return deadline.uncancel()

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
