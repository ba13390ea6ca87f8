"""From the word that an app sends to the command that it means."""

from __future__ import annotations

from typing import Any, Final

from dispatcher.core.actors import SYSTEM, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.transitions import ACCEPT, ACTIONS, ASSIGN, EXPIRE
from dispatcher.core.trips import TRIP_ID, zone_of
from dispatcher.core.zones import Zone, Zones
from dispatcher.service.commands.accept import AcceptTrip
from dispatcher.service.commands.command import Command
from dispatcher.service.commands.decline import DeclineTrip
from dispatcher.service.commands.transition import TakeTransition

_DECLINE: Final = "decline"


def trip_action(
    zones: Zones,
    caller: Caller,
    action: str,
    trip_id: str,
    *,
    version: int | None = None,
    reason: str | None = None,
) -> Command[Any]:
    """One step with a trip, as driver, customer or admin; see core.transitions.

    Raises Refusal trip_not_found, unknown_action.
    """
    zone = zone_of_trip(zones, trip_id)
    role = caller.actor.role
    if action == _DECLINE and role is Role.DRIVER:
        return DeclineTrip(caller, zone, trip_id, version)
    transition = ACTIONS.get((role, action))
    if transition is None:
        raise Refusal("unknown_action")
    if transition is ACCEPT:
        return AcceptTrip(caller, zone, trip_id, version, caller.actor.user_id)
    return TakeTransition(caller, zone, trip_id, transition, version, reason)


def assign_trip(
    zones: Zones, caller: Caller, trip_id: str, driver_id: str, *, version: int | None = None
) -> AcceptTrip:
    """An operator gives a pending trip to a driver. Raises Refusal trip_not_found."""
    zone = zone_of_trip(zones, trip_id)
    return AcceptTrip(caller, zone, trip_id, version, driver_id, ASSIGN)


def expire_trip(zones: Zones, trip_id: str) -> TakeTransition:
    """No driver after the last wave: the trip is over, and its customer is told."""
    return TakeTransition(Caller(SYSTEM), zone_of_trip(zones, trip_id), trip_id, EXPIRE)


def zone_of_trip(zones: Zones, trip_id: str) -> Zone:
    """The zone that a trip's id names. Raises Refusal trip_not_found where there is none."""
    name = zone_of(trip_id)
    zone = zones.get(name) if TRIP_ID.fullmatch(trip_id) else None
    if zone is None:
        raise Refusal("trip_not_found", f"There is no zone {name}, which the trip id begins with.")
    return zone
