"""Known bugs of the road without Redis, put into the servers of the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from dispatcher.core.drivers import Driver
from dispatcher.core.trips import Trip
from dispatcher.ledger.changes import Change, Outcome
from dispatcher.live.claim_results import ClaimCode
from dispatcher.live.keys import Keys
from dispatcher.service import ledger_claims
from tests.model.side import Side

#: Puts the bug into one server, until it is left.
Plant = Callable[[Side], AbstractContextManager[Any]]


def the_fence_is_ignored(side: Side) -> AbstractContextManager[Any]:
    """What was claimed before the zone has passed to another engine is committed after it."""
    commits = side.parts.ledger.commits
    commit = commits.commit

    async def unfenced(change: Change, answer: Any, **options: Any) -> Outcome:
        return await commit(change._replace(fence=None), answer, **options)

    return patch.object(commits, "commit", unfenced)


def the_active_trip_is_ignored(_: Side) -> AbstractContextManager[Any]:
    """A claim over Postgres does not look whether the driver has a trip."""
    why_not = ledger_claims.why_not_accept

    def why_not_accept(trip: Trip | None, driver: Driver | None, **more: Any) -> ClaimCode | None:
        return why_not(trip, driver and replace(driver, trip_id=None), **more)

    return patch.object(ledger_claims, "why_not_accept", why_not_accept)


def stored_answers_are_ignored(_: Side) -> AbstractContextManager[Any]:
    """A claim over Postgres does not look for the answer that its key has."""

    return patch.object(ledger_claims, "_stored", lambda *_: None)


def the_zone_is_given_back_warm(side: Side) -> AbstractContextManager[Any]:
    """Redis decides again with what it knew before Postgres did."""
    state = side.parts.live.state
    mark_cold = state.mark_cold

    async def unless_given_back(keys: Keys, run_id: str) -> bool:
        return bool(run_id) and await mark_cold(keys, run_id)

    return patch.object(state, "mark_cold", unless_given_back)


PLANTS: tuple[Plant, ...] = (
    the_fence_is_ignored,
    the_active_trip_is_ignored,
    stored_answers_are_ignored,
    the_zone_is_given_back_warm,
)
