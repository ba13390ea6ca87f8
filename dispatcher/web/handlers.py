"""The HTTP endpoints, one method each: from a body to a command, and from a command to its answer.

The boundary around them says who calls, reads and checks what was sent, and counts refusals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Final

from aiohttp import hdrs, web

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zones
from dispatcher.observe.metrics import Metrics
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.service.availability import AvailabilityService
from dispatcher.service.commands.actions import assign_trip, trip_action
from dispatcher.service.commands.create import create_trip
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.explanation import Explanation
from dispatcher.service.heat import HeatMaps
from dispatcher.service.operator_offers import OperatorOffers
from dispatcher.service.operator_reads import OperatorReads
from dispatcher.service.positions import Positions
from dispatcher.service.reads import Reads
from dispatcher.service.snapshots import Snapshots
from dispatcher.service.stranded_trips import StrandedTrips
from dispatcher.web import query_parameters, requests
from dispatcher.web.api_page import ApiPageOnDemand
from dispatcher.web.availability_change import AvailabilityChange
from dispatcher.web.console_pages import ConsolePages
from dispatcher.web.responses import HttpResponse, answer_response, content_response, json_response

#: Whether the server can decide, and what it says about that.
Readiness = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Handlers:
    """One method an endpoint, named as in `endpoints`; the services answer."""

    def __init__(
        self,
        *,
        zones: Zones,
        coordinator: Coordinator,
        availability: AvailabilityService,
        positions: Positions,
        stranded_trips: StrandedTrips,
        reads: Reads,
        snapshots: Snapshots,
        explanation: Explanation,
        operator_reads: OperatorReads,
        operator_offers: OperatorOffers,
        heat: HeatMaps,
        readiness: Readiness,
        metrics: Metrics,
        vehicle_types: Collection[str],
        tile_url: str | None = None,
        tile_attribution: str = "",
    ) -> None:
        self._zones = zones
        self._coordinator = coordinator
        self._availability = availability
        self._availability_change = AvailabilityChange(availability, vehicle_types)
        self._positions = positions
        self._stranded_trips = stranded_trips
        self._reads = reads
        self._snapshots = snapshots
        self._explanation = explanation
        self._operator_reads = operator_reads
        self._operator_offers = operator_offers
        self._heat = heat
        self._readiness = readiness
        self._metrics = metrics
        self._vehicle_types = vehicle_types
        self._api_page = ApiPageOnDemand(vehicle_types)
        self._console = ConsolePages(tile_url)
        self._map = {"tile_url": tile_url, "attribution": tile_attribution}

    # --- customers

    async def create(self, caller: Caller, body: requests.NewTrip) -> Answer:
        requests.check_vehicle_type(body.vehicle_type, self._vehicle_types)
        command = create_trip(
            self._zones, caller,
            pickup=body.pickup.lat_lng(),
            dropoff=body.dropoff.lat_lng() if body.dropoff else None,
            vehicle_type=body.vehicle_type, zone=body.zone, trip_request_id=body.trip_request_id,
        )  # fmt: skip
        return await self._coordinator.execute(command)

    async def cancel(self, caller: Caller, body: requests.Cancellation) -> Answer:
        command = trip_action(
            self._zones, caller, "cancel", body.trip_request_id,
            version=body.version, reason=body.reason,
        )  # fmt: skip
        return await self._coordinator.execute(command)

    #: Which trips are whose is the command's business, not the address's.
    admin_cancel = cancel

    async def end(self, caller: Caller, body: requests.Ending) -> Answer:
        return await self._stranded_trips.end(
            caller, body.trip_request_id, version=body.version, reason=body.reason
        )

    admin_end = end

    async def customer_trip(self, actor: Actor, path: query_parameters.TripPath) -> Trip:
        return await self._reads.trip(actor, path.id)

    async def rides(self, actor: Actor, query: query_parameters.RidesQuery) -> dict[str, Any]:
        return await self._snapshots.rides(actor, query.after, query.limit)

    # --- drivers

    driver_trip = customer_trip

    async def driver_state(self, actor: Actor, _: query_parameters.NoParameters) -> dict[str, Any]:
        return await self._snapshots.driver_state(actor)

    # No coroutine of its own: it would be woken with the coordinator's.
    def trip_action(self, caller: Caller, body: requests.TripAction) -> Coroutine[Any, Any, Answer]:
        command = trip_action(
            self._zones, caller, body.action, body.trip_request_id,
            version=body.version, reason=body.reason,
        )  # fmt: skip
        return self._coordinator.execute(command)

    async def availability(self, caller: Caller, body: requests.Availability) -> Answer:
        return await self._availability_change.make(caller, body)

    async def location(self, caller: Caller, body: dict[str, Any]) -> Answer:
        return await self._positions.report(caller, requests.parse_positions(body))

    async def pending(self, actor: Actor, query: query_parameters.PendingQuery) -> dict[str, Any]:
        return {"trips": await self._reads.pending_near(actor, query.limit)}

    async def heat(self, actor: Actor, path: query_parameters.ZonePath) -> dict[str, Any]:
        return await self._heat.of(path.zone, in_detail=actor.role is Role.ADMIN)

    # --- admins

    async def assign(self, caller: Caller, body: requests.Assignment) -> Answer:
        command = assign_trip(
            self._zones, caller, body.trip_request_id, body.driver_id, version=body.version
        )
        return await self._coordinator.execute(command)

    async def offer(self, caller: Caller, body: requests.OfferByHand) -> Answer:
        return await self._operator_offers.offer(caller, body.trip_request_id, body.driver_id)

    async def force_offline(self, caller: Caller, body: requests.ForcedOffline) -> Answer:
        return await self._availability.force_offline(caller, body.driver_id)

    admin_trip = customer_trip

    async def zones(self, _: Actor, __: query_parameters.NoParameters) -> dict[str, Any]:
        return {"zones": self._operator_reads.zones(), "map": self._map}

    async def trips(self, _: Actor, query: query_parameters.TripsQuery) -> dict[str, Any]:
        return await self._operator_reads.trips(
            search=query.search, zone=query.zone, statuses=[query.status] if query.status else None,
            after=query.after, limit=query.limit,
        )  # fmt: skip

    async def zone_pending(self, _: Actor, query: query_parameters.ZonePendingQuery) -> dict[str, Any]:
        return await self._operator_reads.pending(query.zone, query.after, query.limit)

    async def dead_letters(self, _: Actor, query: query_parameters.DeadLettersQuery) -> dict[str, Any]:
        return await self._operator_reads.dead_letters(query.zone, query.after, query.limit)

    async def trip_offers(self, _: Actor, query: query_parameters.TripOffersQuery) -> dict[str, Any]:
        return await self._operator_reads.trip_offers(query.id, query.after, query.limit)

    async def drivers(self, _: Actor, query: query_parameters.DriversQuery) -> dict[str, Any]:
        return await self._operator_reads.drivers(
            search=query.search, zone=query.zone, only_online=query.online, after=query.after,
            limit=query.limit,
        )  # fmt: skip

    async def driver(self, _: Actor, path: query_parameters.DriverPath) -> dict[str, Any]:
        return await self._operator_reads.driver(path.driver_id)

    async def driver_offers(self, _: Actor, query: query_parameters.DriverOffersQuery) -> dict[str, Any]:
        return await self._operator_reads.driver_offers(query.driver_id, query.after, query.limit)

    async def timeline(self, actor: Actor, path: query_parameters.TripPath) -> dict[str, Any]:
        # The events last: they are then at least as new as the trip.
        trip, offers = await self._reads.trip(actor, path.id), await self._reads.offers(path.id)
        return {
            "trip_id": path.id,
            "trip": trip.to_json(),
            "events": await self._reads.timeline(path.id),
            "offers": offers,
            "races": await self._reads.races(path.id),
        }

    async def abandoned(self, _: Actor, query: query_parameters.AbandonedQuery) -> dict[str, Any]:
        return {"trips": await self._reads.abandoned(query.zone, query.older_than_s)}

    async def statistics(self, _: Actor, path: query_parameters.ZonePath) -> dict[str, Any]:
        return await self._reads.zone_statistics(path.zone)

    async def why(self, _: Actor, query: query_parameters.WhyQuery) -> dict[str, Any]:
        return await self._explanation.why(query.trip, query.driver)

    # --- everybody

    async def healthz(self, _: web.Request) -> HttpResponse:
        return json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> HttpResponse:
        is_ready, details = await self._readiness()
        if is_ready:
            return json_response(details)
        fields = {**details, "status": 503, "state": details.get("status")}
        return answer_response(refusal_answer(Refusal("service_unavailable", **fields)))

    async def metrics(self, _: web.Request) -> HttpResponse:
        return content_response(await self._metrics.render(), _METRICS_TYPE)

    async def openapi(self, _: web.Request) -> HttpResponse:
        return content_response((await self._api_page.get()).openapi, "application/json")

    async def asyncapi(self, _: web.Request) -> HttpResponse:
        return content_response((await self._api_page.get()).asyncapi, "application/json")

    async def docs(self, request: web.Request) -> HttpResponse:
        return (await self._api_page.get()).page(request)

    async def docs_file(self, request: web.Request) -> HttpResponse:
        return (await self._api_page.get()).file(request, request.match_info["file"])

    # --- operators

    async def root(self, _: web.Request) -> HttpResponse:
        # Relative, so that a proxy may serve all of this below a path of its own.
        return HttpResponse(302, b"", {hdrs.LOCATION: "console"})

    async def console(self, request: web.Request) -> HttpResponse:
        return self._console.page(request)

    async def console_file(self, request: web.Request) -> HttpResponse:
        return self._console.file(request, request.match_info["file"])
