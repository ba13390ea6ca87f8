"""The five claims, so that one test can say the same of each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dispatcher.core.actors import Actor, Role
from dispatcher.core.trips import Status
from dispatcher.live.claim_results import (
    AcceptClaimed,
    AvailabilityClaimed,
    ClaimCode,
    CreationClaimed,
    DeclineClaimed,
    NotClaimed,
    Replayed,
    TransitionClaimed,
)
from dispatcher.live.claims import Attempt
from tests.harness.lua_zone import Zone

Claimed = AcceptClaimed | TransitionClaimed | CreationClaimed | AvailabilityClaimed | DeclineClaimed
Claim = Callable[[Attempt], Awaitable[Claimed | NotClaimed]]
CLAIMS = ("accept", "transition", "creation", "availability", "decline")


def claim_of(zone: Zone, kind: str, **more: Any) -> Claim:
    """One kind of claim, as its service would ask for it."""
    claims, keys = zone.claims, zone.keys
    match kind:
        case "accept":
            usual: dict[str, Any] = {"version": None, "policy": "open"}
            return lambda a: claims.claim_accept(keys, a, **(usual | more))
        case "transition":
            usual = {
                "version": None, "actor": Actor("c1", Role.CUSTOMER),
                "sources": (Status.PENDING, Status.ACCEPTED),
            }  # fmt: skip
            return lambda a: claims.claim_transition(keys, a, **(usual | more))
        case "creation":
            return lambda a: claims.claim_creation(keys, a)
        case "availability":
            usual = {
                "goes_offline": False,
                "changes_zone": False,
                "vehicle_type": None,
                "from_zone": "z",
            }
            return lambda a: claims.claim_availability(keys, a, **(usual | more))
        case _:
            return lambda a: claims.claim_decline(keys, a, **({"version": None} | more))


def code_of(result: Claimed | NotClaimed) -> ClaimCode:
    """What the script said, whichever kind of result it became."""
    if isinstance(result, Claimed):
        return ClaimCode.CLAIMED
    return ClaimCode.REPLAY if isinstance(result, Replayed) else result.code


async def make_ready(zone: Zone, kind: str) -> dict[str, Any]:
    """Makes a zone in which this claim succeeds; gives what its attempt is to name."""
    await zone.driver("d1")
    if kind != "creation":
        await zone.trip("1")
    return {"trip_id": ""} if kind == "availability" else {}
