"""Checks in Postgres that every invariant held, whatever the apps were told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dispatcher.ledger.database import Database

#: Queries of sql/queries/invariants.sql that together count double assignments.
_DOUBLE_ASSIGNMENTS: Final = (
    "drivers_with_two_trips",
    "trips_with_two_holders",
    "drivers_in_two_trips_at_once",
)
_CHECKS: Final = (
    ("double assignments", _DOUBLE_ASSIGNMENTS),
    ("histories with gaps", ("histories_with_gaps",)),
    ("states unlike their history", ("states_unlike_history",)),
    ("trips held by drivers who are offline", ("offline_holders",)),
    ("kept answers without effect", ("answers_without_effect",)),
    ("offers that came to something else", ("outcomes_before_offers", "winning_offers_ended_otherwise")),
)
_LOST_ANSWERS: Final = "answered successes not in Postgres"
#: Examples that a finding names; its count has all.
_MAX_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """How often an invariant is broken, and some of the cases."""

    name: str
    violations: int
    examples: tuple[str, ...] = ()


async def check_invariants(database_url: str, answered: Sequence[tuple[str, int]] = ()) -> list[Finding]:
    """Checks every invariant; `answered` are (trip id, version) that clients were told of."""
    database = await Database.open(database_url, size=1, timeout_s=60.0)
    try:
        findings = []
        for name, queries in _CHECKS:
            rows = [row for query in queries for row in await database.rows(query)]
            findings.append(_finding(name, rows))
        rows = await database.rows(
            "lost_answers",
            trips=[trip for trip, _ in answered],
            versions=[version for _, version in answered],
        )
        return [*findings, _finding(_LOST_ANSWERS, rows)]
    finally:
        await database.close()


def _finding(name: str, rows: Sequence[dict[str, str]]) -> Finding:
    examples = tuple(f"{row['subject']}: {row['detail']}" for row in rows[:_MAX_EXAMPLES])
    return Finding(name, len(rows), examples)
