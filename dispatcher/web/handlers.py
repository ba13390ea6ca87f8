"""The HTTP endpoints: parse, call, answer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from pydantic import BaseModel

from dispatcher.config import Settings
from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import LimitState
from dispatcher.observe.metrics import Metrics
from dispatcher.service.drivers import Drivers
from dispatcher.service.rate_limits import Limits
from dispatcher.service.trips import Trips
from dispatcher.web import idempotency_key, openapi, requests
from dispatcher.web.auth import Verifier, bearer
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.fastpath import FIXED
from dispatcher.web.middleware import make_around
from dispatcher.web.reply import Reply
from dispatcher.web.responses import (
    json_reply,
    refusal_reply,
    text_reply,
    to_reply,
    trip_reply,
)

Ready = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]
#: (actor, ip, user agent): a driver's app has called.
Seen = Callable[[Actor, str | None, str], None]
_Body = TypeVar("_Body", bound=BaseModel)

#: Any address that no other route answers.
_LOST: Final = "/{rest}"
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Deps:
    """What the handlers call. `websocket` handles `GET /ws`; `more` are routes of other modules."""

    settings: Settings
    verifier: Verifier
    trips: Trips
    drivers: Drivers
    limits: Limits
    ready: Ready
    seen: Seen | None = None
    websocket: Handler | None = None
    more: Sequence[web.RouteDef] = ()
    metrics: Metrics = field(default_factory=Metrics)


class Handlers:
    """One method an endpoint; the services answer."""

    def __init__(self, deps: Deps) -> None:
        self._verifier = deps.verifier
        self._trips = deps.trips
        self._drivers = deps.drivers
        self._limits = deps.limits
        self._ready = deps.ready
        self._seen = deps.seen
        self._metrics = deps.metrics
        self._key_required = deps.settings.idempotency_required
        self._ip = ClientIp(deps.settings.trusted_proxies)
        self._description = openapi.render()
        self._page = openapi.render_page()

    # --- customers

    async def create(self, request: web.Request) -> Reply:
        actor, ip, body, key = await self._change(request, Role.CUSTOMER, requests.NewTrip)
        return to_reply(
            await self._trips.create(
                actor,
                pickup=body.pickup.pair(),
                dropoff=body.dropoff.pair() if body.dropoff else None,
                vehicle_type=body.vehicle_type,
                zone=body.zone,
                trip_request_id=body.trip_request_id,
                key=key,
                ip=ip,
            )
        )

    async def cancel(self, request: web.Request) -> Reply:
        return await self._cancel(request, Role.CUSTOMER)

    async def admin_cancel(self, request: web.Request) -> Reply:
        return await self._cancel(request, Role.ADMIN)

    async def _cancel(self, request: web.Request, role: Role) -> Reply:
        actor, ip, body, key = await self._change(request, role, requests.Cancellation)
        return to_reply(
            await self._trips.act(
                actor, "cancel", body.trip_request_id,
                version=body.version, key=key, ip=ip, reason=body.reason,
            )
        )  # fmt: skip

    async def customer_trip(self, request: web.Request) -> Reply:
        return await self._trip(request, Role.CUSTOMER)

    # --- drivers

    async def driver_trip(self, request: web.Request) -> Reply:
        return await self._trip(request, Role.DRIVER)

    async def trip_action(self, request: web.Request) -> Reply:
        actor, ip, body, key = await self._change(request, Role.DRIVER, requests.TripAction)
        return to_reply(
            await self._trips.act(
                actor, body.action, body.trip_request_id,
                version=body.version, key=key, ip=ip, reason=body.reason,
            )
        )  # fmt: skip

    async def availability(self, request: web.Request) -> Reply:
        actor, ip, body, key = await self._change(request, Role.DRIVER, requests.Availability)
        return to_reply(
            await self._drivers.set_availability(
                actor,
                availability_status=body.availability_status,
                is_online=body.is_online,
                zone=body.zone,
                vehicle_type=body.vehicle_type,
                location=body.location.pair() if body.location else None,
                key=key,
                ip=ip,
            )
        )

    async def location(self, request: web.Request) -> Reply:
        actor, ip = await self._identify(request)
        try:
            _require(actor, Role.DRIVER)
            points = requests.check_fixes(await requests.read_object(request))
        except Refusal as refusal:
            refusal.limit = await self._limits.check("general", actor, ip)
            raise
        return to_reply(await self._drivers.positions(actor, points, ip=ip))

    async def pending(self, request: web.Request) -> Reply:
        actor, query, limit = await self._look(request, Role.DRIVER, requests.PendingQuery)
        with _counted(limit):
            trips = await self._drivers.pending_near(actor, query.limit)
        return json_reply({"trips": trips}, limit)

    # --- admins

    async def timeline(self, request: web.Request) -> Reply:
        _, path, limit = await self._look(request, Role.ADMIN, requests.TripPath)
        with _counted(limit):
            events = await self._trips.timeline(path.id)
        return json_reply({"trip_id": path.id, "events": events}, limit)

    async def abandoned(self, request: web.Request) -> Reply:
        _, query, limit = await self._look(request, Role.ADMIN, requests.AbandonedQuery)
        return json_reply({"trips": await self._trips.abandoned(query.zone, query.older_than_s)}, limit)

    async def statistics(self, request: web.Request) -> Reply:
        _, path, limit = await self._look(request, Role.ADMIN, requests.ZonePath)
        with _counted(limit):
            return json_reply(await self._trips.zone_statistics(path.zone), limit)

    # --- everybody

    async def healthz(self, _: web.Request) -> Reply:
        return json_reply({"status": "ok"})

    async def readyz(self, _: web.Request) -> Reply:
        is_ready, state = await self._ready()
        if is_ready:
            return json_reply({"status": "ready", **state})
        return refusal_reply(
            Refusal("service_unavailable", **{**state, "status": 503, "state": state.get("status")})
        )

    async def metrics(self, _: web.Request) -> Reply:
        return text_reply(self._metrics.render(), _METRICS_TYPE)

    async def openapi(self, _: web.Request) -> Reply:
        return text_reply(self._description, "application/json")

    async def docs(self, _: web.Request) -> Reply:
        return text_reply(
            self._page,
            "text/html; charset=utf-8",
            **{"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    async def lost(self, request: web.Request) -> Reply:
        """No such address, or not with this method."""
        allowed: set[str] = set()
        for resource in request.app.router.resources():
            if resource.canonical != _LOST:
                allowed |= (await resource.resolve(request))[1]
        refusal, ip = Refusal("method_not_allowed" if allowed else "not_found"), self._ip(request)
        try:
            actor, _ = self._verifier.verify(bearer(request.headers.get(hdrs.AUTHORIZATION)))
        except Refusal:
            refusal.limit = await self._count_stranger(ip)
        else:
            refusal.limit = await self._limits.check("general", actor, ip)
        reply = refusal_reply(refusal)
        if allowed:
            reply.headers[hdrs.ALLOW] = ", ".join(sorted(allowed))
        return reply

    # --- what they share

    async def _identify(self, request: web.Request) -> tuple[Actor, str | None]:
        """Who calls, and from which address. Raises Refusal."""
        headers, ip = request.headers, self._ip(request)
        try:
            actor, _ = self._verifier.verify(bearer(headers.get(hdrs.AUTHORIZATION)))
        except Refusal as refusal:
            refusal.limit = await self._count_stranger(ip)
            raise
        if self._seen is not None and actor.role is Role.DRIVER:
            self._seen(actor, ip, headers.get(hdrs.USER_AGENT, ""))
        return actor, ip

    async def _count_stranger(self, ip: str | None) -> LimitState | None:
        try:
            return await self._limits.check("anonymous", None, ip)
        except StoreUnavailable:
            return None  # a wrong token stays wrong, whoever is away

    async def _change(
        self, request: web.Request, role: Role, kind: type[_Body]
    ) -> tuple[Actor, str | None, _Body, IdempotencyKey | None]:
        """Everything about a change. The service counts it; what never gets there is counted here."""
        actor, ip = await self._identify(request)
        try:
            _require(actor, role)
            data = await requests.read_object(request)
            body = requests.check(kind, data)
            key = idempotency_key.read_key(
                request.headers, actor, request.path, data, required=self._key_required
            )
        except Refusal as refusal:
            refusal.limit = await self._limits.check("general", actor, ip)
            raise
        return actor, ip, body, key

    async def _look(
        self, request: web.Request, role: Role, kind: type[_Body]
    ) -> tuple[Actor, _Body, LimitState | None]:
        """Everything about a question, which is counted here. A path's parts win over the query."""
        actor, ip = await self._identify(request)
        limit = await self._limits.check("general", actor, ip)
        with _counted(limit):
            _require(actor, role)
            return actor, requests.check(kind, {**request.query, **request.match_info}), limit

    async def _trip(self, request: web.Request, role: Role) -> Reply:
        actor, path, limit = await self._look(request, role, requests.TripPath)
        with _counted(limit):
            trip = await self._trips.read(actor, path.id)
        return trip_reply(request, {"trip": trip.to_json()}, trip.version, limit)


@contextlib.contextmanager
def _counted(limit: LimitState | None) -> Iterator[None]:
    """A refusal in here is of a call that `limit` has counted."""
    try:
        yield
    except Refusal as refusal:
        refusal.limit = limit
        raise


def _require(actor: Actor, role: Role) -> None:
    if actor.role is not role:
        raise Refusal("wrong_role", f"Only a {role} may do this.")


def routes(deps: Deps) -> list[web.RouteDef]:
    """The routes of the table of endpoints, and those that were given."""
    handlers, around = Handlers(deps), make_around(deps.metrics)
    found: list[web.RouteDef] = []
    for endpoint in ENDPOINTS:
        handler = deps.websocket if endpoint.name == "websocket" else getattr(handlers, endpoint.name)
        if handler is not None:
            add = web.get if endpoint.method == "GET" else web.post
            # aiohttp's own pattern turns braces into 404; here they are a wrong id or zone.
            path = re.sub(r"{(\w+)}", r"{\1:[^/]+}", endpoint.path)
            found.append(add(path, around(endpoint.path, handler)))
    found += [
        web.RouteDef(given.method, given.path, around(given.path, given.handler), given.kwargs)
        for given in deps.more
    ]
    return [*found, web.route("*", _LOST.replace("}", ":.*}"), around("", handlers.lost))]


def build(deps: Deps) -> web.Application:
    """The application; `server.make_runner` runs it."""
    app = web.Application(client_max_size=requests.MAX_BODY)
    found = routes(deps)
    app.add_routes(found)
    # Of changes, since questions ask aiohttp's router for the parts of their path.
    app[FIXED] = {r.path: r.handler for r in found if r.method == "POST" and "{" not in r.path}
    return app
