"""What every command is: one kind of change, as the coordinator takes it from claim to settle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol, TypeVar

from dispatcher.core.actors import Actor
from dispatcher.core.callers import Caller
from dispatcher.core.limits import LimitClass, LimitState
from dispatcher.core.trips import Status
from dispatcher.core.zones import Zone
from dispatcher.ledger.changes import Change
from dispatcher.live.claim_results import (
    AcceptClaimed,
    AvailabilityClaimed,
    CreationClaimed,
    DeclineClaimed,
    NotClaimed,
    TransitionClaimed,
)
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.live.settlement import Settlement
from dispatcher.service.driver_directory import DriverDirectory
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.race_log import RaceLog


class Plan(NamedTuple):
    """What a claimed change is to do.

    `change` is for the ledger, `settlement` for the live state of the command's zone, `status` and
    `body` are the answer. A driver who moves to another zone is to be made known there:
    `other_zone` names it, `other_settlement` is for its live state.
    """

    change: Change
    settlement: Settlement
    status: int
    body: bytes
    other_zone: str = ""
    other_settlement: Settlement | None = None


class SideEffects(NamedTuple):
    """What this server does itself once a change is committed, or an accept came too late."""

    offer_log: OfferLog
    race_log: RaceLog
    directory: DriverDirectory


class Claims(Protocol):
    """The claims, as `ClaimScripts` has them in Redis and `LedgerClaims` over Postgres. All raise
    StoreUnavailable."""

    async def claim_accept(
        self, keys: Keys, attempt: Attempt, *, version: int | None, policy: Literal["open", "offered"]
    ) -> AcceptClaimed | NotClaimed:
        """Trip and driver."""

    async def claim_transition(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        version: int | None,
        actor: Actor,
        sources: Iterable[Status],
    ) -> TransitionClaimed | NotClaimed:
        """A trip in one of the states `sources`."""

    async def claim_creation(self, keys: Keys, attempt: Attempt) -> CreationClaimed | NotClaimed:
        """A trip's id."""

    async def claim_availability(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        goes_offline: bool,
        changes_zone: bool,
        vehicle_type: str | None,
        from_zone: str,
        absentee: str = "",
    ) -> AvailabilityClaimed | NotClaimed:
        """A driver, and the trip that is to be released."""

    async def claim_decline(
        self, keys: Keys, attempt: Attempt, *, version: int | None
    ) -> DeclineClaimed | NotClaimed:
        """A pending trip."""


class Claimed(Protocol):
    """What all granted claims have: Redis' time in ms, and the limit to report."""

    @property
    def now_ms(self) -> int: ...

    @property
    def limit(self) -> LimitState | None: ...


ClaimedT = TypeVar("ClaimedT", bound=Claimed)


class Command(Protocol[ClaimedT]):
    """One kind of change. A command is frozen: nothing is remembered between its steps."""

    @property
    def caller(self) -> Caller: ...

    @property
    def zone(self) -> Zone:
        """The zone that decides."""

    @property
    def trip_id(self) -> str:
        """The trip that changes; empty where none does, or only the claim tells which."""

    @property
    def driver_id(self) -> str:
        """The driver whose claim is needed; empty where none is."""

    @property
    def limit_class(self) -> LimitClass: ...

    @property
    def is_race(self) -> bool:
        """Whether who meets its claim on a trip has lost it; if not, they wait for its outcome."""

    async def claim(self, claims: Claims, keys: Keys, attempt: Attempt) -> ClaimedT | NotClaimed:
        """Asks whether this may go on to its commit. Raises StoreUnavailable."""

    def plan(self, attempt: Attempt, claimed: ClaimedT) -> Plan:
        """What is to be written and told. Pure: it may be asked for again."""

    def committed(self, claimed: ClaimedT, plan: Plan, effects: SideEffects) -> None:
        """Called once, and only after the commit."""
