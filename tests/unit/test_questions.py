"""Questions that are asked together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.service import questions
from dispatcher.service.questions import Questions


class Engine:
    """Answers each subject with its length once it may; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, subjects: Sequence[str]) -> Mapping[str, int]:
        self.asked.append(list(subjects))
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return {subject: len(subject) for subject in subjects if subject != "unknown"}


async def test_those_of_one_moment_share_a_call() -> None:
    engine = Engine()
    asking = Questions(engine.ask)
    first = [asyncio.create_task(asking.find(each)) for each in ("a", "bb", "a", "unknown")]
    while not engine.asked:
        await asyncio.sleep(0)
    # Who comes while a call is under way is not told what it finds: it may be older.
    later = asyncio.create_task(asking.find("a"))
    engine.may_answer.set()
    assert await asyncio.gather(*first, later) == [1, 2, 1, None, 1]
    assert engine.asked == [["a", "bb", "unknown"], ["a"]]


async def test_who_is_cancelled_cancels_it_for_nobody_else() -> None:
    engine = Engine()
    asking = Questions(engine.ask)
    gone, stays = (asyncio.create_task(asking.find("a")) for _ in range(2))
    while not engine.asked:
        await asyncio.sleep(0)
    gone.cancel()
    engine.may_answer.set()
    assert await stays == 1
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_an_error_is_told_to_each_and_the_next_call_is_made() -> None:
    engine = Engine()
    engine.error = StoreUnavailable("postgres")
    engine.may_answer.set()
    asking = Questions(engine.ask)
    errors = await asyncio.gather(*(asking.find(each) for each in "ab"), return_exceptions=True)
    assert [repr(error) for error in errors] == [repr(engine.error)] * 2
    assert len({id(error) for error in errors}) == 2
    engine.error = None
    assert await asking.find("a") == 1


async def test_subjects_and_callers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_MAX_SUBJECTS", 2)
    monkeypatch.setattr(questions, "_MAX_WAITING", 3)
    engine = Engine()
    asking = Questions(engine.ask)
    tasks = [asyncio.create_task(asking.find(each)) for each in ("a", "b", "c")]
    while not engine.asked:
        await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="too many"):
        await asking.find("a")
    engine.may_answer.set()
    await asyncio.gather(*tasks)
    assert engine.asked == [["a", "b"], ["c"]]
    assert await asking.find("a") == 1
