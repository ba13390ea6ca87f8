"""The client of a customer's app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from dispatcher.client.app import AppClient, given, place, trip_of
from dispatcher.client.events import Event, TripChanged, Welcome
from dispatcher.client.known_trips import KnownTrips
from dispatcher.client.models import CustomerSnapshot, Page, Trip
from dispatcher.client.problems import TripNotFound
from dispatcher.client.replies import Intent
from dispatcher.core.trips import FINAL

_CREATE: Final = "/api/customer/ride/create"
_CANCEL: Final = "/api/customer/ride/cancel"
_END: Final = "/api/customer/ride/end"


def creation_intent(
    pickup: tuple[float, float],
    *,
    dropoff: tuple[float, float] | None = None,
    vehicle_type: str | None = None,
    zone: str | None = None,
    trip_request_id: str | None = None,
) -> Intent:
    """The intent to ask for a trip; places are (lat, lng) in degrees."""
    body = given(
        pickup=place(pickup), dropoff=place(dropoff), vehicle_type=vehicle_type, zone=zone,
        trip_request_id=trip_request_id,
    )  # fmt: skip
    return Intent(_CREATE, body)


def cancellation_intent(
    trip_id: str, *, version: int | None = None, reason: str | None = None
) -> Intent:
    """The intent to cancel a trip."""
    return Intent(_CANCEL, given(trip_request_id=trip_id, version=version, reason=reason))


class CustomerClient(AppClient):
    """What a customer does and hears. All that ask raise ApiError (a class a problem) and NoAnswer.

    `trips` are the live ones, by id, as of the event that was read last and of the answers since.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.trips: dict[str, Trip] = {}
        self._known = KnownTrips()

    async def create(self, pickup: tuple[float, float], **more: Any) -> Trip:
        """Asks for a trip: see `creation_intent`."""
        return await self._change(creation_intent(pickup, **more))

    async def cancel(
        self, trip_id: str, *, version: int | None = None, reason: str | None = None
    ) -> Trip:
        """Does not want a trip any more."""
        return await self._change(cancellation_intent(trip_id, version=version, reason=reason))

    async def end(self, trip_id: str, *, reason: str | None = None) -> Trip:
        """Ends a trip that has started and whose driver has vanished."""
        return await self._change(Intent(_END, given(trip_request_id=trip_id, reason=reason)))

    async def _change(self, intent: Intent) -> Trip:
        trip = await self.changed(intent, trip_of)
        self.take(trip)
        return trip

    async def ride(self, trip_id: str) -> Trip:
        """An own trip, also one that has ended."""
        return await self.ask(f"/api/customer/ride/{trip_id}", trip_of)

    async def rides(self, *, after: str | None = None, limit: int | None = None) -> Page[Trip]:
        """A page of the live trips, the newest first."""
        read = Page[Trip].model_validate
        return await self.ask("/api/customer/rides", read, after=after, limit=limit)

    async def events(self) -> AsyncIterator[Event]:
        """What the customer hears, connected or connected again; for one reader.

        After a Welcome the trips that have changed since come as events of their own, and so do those
        that have ended. What is older than what was heard or answered is left out. Raises ApiError
        where the server refuses the user, as with an expired token.
        """
        async for event in self._channel.events():
            if isinstance(event, Welcome):
                yield event
                async for each in self._changes_since(event):
                    yield each
            elif not isinstance(event, TripChanged) or self.take(event.trip):
                yield event

    async def _changes_since(self, welcome: Welcome) -> AsyncIterator[Event]:
        told = welcome.snapshot
        live = told.trips if isinstance(told, CustomerSnapshot) else ()
        missing = set(self.trips) - {trip.id for trip in live}
        for trip in live:
            if self.take(trip):
                yield TripChanged(event="", trip=trip)
        for trip_id in missing:
            try:
                ended = await self.ride(trip_id)
            except TripNotFound:
                self.trips.pop(trip_id, None)
                continue
            if self.take(ended):
                yield TripChanged(event="", trip=ended)

    def take(self, trip: Trip) -> bool:
        """Takes a trip as it was told, also by another way; False where as new a one is known."""
        if not self._known.take(trip):
            return False
        if trip.current_status in FINAL:
            self.trips.pop(trip.id, None)
        else:
            self.trips[trip.id] = trip
        return True
