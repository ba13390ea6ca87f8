"""The HTTP endpoints: each parses, calls a service, and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web
from prometheus_client import generate_latest
from pydantic import BaseModel

from dispatcher.core.errors import Refusal
from dispatcher.core.model import TRIP_ID, ZONE, Actor, Role
from dispatcher.observe import Metrics
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.service.drivers import Drivers
from dispatcher.service.limits import Limits
from dispatcher.service.trips import Trips
from dispatcher.web.answers import respond, respond_json
from dispatcher.web.idempotency import read_key, scope_key
from dispatcher.web.middleware import Gate
from dispatcher.web.requests import (
    Availability,
    CancelTrip,
    CreateTrip,
    Location,
    TripAction,
    check,
    parse_object,
)

CREATE: Final = "/api/customer/ride/create"
CANCEL: Final = "/api/customer/ride/cancel"
ADMIN_CANCEL: Final = "/api/admin/ride/cancel"
ACTION: Final = "/api/driver/ride/trip-action"
LOCATION: Final = "/api/driver/ride/location"
AVAILABILITY: Final = "/api/driver/availability"

_PENDING_MOST: Final = 50
_HOUR_S: Final = 3_600

Ready = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Deps:
    """What the endpoints work with."""

    gate: Gate
    trips: Trips
    drivers: Drivers
    limits: Limits
    metrics: Metrics
    ready: Ready
    keys_required: bool


class Api:
    """The endpoints as methods; `routes` binds them to their addresses and roles."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    def routes(self) -> list[web.RouteDef]:
        """All HTTP endpoints but the WebSocket and the description of the API."""
        driver = self._deps.gate.only(Role.DRIVER)
        customer = self._deps.gate.only(Role.CUSTOMER)
        admin = self._deps.gate.only(Role.ADMIN)
        return [
            web.post(CREATE, customer(self.create)),
            web.post(CANCEL, customer(self.cancel)),
            web.get("/api/customer/ride/{id}", customer(self.read)),
            web.post(ACTION, driver(self.action)),
            web.post(LOCATION, driver(self.location)),
            web.post(AVAILABILITY, driver(self.availability)),
            web.get("/api/driver/ride/pending", driver(self.pending)),
            web.get("/api/driver/ride/{id}", driver(self.read)),
            web.post(ADMIN_CANCEL, admin(self.cancel)),
            web.get("/api/admin/ride/{id}/timeline", admin(self.timeline)),
            web.get("/api/admin/rides/abandoned", admin(self.abandoned)),
            web.get("/api/admin/zones/{zone}/statistics", admin(self.statistics)),
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
        ]

    async def _document(self, request: web.Request, model: type[Body]) -> tuple[dict[str, Any], Body]:
        if request.content_type not in ("application/json", "application/octet-stream") and (
            request.headers.get("Content-Type") != "application/x-www-form-urlencoded"
        ):
            # curl -d says it is a form; what counts is whether it is JSON.
            raise Refusal("unsupported_media_type")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal("unsupported_media_type")
        document = parse_object(await request.read())
        return document, check(model, document)

    def _key(self, request: web.Request) -> str | None:
        values = request.headers.getall("Idempotency-Key", ())
        return read_key(values, required=self._deps.keys_required)

    async def create(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        key = self._key(request)
        document, body = await self._document(request, CreateTrip)
        answer = await self._deps.trips.create(
            actor,
            pickup=(body.pickup.lat, body.pickup.lng),
            dropoff=(body.dropoff.lat, body.dropoff.lng) if body.dropoff else None,
            vehicle_type=body.vehicle_type,
            zone=body.zone,
            trip_request_id=body.trip_request_id,
            key=scope_key(actor, CREATE, key, document),
            ip=ip,
        )
        return respond(answer, key)

    async def cancel(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        key = self._key(request)
        document, body = await self._document(request, CancelTrip)
        answer = await self._deps.trips.act(
            actor,
            "cancel",
            body.trip_request_id,
            version=body.version,
            key=scope_key(actor, request.path, key, document),
            ip=ip,
            reason=body.reason,
        )
        return respond(answer, key)

    async def action(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        key = self._key(request)
        document, body = await self._document(request, TripAction)
        return respond(await self.act(actor, body, scope_key(actor, ACTION, key, document), ip), key)

    async def act(self, actor: Actor, body: TripAction, key: Any, ip: str | None) -> Answer:
        """A driver's step, over either channel."""
        return await self._deps.trips.act(
            actor, body.action, body.trip_request_id, version=body.version, key=key, ip=ip
        )

    async def location(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        _, body = await self._document(request, Location)
        return respond(await self._deps.drivers.positions(actor, body.fixes(), ip=ip))

    async def availability(
        self, request: web.Request, actor: Actor, ip: str | None
    ) -> web.StreamResponse:
        key = self._key(request)
        document, body = await self._document(request, Availability)
        answer = await self._deps.drivers.set_availability(
            actor,
            availability_status=body.availability_status,
            is_online=body.is_online,
            zone=body.zone,
            vehicle_type=body.vehicle_type,
            location=(body.location.lat, body.location.lng) if body.location else None,
            key=scope_key(actor, AVAILABILITY, key, document),
            ip=ip,
        )
        return respond(answer, key)

    async def frame_action(self, actor: Actor, frame: dict[str, Any], ip: str | None) -> Answer:
        """A `trip_action` frame: the rules, keys and limits of HTTP; either channel may retry."""
        if actor.role is not Role.DRIVER:
            return refusal_answer(Refusal("wrong_role"))
        given = frame.get("idempotency_key")
        if given is not None and not isinstance(given, str):
            raise Refusal("invalid_idempotency_key")
        key = read_key([] if given is None else [given], required=self._deps.keys_required)
        document = {k: v for k, v in frame.items() if k in TripAction.model_fields}
        body = check(TripAction, document)
        return await self.act(actor, body, scope_key(actor, ACTION, key, document), ip)

    async def frame_location(self, actor: Actor, frame: dict[str, Any], ip: str | None) -> Answer:
        """A `location` frame."""
        if actor.role is not Role.DRIVER:
            return refusal_answer(Refusal("wrong_role"))
        body = check(Location, frame)
        return await self._deps.drivers.positions(actor, body.fixes(), ip=ip)

    async def pending(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        limit = await self._deps.limits.check("general", actor, ip)
        return respond_json(
            {"trips": await self._deps.drivers.pending_near(actor, _PENDING_MOST)}, limit
        )

    async def read(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        limit = await self._deps.limits.check("general", actor, ip)
        trip = await self._deps.trips.read(actor, _trip_id(request))
        response = respond_json({"trip": trip.to_json()}, limit)
        response.headers["ETag"] = f'"{trip.version}"'
        if request.headers.get("If-None-Match") == response.headers["ETag"]:
            response.set_status(304)
            response.body = None
        return response

    async def timeline(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        limit = await self._deps.limits.check("general", actor, ip)
        return respond_json({"events": await self._deps.trips.timeline(_trip_id(request))}, limit)

    async def abandoned(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        limit = await self._deps.limits.check("general", actor, ip)
        older = request.query.get("older_than_s", str(_HOUR_S))
        if not older.isascii() or not older.isdigit() or len(older) > 9:
            raise Refusal("invalid_body", "older_than_s: takes whole seconds.")
        zone = request.query.get("zone")
        if zone is not None and not ZONE.fullmatch(zone):
            raise Refusal("invalid_zone")
        return respond_json({"trips": await self._deps.trips.abandoned(zone, int(older))}, limit)

    async def statistics(self, request: web.Request, actor: Actor, ip: str | None) -> web.StreamResponse:
        limit = await self._deps.limits.check("general", actor, ip)
        return respond_json(await self._deps.trips.zone_statistics(request.match_info["zone"]), limit)

    async def healthz(self, _: web.Request) -> web.StreamResponse:
        """The process lives."""
        return respond_json({"status": "ok"}, None)

    async def readyz(self, _: web.Request) -> web.StreamResponse:
        """Whether it can decide."""
        ready, details = await self._deps.ready()
        return respond_json(details, None, 200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        """For Prometheus."""
        text = generate_latest(self._deps.metrics.registry)
        return web.Response(body=text, content_type="text/plain", charset="utf-8")


def _trip_id(request: web.Request) -> str:
    trip_id = request.match_info["id"]
    if not TRIP_ID.fullmatch(trip_id):
        raise Refusal("invalid_trip_id")
    return trip_id
