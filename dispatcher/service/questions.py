"""Questions to an engine that are asked together: those of one moment share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Final, Generic, TypeVar

from dispatcher.core.errors import StoreUnavailable

#: Subjects in one call at most.
_MAX_SUBJECTS: Final = 500
#: Callers that wait at most: who comes then is refused at once.
_MAX_WAITING: Final = 20_000

SubjectT = TypeVar("SubjectT")
AnswerT = TypeVar("AnswerT")


class Questions(Generic[SubjectT, AnswerT]):
    """Nothing waits on purpose: while one call is on its way, the next one gathers.

    `ask` gets the subjects, each once, and says what it found of some of them.
    """

    def __init__(
        self, ask: Callable[[Sequence[SubjectT]], Awaitable[Mapping[SubjectT, AnswerT]]]
    ) -> None:
        self._ask = ask
        self._waiting: dict[SubjectT, list[asyncio.Future[AnswerT | None]]] = {}
        self._callers = 0
        self._task: asyncio.Task[None] | None = None

    async def find(self, subject: SubjectT) -> AnswerT | None:
        """What is so of the subject at some time after this call began, or None.

        Raises what `ask` raises, and StoreUnavailable where too many wait.
        """
        if self._callers >= _MAX_WAITING:
            raise StoreUnavailable("too many questions wait for postgres")
        loop = asyncio.get_running_loop()
        # A future for each caller: who is cancelled does not cancel it for others.
        answer: asyncio.Future[AnswerT | None] = loop.create_future()
        self._waiting.setdefault(subject, []).append(answer)
        self._callers += 1
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        try:
            return await answer
        finally:
            self._callers -= 1

    async def _run(self) -> None:
        await asyncio.sleep(0)
        while self._waiting:
            subjects = list(islice(self._waiting, _MAX_SUBJECTS))
            asked = {subject: self._waiting.pop(subject) for subject in subjects}
            try:
                found = await self._ask(subjects)
            except Exception as error:
                for answers in asked.values():
                    for answer in answers:
                        if not answer.done():
                            # One for each: raising an exception adds to its traceback.
                            answer.set_exception(type(error)(*error.args))
            else:
                for subject, answers in asked.items():
                    for answer in answers:
                        if not answer.done():
                            answer.set_result(found.get(subject))
