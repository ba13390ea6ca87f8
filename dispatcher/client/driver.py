"""The client of a driver's app."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final, Literal

from dispatcher.client.app import AppClient, given, place, trip_of
from dispatcher.client.events import Event, OfferWithdrawn, TripChanged, Welcome
from dispatcher.client.known_trips import KnownTrips
from dispatcher.client.models import AvailabilityAnswer, DriverState, NearbyTrip, Offer, Page, Trip
from dispatcher.client.replies import Intent
from dispatcher.client.retries import CONNECTION_ERRORS
from dispatcher.core.trips import ACTIVE

_ACTION: Final = "/api/driver/ride/trip-action"
_AVAILABILITY: Final = "/api/driver/availability"
_LOCATION: Final = "/api/driver/ride/location"
#: A position is replaced by the next one: nobody waits long for it.
_POSITION_S: Final = 5.0

Action = Literal["accept", "decline", "arrive", "start", "complete", "cancel"]


def action_intent(action: Action, trip_id: str, **more: Any) -> Intent:
    """The intent to take a step with a trip."""
    body = given(action=action, trip_request_id=trip_id, **more)
    return Intent(_ACTION, body, "trip_action")


def availability_intent(
    *,
    is_online: bool | None = None,
    availability_status: Literal["available", "unavailable"] | None = None,
    zone: str | None = None,
    vehicle_type: str | None = None,
    location: tuple[float, float] | None = None,
) -> Intent:
    """The intent to change what the driver offers; `location` is (lat, lng) in degrees."""
    body = given(
        is_online=is_online, availability_status=availability_status, zone=zone,
        vehicle_type=vehicle_type, location=place(location),
    )  # fmt: skip
    return Intent(_AVAILABILITY, body, "availability")


class DriverClient(AppClient):
    """What a driver does and hears. All that ask raise ApiError (a class a problem) and NoAnswer.

    `trip` is the driver's active trip and `offers` are open, by trip, as of the event that was read
    last and of the answers since.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.trip: Trip | None = None
        self.offers: dict[str, Offer] = {}
        self._known = KnownTrips()

    async def set_availability(self, **change: Any) -> AvailabilityAnswer:
        """Goes online or offline, is available or not, changes zone or vehicle: see
        `availability_intent`. What is not named stays as it is."""
        read = AvailabilityAnswer.model_validate
        answer = await self.changed(availability_intent(**change), read)
        if answer.released_trip is not None:
            self._take(answer.released_trip)
        return answer

    async def accept(self, trip_id: str, *, version: int | None = None) -> Trip:
        """Takes a trip. Raises TripAlreadyAssigned where another driver was faster."""
        return await self._act("accept", trip_id, version=version)

    async def decline(self, trip_id: str) -> Trip:
        """Does not want a trip: it is not offered again."""
        self.offers.pop(trip_id, None)
        return await self.changed(action_intent("decline", trip_id), trip_of)

    async def arrive(self, trip_id: str, *, version: int | None = None) -> Trip:
        """Is at the pickup."""
        return await self._act("arrive", trip_id, version=version)

    async def start(self, trip_id: str, *, version: int | None = None) -> Trip:
        """Starts the ride."""
        return await self._act("start", trip_id, version=version)

    async def complete(self, trip_id: str, *, version: int | None = None) -> Trip:
        """Ends the ride."""
        return await self._act("complete", trip_id, version=version)

    async def cancel(
        self, trip_id: str, *, version: int | None = None, reason: str | None = None
    ) -> Trip:
        """Gives a trip back that has not started: it is offered to others."""
        return await self._act("cancel", trip_id, version=version, reason=reason)

    async def _act(self, action: Action, trip_id: str, **more: Any) -> Trip:
        trip = await self.changed(action_intent(action, trip_id, **more), trip_of)
        self._take(trip)
        return trip

    async def report(self, lat: float, lng: float, *, recorded_at: datetime | None = None) -> None:
        """Tells where the driver is, in degrees: over the socket if there is one, else over HTTP.

        A position that is lost is not sent again for long: the next one replaces it. One that is
        refused over the socket is an event, FrameRefused.
        """
        body = given(lat=lat, lng=lng, recorded_at=recorded_at and recorded_at.isoformat())
        socket = self._channel.socket
        if socket is not None:
            with contextlib.suppress(*CONNECTION_ERRORS):
                await socket.send({"type": "location", **body})
            return
        reply = await self._retries.until_answered(
            lambda: self.http.post(_LOCATION, body), deadline_s=_POSITION_S
        )
        reply.result()

    async def state(self) -> DriverState:
        """The own state as it is, and what keeps offers away."""
        return await self.ask("/api/driver/state", DriverState.model_validate)

    async def nearby(self, *, limit: int | None = None) -> tuple[NearbyTrip, ...]:
        """Pending trips that the driver may accept now, nearest first."""
        read = Page[NearbyTrip].model_validate
        return (await self.ask("/api/driver/ride/pending", read, limit=limit)).trips

    async def ride(self, trip_id: str) -> Trip:
        """An own trip, also one that has ended."""
        return await self.ask(f"/api/driver/ride/{trip_id}", trip_of)

    async def events(self) -> AsyncIterator[Event]:
        """What the driver hears, connected or connected again; for one reader.

        After a Welcome the trip and the offers that are new since come as events of their own. What is
        older than what was heard or answered is left out. Raises ApiError where the server refuses the
        user, as with an expired token.
        """
        async for event in self._channel.events():
            match event:
                case Welcome():
                    yield event
                    for each in self._take_snapshot(event):
                        yield each
                case TripChanged():
                    if self._take(event.trip):
                        yield event
                case Offer():
                    self.offers[event.trip.id] = event
                    yield event
                case OfferWithdrawn():
                    self.offers.pop(event.trip_request_id, None)
                    yield event
                case _:
                    yield event

    def _take(self, trip: Trip) -> bool:
        """Takes a trip as it was told; False where a newer one is known."""
        if not self._known.take(trip):
            return False
        if trip.current_status in ACTIVE:
            self.trip = trip
            self.offers.pop(trip.id, None)
        elif self.trip is not None and self.trip.id == trip.id:
            self.trip = None
        return True

    def _take_snapshot(self, welcome: Welcome) -> list[Event]:
        told = welcome.snapshot
        trip: Trip | None = getattr(told, "trip", None)
        offers: tuple[Offer, ...] = getattr(told, "offers", ())
        new: list[Event] = []
        if trip is None:
            self.trip = None
        elif self._take(trip):
            new.append(TripChanged(event="", trip=trip))
        else:
            self.trip = trip
        before, self.offers = self.offers, {offer.trip.id: offer for offer in offers}
        return [*new, *(offer for trip_id, offer in self.offers.items() if trip_id not in before)]
