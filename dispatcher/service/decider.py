"""What decides about the changes of a zone: its Redis, or Postgres alone while that is away."""

from __future__ import annotations

from typing import Protocol

from dispatcher.core.authority import Authority
from dispatcher.core.limits import LimitState
from dispatcher.live.claim_results import Unresolved
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.service.answers import Answer
from dispatcher.service.commands.command import Claims
from dispatcher.service.persistent_settles import Telling


class Decider(Protocol):
    """The steps of a change that differ; dispatcher/service/coordinator.py takes them in order."""

    @property
    def claims(self) -> Claims:
        """Who may go on to their commit."""

    async def provide(self, keys: Keys, attempt: Attempt, missing: Unresolved) -> Attempt | Answer:
        """Brings what a claim misses; or the answer, where Postgres has one for the key."""

    async def stands(self, keys: Keys, attempt: Attempt, authority: Authority) -> bool:
        """Whether what refused the attempt under this authority is what is so: nobody else has gone on
        without it. A refusal that does not stand is kept for no retry."""

    def admitted(self, attempt: Attempt, limit: LimitState | None) -> None:
        """The limits have let the attempt's request through."""

    async def reload_trip(self, keys: Keys, trip_id: str) -> None:
        """A change of the trip is waited for: it may have been committed, and its settle lost."""

    async def catch_up(self, keys: Keys, attempt: Attempt) -> None:
        """What was claimed was stale: Postgres knows better."""

    async def keep_answer(self, keys: Keys, attempt: Attempt) -> None:
        """Postgres had an answer for the attempt's key."""

    async def release(self, keys: Keys, attempt: Attempt, *, gives_back: bool = False) -> None:
        """Drops the attempt's claims; `gives_back` has the limits forget the request."""

    def let_go(self, keys: Keys, attempt: Attempt) -> None:
        """Drops the claims that the attempt may have, without waiting."""

    async def tell(self, told: list[Telling]) -> None:
        """Tells what was committed; the zones in this order."""

    def waiting(self) -> dict[str, int]:
        """How many settles and releases go on in the background."""

    async def close(self) -> None:
        """Leaves the rest to its lease."""
