"""Is there an order of operations, within their real times, that a model allows?

The search of Wing and Gong (1993) with the memory of Lowe (2017): of the operations that may come next, none of
which was called after another that is still to come had returned, one that the model allows is taken, and where
that leads nowhere, another. What was done and the state that it led to are remembered, so that no two ways to the
same place are both followed. It decides about one object; a history of many is divided into theirs first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

StateT = TypeVar("StateT")

NEVER = math.inf
#: States looked at before a search is given up. Histories of a round need some thousands.
_MOST_STATES = 100_000
#: How many of the operations before the one that is not possible are shown.
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Operation(Generic[StateT]):
    """What one client asked of the object, and when: from `called` to `returned` (NEVER: no answer came).

    `apply` gives the states that it may lead to, none where the model does not allow it. One that is not
    `must_happen` may have come to nothing, or take effect at any time after it was called. One that `is_look` never
    changes the state.
    """

    name: str
    called: float
    returned: float
    apply: Callable[[StateT], Iterable[StateT]]
    must_happen: bool = True
    is_look: bool = False


@dataclass(frozen=True, slots=True)
class Verdict(Generic[StateT]):
    """`is_possible` is None where the search was given up. `order` is the longest that was found, and
    `state` where it leads; `blocked` are the operations of which one had to come next."""

    is_possible: bool | None
    order: Sequence[str]
    state: StateT
    blocked: Sequence[str]

    def explain(self, end: object) -> str:
        """Why there is no order that leads to `end`, in a sentence."""
        found = "no order is possible" if self.is_possible is False else "the search was given up"
        came = " | ".join(self.order[-_SHOWN:])
        following = " | ".join(self.blocked) or "nothing is left"
        return f"{found}: after {came} it is {self.state}; then {following}, and the end is {end}"


def _nothing(_: object) -> tuple[()]:
    return ()


def _any_end(_: object) -> bool:
    return True


def find_order(
    initial: StateT,
    operations: Iterable[Operation[StateT]],
    *,
    by_itself: Callable[[StateT], Iterable[StateT]] = _nothing,
    is_end: Callable[[StateT], bool] = _any_end,
    most_states: int = _MOST_STATES,
) -> Verdict[StateT]:
    """Searches for an order of the operations from `initial` to a state that `is_end` accepts.

    `by_itself` gives the states that the object may come to without anybody's asking, at any time; these must not
    lead in circles.
    """
    search = _Search(sorted(operations, key=lambda op: op.called), by_itself, is_end)
    return search.run(initial, most_states)


@dataclass(frozen=True, slots=True)
class _Step(Generic[StateT]):
    """A state, and the operations done on the way to it: the first `base` ones, and those of the bits of `done`."""

    base: int
    done: int
    state: StateT
    taken: int | None = None
    before: _Step[StateT] | None = None


class _Search(Generic[StateT]):
    def __init__(
        self,
        operations: Sequence[Operation[StateT]],
        by_itself: Callable[[StateT], Iterable[StateT]],
        is_end: Callable[[StateT], bool],
    ) -> None:
        self._operations = operations
        self._by_itself = by_itself
        self._is_end = is_end
        #: How many of the first n operations must happen, by n.
        self._required = [0, *accumulate(operation.must_happen for operation in operations)]

    def run(self, initial: StateT, most_states: int) -> Verdict[StateT]:
        start = deepest = _Step(0, 0, initial)
        furthest = -1
        seen = {(0, 0, initial)}
        waiting = [start]
        while waiting:
            step = waiting.pop()
            count = self._count(step)
            if count > furthest:
                furthest, deepest = count, step
            if count == self._required[-1] and self._is_end(step.state):
                return self._verdict(True, step)
            for following in self._following(step):
                mark = (following.base, following.done, following.state)
                if mark not in seen:
                    seen.add(mark)
                    waiting.append(following)
            if len(seen) > most_states:
                return self._verdict(None, deepest)
        return self._verdict(False, deepest)

    def _count(self, step: _Step[StateT]) -> int:
        """How many of those that must happen have."""
        done, bits, place = self._required[step.base], step.done, step.base
        while bits:
            done += bits & 1 and self._operations[place].must_happen
            bits, place = bits >> 1, place + 1
        return done

    def _following(self, step: _Step[StateT]) -> list[_Step[StateT]]:
        found: list[_Step[StateT]] = [
            _Step(step.base, step.done, state, None, step) for state in self._by_itself(step.state)
        ]
        for place in reversed(self._candidates(step)):
            operation = self._operations[place]
            after = [self._take(step, place, state) for state in operation.apply(step.state)]
            if after and operation.is_look:
                return after  # what changes nothing takes no way from the others
            found += after
        return found

    def _candidates(self, step: _Step[StateT]) -> list[int]:
        """The operations that may come next, in the order of their calls."""
        found: list[int] = []
        earliest_return = NEVER
        for place in range(step.base, len(self._operations)):
            operation = self._operations[place]
            if operation.called > earliest_return:
                break
            if not step.done >> (place - step.base) & 1:
                found.append(place)
                earliest_return = min(earliest_return, operation.returned)
        return [place for place in found if self._operations[place].called <= earliest_return]

    @staticmethod
    def _take(step: _Step[StateT], place: int, state: StateT) -> _Step[StateT]:
        base, done = step.base, step.done | 1 << (place - step.base)
        while done & 1:
            base, done = base + 1, done >> 1
        return _Step(base, done, state, place, step)

    def _verdict(self, is_possible: bool | None, end: _Step[StateT]) -> Verdict[StateT]:
        order: list[str] = []
        step: _Step[StateT] | None = end
        while step is not None:
            if step.taken is not None:
                order.append(self._operations[step.taken].name)
            step = step.before
        blocked = [self._operations[place].name for place in self._candidates(end)]
        return Verdict(is_possible, order[::-1], end.state, blocked)
