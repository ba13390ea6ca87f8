"""The search for an order: the same verdict as trying every order, and the cases that it is for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, combinations, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.linearizability import NEVER, Operation, find_order

Op = Operation[int]


def write(value: int, _: int) -> Iterator[int]:
    yield value


def compare_and_set(expected: int, value: int, state: int) -> Iterator[int]:
    if state == expected:
        yield value


def read(value: int, state: int) -> Iterator[int]:
    if state == value:
        yield state


VALUES = st.integers(0, 2)
APPLIED = st.one_of(
    st.tuples(st.just("write"), VALUES.map(lambda value: partial(write, value))),
    st.tuples(st.just("set"), st.builds(partial, st.just(compare_and_set), VALUES, VALUES)),
    st.tuples(st.just("read"), VALUES.map(lambda value: partial(read, value))),
)


@st.composite
def operation(draw: st.DrawFn) -> Op:
    kind, apply = draw(APPLIED)
    called = draw(st.integers(0, 6))
    has_answer = kind == "read" or draw(st.booleans())
    returned = called + draw(st.integers(0, 4)) + 0.5 if has_answer else NEVER
    return Operation(kind, called, returned, apply, has_answer, is_look=kind == "read")


def some_order_is_possible(operations: list[Op], end: int) -> bool:
    """By trying each order of each choice of those that may have come to nothing."""
    required = [op for op in operations if op.must_happen]
    others = [op for op in operations if not op.must_happen]
    choices = chain.from_iterable(combinations(others, n) for n in range(len(others) + 1))
    return any(
        is_possible(order, end) for choice in choices for order in permutations([*required, *choice])
    )


def is_possible(order: tuple[Op, ...], end: int) -> bool:
    for place, op in enumerate(order):
        if any(later.returned < op.called for later in order[place + 1 :]):
            return False
    state = 0
    for op in order:
        after = list(op.apply(state))
        if not after:
            return False
        state = after[0]
    return state == end


@settings(max_examples=200, deadline=None)
@given(st.lists(operation(), max_size=5), VALUES)
def test_it_finds_an_order_where_there_is_one(operations: list[Op], end: int) -> None:
    verdict = find_order(0, operations, is_end=end.__eq__)
    assert verdict.is_possible is some_order_is_possible(operations, end)


def test_an_unanswered_write_may_be_seen_late_or_never() -> None:
    lost = Operation("lost", 0, NEVER, partial(write, 1), must_happen=False)
    late = Operation("late", 8, 9, partial(read, 1), is_look=True)
    never = Operation("never", 8, 9, partial(read, 0), is_look=True)
    assert find_order(0, [lost, late]).is_possible
    assert find_order(0, [lost, never]).is_possible
    assert not find_order(0, [lost, late, Operation("gone", 10, 11, partial(read, 0))]).is_possible


def test_what_the_object_does_by_itself_explains_what_nobody_asked_for() -> None:
    seen = Operation("seen", 0, 1, partial(read, 1), is_look=True)
    assert not find_order(0, [seen]).is_possible
    assert find_order(0, [seen], by_itself=partial(compare_and_set, 0, 1)).is_possible


def test_a_verdict_says_what_could_not_come_next() -> None:
    first = Operation("first", 0, 1, partial(write, 1))
    impossible = Operation("impossible", 2, 3, partial(read, 2), is_look=True)
    verdict = find_order(0, [first, impossible])
    assert (verdict.order, verdict.state, verdict.blocked) == (["first"], 1, ["impossible"])
    assert "after first it is 1; then impossible, and the end is 7" in verdict.explain(7)


def test_a_search_that_takes_too_long_is_given_up() -> None:
    many = [Operation(str(n), 0, 1, partial(write, n)) for n in range(30)]
    verdict = find_order(0, [*many, Operation("no", 0, 1, partial(read, 99))], most_states=1000)
    assert verdict.is_possible is None
    assert "given up" in verdict.explain(0)


def test_a_long_history_of_one_after_the_other_is_quick() -> None:
    steps = [Operation(str(n), n, n + 0.5, partial(compare_and_set, n, n + 1)) for n in range(5000)]
    assert find_order(0, steps, is_end=(5000).__eq__).is_possible
