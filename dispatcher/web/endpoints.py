"""The table of endpoints: what the handlers serve, and what the API's description tells."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from dispatcher.core.actors import Role
from dispatcher.web import (
    answers,
    driver_answers,
    health_answers,
    operator_answers,
    operator_driver_answers,
    place_answers,
    query_parameters,
    requests,
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row. `name` is the handler's; a change takes an `Idempotency-Key`.

    `codes` are the refusals that are this endpoint's own; `openapi` adds those of many. `answer` is the
    model of the success body, a JSON document; of any other body there is the `media_type` alone.
    """

    method: str
    path: str
    name: str
    summary: str
    role: Role | None = None
    #: Another role that may ask as well.
    also: Role | None = field(default=None, kw_only=True)
    body: tuple[type[BaseModel], ...] = ()
    query: type[BaseModel] | None = None
    is_change: bool = False
    status: int = 200
    codes: tuple[str, ...] = ()
    path_parts: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    media_type: str | None = None
    #: A page for people, or a file of one: see `page_files`.
    is_page: bool = field(default=False, kw_only=True)


_TRIP_CHANGE_CODES: Final = ("trip_not_found", "version_conflict", "trip_busy")

ENDPOINTS: Final = (
    Endpoint(
        "POST", "/api/customer/ride/create", "create", "Ask for a trip",
        Role.CUSTOMER, (requests.NewTrip,), None, True, 201, ("trip_exists",),
        answer=answers.TripCreated,
    ),
    Endpoint(
        "POST", "/api/customer/ride/cancel", "cancel", "Cancel an own trip",
        Role.CUSTOMER, (requests.Cancellation,), None, True, 200,
        (*_TRIP_CHANGE_CODES, "invalid_trip_status"),
        answer=answers.TripCancelled,
    ),
    Endpoint(
        "POST", "/api/customer/ride/end", "end", "End an own trip whose driver has vanished",
        Role.CUSTOMER, (requests.Ending,), None, True, 200,
        (*_TRIP_CHANGE_CODES, "invalid_trip_status", "driver_not_absent"),
        answer=answers.TripCompleted,
    ),
    Endpoint(
        "GET", "/api/customer/rides", "rides", "The own live trips, the newest first, in pages",
        Role.CUSTOMER, query=query_parameters.RidesQuery, answer=answers.CustomerRides,
    ),
    Endpoint(
        "GET", "/api/customer/ride/{id}", "customer_trip", "An own trip",
        Role.CUSTOMER, codes=("trip_not_found",), path_parts=query_parameters.TripPath,
        answer=answers.OneTrip,
    ),
    Endpoint(
        "GET", "/api/driver/state", "driver_state",
        "The own state: active trip, open offers, and what keeps offers away",
        Role.DRIVER, path_parts=query_parameters.NoParameters, answer=driver_answers.DriverState,
    ),
    Endpoint(
        "GET", "/api/driver/ride/pending", "pending",
        "Pending trips that the driver may accept, nearest first",
        Role.DRIVER, query=query_parameters.PendingQuery,
        codes=("driver_not_online", "driver_not_available"),
        answer=answers.PendingTrips,
    ),
    Endpoint(
        "GET", "/api/driver/ride/{id}", "driver_trip", "An own trip",
        Role.DRIVER, codes=("trip_not_found",), path_parts=query_parameters.TripPath,
        answer=answers.OneTrip,
    ),
    Endpoint(
        "POST", "/api/driver/ride/trip-action", "trip_action", "Take a step with a trip",
        Role.DRIVER, (requests.TripAction,), None, True, 200,
        (*_TRIP_CHANGE_CODES, "trip_already_assigned", "trip_not_pending", "invalid_trip_status",
         "driver_not_online", "driver_not_available", "not_offered"),
        answer=answers.TripStepTaken,
    ),
    Endpoint(
        "POST", "/api/driver/ride/location", "location", "Report one or several positions",
        Role.DRIVER, (requests.Fix, requests.Fixes), status=202, codes=("driver_not_online",),
        answer=answers.LocationUpdated,
    ),
    Endpoint(
        "POST", "/api/driver/availability", "availability", "Go online or offline, be available or not",
        Role.DRIVER, (requests.Availability,), None, True, 200,
        ("driver_has_active_trip", "trip_busy"),
        answer=answers.AvailabilityUpdated,
    ),
    Endpoint(
        "POST", "/api/admin/ride/cancel", "admin_cancel", "Cancel any trip",
        Role.ADMIN, (requests.Cancellation,), None, True, 200,
        (*_TRIP_CHANGE_CODES, "invalid_trip_status"),
        answer=answers.TripCancelled,
    ),
    Endpoint(
        "POST", "/api/admin/ride/end", "admin_end", "End any trip that has started",
        Role.ADMIN, (requests.Ending,), None, True, 200,
        (*_TRIP_CHANGE_CODES, "invalid_trip_status"),
        answer=answers.TripCompleted,
    ),
    Endpoint(
        "POST", "/api/admin/ride/assign", "assign", "Give a pending trip to a driver",
        Role.ADMIN, (requests.Assignment,), None, True, 200,
        (*_TRIP_CHANGE_CODES, "trip_already_assigned", "trip_not_pending", "driver_not_online",
         "driver_not_available"),
        answer=answers.TripAccepted,
    ),
    Endpoint(
        "POST", "/api/admin/ride/offer", "offer", "Offer a pending trip to a driver",
        Role.ADMIN, (requests.OfferByHand,), status=200,
        codes=("trip_not_found", "driver_not_found", "trip_already_assigned", "trip_not_pending",
               "driver_not_online", "driver_not_available", "driver_not_eligible", "trip_busy"),
        answer=operator_driver_answers.TripOffered,
    ),
    Endpoint(
        "POST", "/api/admin/driver/offline", "force_offline", "Take a driver offline",
        Role.ADMIN, (requests.ForcedOffline,), None, True, 200, ("driver_not_found", "trip_busy"),
        answer=answers.AvailabilityUpdated,
    ),
    Endpoint(
        "GET", "/api/admin/zones", "zones", "Every zone with its outline",
        Role.ADMIN, path_parts=query_parameters.NoParameters,
        answer=operator_answers.ZoneList,
    ),
    Endpoint(
        "GET", "/api/admin/rides", "trips", "Trips, the latest change first, in pages",
        Role.ADMIN, query=query_parameters.TripsQuery,
        answer=operator_answers.PageOfTrips,
    ),
    Endpoint(
        "GET", "/api/admin/ride/{id}", "admin_trip", "Any trip",
        Role.ADMIN, codes=("trip_not_found",), path_parts=query_parameters.TripPath,
        answer=answers.OneTrip,
    ),
    Endpoint(
        "GET", "/api/admin/ride/{id}/offers", "trip_offers",
        "The offers of a trip, wave by wave, in pages",
        Role.ADMIN, query=query_parameters.TripOffersQuery, codes=("trip_not_found",),
        answer=operator_answers.PageOfTripOffers,
    ),
    Endpoint(
        "GET", "/api/admin/drivers", "drivers", "Drivers by the beginning of their id, in pages",
        Role.ADMIN, query=query_parameters.DriversQuery,
        answer=operator_driver_answers.PageOfDrivers,
    ),
    Endpoint(
        "GET", "/api/admin/driver/{driver_id}", "driver",
        "A driver as they are now, and what keeps offers from them",
        Role.ADMIN, codes=("driver_not_found",), path_parts=query_parameters.DriverPath,
        answer=operator_driver_answers.DriverNow,
    ),
    Endpoint(
        "GET", "/api/admin/driver/{driver_id}/offers", "driver_offers",
        "The offers that a driver got, the latest first, in pages",
        Role.ADMIN, query=query_parameters.DriverOffersQuery,
        answer=operator_driver_answers.PageOfDriverOffers,
    ),
    Endpoint(
        "GET", "/api/admin/ride/{id}/timeline", "timeline", "The history of a trip, a row a version",
        Role.ADMIN, codes=("trip_not_found",), path_parts=query_parameters.TripPath,
        answer=operator_answers.Timeline,
    ),
    Endpoint(
        "GET", "/api/admin/rides/abandoned", "abandoned", "Trips taken long ago that have not started",
        Role.ADMIN, query=query_parameters.AbandonedQuery,
        answer=operator_answers.AbandonedTrips,
    ),
    Endpoint(
        "GET", "/api/admin/zones/{zone}/statistics", "statistics",
        "Live trips and online drivers of a zone by state",
        Role.ADMIN, path_parts=query_parameters.ZonePath,
        answer=operator_answers.ZoneStatistics,
    ),
    Endpoint(
        "GET", "/api/admin/zones/{zone}/pending", "zone_pending",
        "Pending trips of a zone with their waves, the longest waiting first, in pages",
        Role.ADMIN, query=query_parameters.ZonePendingQuery, codes=("invalid_zone",),
        answer=operator_answers.PageOfWaitingTrips,
    ),
    Endpoint(
        "GET", "/api/admin/zones/{zone}/dead-letters", "dead_letters",
        "What receivers of the webhook have not taken, the latest first, in pages",
        Role.ADMIN, query=query_parameters.DeadLettersQuery, codes=("invalid_zone",),
        answer=operator_answers.DeadLetters,
    ),
    Endpoint(
        "GET", "/api/zones/{zone}/heat", "heat", "Where work is waiting, by H3 cell",
        Role.DRIVER, also=Role.ADMIN, path_parts=query_parameters.ZonePath,
        answer=place_answers.Heat,
    ),
    Endpoint(
        "GET", "/api/admin/why", "why", "What keeps a driver from a trip, filter by filter",
        Role.ADMIN, query=query_parameters.WhyQuery,
        codes=("trip_not_found", "driver_not_found", "invalid_trip_id"),
        answer=operator_driver_answers.Why,
    ),
    Endpoint(
        "GET", "/ws", "websocket", "Open a WebSocket", status=101,
        codes=("upgrade_required", "missing_token", "invalid_token", "token_expired",
               "origin_not_allowed", "rate_limit_exceeded", "service_unavailable"),
    ),
    Endpoint("GET", "/healthz", "healthz", "200 while the process lives", answer=health_answers.Alive),
    Endpoint(
        "GET", "/readyz", "readyz", "200 while it can decide",
        codes=("service_unavailable",), answer=health_answers.Ready,
    ),
    Endpoint(
        "GET", "/metrics", "metrics", "Metrics in Prometheus' text format", media_type="text/plain"
    ),
    Endpoint("GET", "/", "root", "Leads to the operator's console", status=302),
    Endpoint(
        "GET", "/console", "console", "The operator's console", media_type="text/html", is_page=True
    ),
    Endpoint(
        "GET", "/console/{file}", "console_file", "What the console is made of",
        path_parts=query_parameters.FilePath, codes=("not_found", "rate_limit_exceeded"), is_page=True,
    ),
    Endpoint("GET", "/openapi.json", "openapi", "This description", media_type="application/json"),
    Endpoint(
        "GET", "/asyncapi.json", "asyncapi", "The description of the WebSocket",
        media_type="application/json",
    ),
    Endpoint("GET", "/docs", "docs", "This description as a page", media_type="text/html", is_page=True),
    Endpoint(
        "GET", "/docs/{file}", "docs_file", "What that page is made of",
        path_parts=query_parameters.FilePath, codes=("not_found", "rate_limit_exceeded"), is_page=True,
    ),
)  # fmt: skip

#: Endpoints that a setting may hide, by its word for them.
_PAGES: Final = {
    "metrics": ("metrics",), "openapi": ("openapi", "asyncapi"), "docs": ("docs", "docs_file"),
}  # fmt: skip


def hidden_endpoints(public_pages: Collection[str]) -> set[str]:
    """The names of the endpoints that are not shown where only these pages are public."""
    return {name for page, names in _PAGES.items() if page not in public_pages for name in names}
