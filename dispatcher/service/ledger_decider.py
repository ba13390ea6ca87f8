"""Postgres alone decides: a zone's Redis is away.

What is committed meanwhile is told to the sockets of this server at once, and to those of the others by
dispatcher/service/event_tail.py. Redis learns all of it when the zone is loaded.
"""

from __future__ import annotations

import orjson

from dispatcher.core.authority import Authority
from dispatcher.core.limits import LimitState
from dispatcher.live.claim_results import ClaimCode, Unresolved
from dispatcher.live.claims import Attempt, Resolved
from dispatcher.live.keys import Keys
from dispatcher.service.answers import Answer
from dispatcher.service.event_tail import Deliver
from dispatcher.service.ledger_claims import LedgerClaims
from dispatcher.service.persistent_settles import Telling


class LedgerDecider:
    """A Decider. Nothing of it waits for Redis."""

    def __init__(self, claims: LedgerClaims, deliver: Deliver) -> None:
        self.claims = claims
        self._deliver = deliver

    async def provide(self, keys: Keys, attempt: Attempt, missing: Unresolved) -> Attempt | Answer:
        if missing.code is ClaimCode.DRIVER_ELSEWHERE:
            return attempt.resolve(Resolved.DRIVER)
        if missing.code is ClaimCode.DRIVER_MOVED:
            return attempt._replace(trip_id=missing.trip_id)
        return attempt

    async def stands(self, keys: Keys, attempt: Attempt, authority: Authority) -> bool:
        return True  # the rows are the truth, whoever has written them

    def admitted(self, attempt: Attempt, limit: LimitState | None) -> None:
        """The claims have counted it."""

    async def reload_trip(self, keys: Keys, trip_id: str) -> None:
        """The rows are looked at for each claim."""

    async def catch_up(self, keys: Keys, attempt: Attempt) -> None:
        """The next claim looks again."""

    async def keep_answer(self, keys: Keys, attempt: Attempt) -> None:
        """It stays where it is."""

    async def release(self, keys: Keys, attempt: Attempt, *, gives_back: bool = False) -> None:
        self.claims.drop(attempt, gives_back=gives_back)

    def let_go(self, keys: Keys, attempt: Attempt) -> None:
        self.claims.drop(attempt)

    async def tell(self, told: list[Telling]) -> None:
        for telling in told:
            self.claims.drop(telling.attempt)
            for message in telling.settlement.messages:
                self._deliver(message.to, orjson.loads(message.frame))

    def waiting(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        """There is nothing to leave."""
