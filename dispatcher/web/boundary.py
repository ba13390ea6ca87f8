"""Around every handler: who calls, in which role, counted where; request id, problems and metrics.

What a handler returns was counted by the service that made it. What a handler raises is counted
here. Questions are counted before they are asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitClass
from dispatcher.core.trips import Trip
from dispatcher.observe.call_ids import REQUEST_ID, TRIP_ID
from dispatcher.observe.crowd_lines import CROWD_LINES
from dispatcher.observe.series import ACTION_SECONDS, ACTIONS
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.service.deadlines import Deadlines
from dispatcher.service.rate_limits import RateLimits
from dispatcher.web.action_counts import HTTP, TRIP_ACTION, UNKNOWN, WORDS, count_action
from dispatcher.web.auth import Authenticator, require_role
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.endpoints import Endpoint
from dispatcher.web.idempotency_key import IDEMPOTENCY_KEY, read_key
from dispatcher.web.problems import counted_answer, refusal_of, uncounted_answer
from dispatcher.web.request_body import json_object_at_hand, read_json_object
from dispatcher.web.request_ids import REQUEST_ID_HEADER, name_trip, request_id_of
from dispatcher.web.requests import parse_model
from dispatcher.web.responses import (
    HttpResponse,
    answer_response,
    json_response,
    refusal_response,
    trip_response,
)
from dispatcher.web.traced_calls import traced

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_log = structlog.get_logger("dispatcher.web")

#: (actor, ip, user agent): a driver's app has called.
OnDriverCall = Callable[[Actor, str | None, str], None]
#: The handler of a change, given its body: a model, or the object itself where there is no one model.
ChangeHandler = Callable[[Caller, Any], Awaitable[Answer]]
#: The handler of a question, given its parameters: returns a trip, or a JSON document.
QuestionHandler = Callable[[Actor, Any], Awaitable[Trip | dict[str, Any]]]
#: A handler that answers anybody, or one that has a WebSocket of its own.
PublicHandler = Callable[[web.Request], Awaitable[HttpResponse | web.StreamResponse]]

#: Slower requests are logged. A commit may take 5 s; from 1 s on, somebody should know.
_SLOW_S: Final = 1.0


class Boundary:
    """Makes aiohttp's handlers of ours.

    Not by aiohttp's middlewares: their machinery costs as much as all that is done here.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        client_ip: ClientIp,
        limits: RateLimits,
        deadline_s: float,
        idempotency_required: bool = False,
        on_driver_call: OnDriverCall | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._client_ip = client_ip
        self._limits = limits
        #: Of questions and positions; the coordinator keeps that of changes.
        self._deadlines = Deadlines(deadline_s)
        self._idempotency_required = idempotency_required
        self._on_driver_call = on_driver_call
        self._tracer = tracer

    def change(self, endpoint: Endpoint, handler: ChangeHandler) -> Handler:
        """A call with a body. The service counts it; what never gets there is counted here."""
        role, path, has_word = endpoint.role, endpoint.path, endpoint.name == TRIP_ACTION
        model = endpoint.body[0] if len(endpoint.body) == 1 else None
        takes_key, key_required = endpoint.is_change, self._idempotency_required
        # A new trip is named by its command: the client may have sent a part of its id.
        names_trip = model is not None and "trip_request_id" in model.model_fields
        names_trip = names_trip and endpoint.name != "create"
        assert role is not None
        finish = _finisher(path, endpoint.name)

        # One coroutine for all: whatever an answer waits for wakes every one around it.
        async def answered(request: web.Request) -> Any:
            started_s, request_id = _begin(request)
            actor, ip, key, word = None, self._client_ip(request), None, None
            data: dict[str, Any] = {}
            try:
                actor = self._identify(request, ip)
                require_role(actor, role)
                found = json_object_at_hand(request)
                data = await read_json_object(request) if found is None else found
                body = data if model is None else parse_model(model, data)
                if names_trip:
                    TRIP_ID.set(data["trip_request_id"])
                if has_word:
                    word = getattr(body, "action", None)
                if takes_key:
                    key = read_key(request.headers, actor, path, data, required=key_required)
                answering = handler(Caller(actor, key, ip), body)
                answer = await (answering if takes_key else self._deadlines.keep(answering))
                response = answer_response(answer)
            except ConnectionError:
                raise  # the client is gone
            except Refusal as refusal:
                if names_trip:
                    name_trip(data.get("trip_request_id"))
                try:
                    response = await self._refuse(refusal, actor, ip)
                except Exception as error:
                    response = _problem_response(request, error)
            except Exception as error:
                response = _problem_response(request, error)
            if word in WORDS:
                response.action = word
            return finish(request, response, started_s, request_id)

        return self._traced(path, answered)

    def question(self, endpoint: Endpoint, handler: QuestionHandler) -> Handler:
        """A call that changes nothing. A path's parts win over the query."""
        role, also, model = endpoint.role, endpoint.also, endpoint.query or endpoint.path_parts
        assert role is not None
        assert model is not None
        trip_part, trip_parameter = "{id}" in endpoint.path, "trip" in model.model_fields

        async def answer(request: web.Request, actor: Actor, ip: str | None) -> HttpResponse:
            limit = await self._limits.count(LimitClass.GENERAL, actor, ip)
            try:
                require_role(actor, role, also)
                parameters = parse_model(model, {**request.query, **request.match_info})
                found = await handler(actor, parameters)
            except Refusal as refusal:
                return refusal_response(refusal, refusal_answer(refusal, limit))
            if isinstance(found, Trip):
                return trip_response(request, found, limit)
            return json_response(found, limit)

        async def respond(request: web.Request) -> HttpResponse:
            actor, ip = None, self._client_ip(request)
            if trip_part:
                name_trip(request.match_info["id"])
            elif trip_parameter:
                name_trip(request.query.get("trip"))
            try:
                actor = self._identify(request, ip)
                return await self._deadlines.keep(answer(request, actor, ip))
            except Refusal as refusal:
                return await self._refuse(refusal, actor, ip)

        return self._traced(endpoint.path, _observed(endpoint.path, endpoint.name, respond))

    def public(self, route: str, handler: PublicHandler, action: str | None = None) -> Handler:
        """A call of anybody; only what is refused is counted. `action` is its name in the metrics."""

        async def respond(request: web.Request) -> HttpResponse | web.StreamResponse:
            try:
                return await handler(request)
            except Refusal as refusal:
                return await self._refuse(refusal, None, self._client_ip(request))

        return _observed(route, action or route, respond)

    def unknown_address(self, allowed_methods: Callable[[web.Request], Awaitable[set[str]]]) -> Handler:
        """No such address, or not with this method."""

        async def respond(request: web.Request) -> HttpResponse:
            methods = await allowed_methods(request)
            try:
                actor = self._authenticator.identify(request.headers).actor
            except Refusal:
                actor = None
            refusal = Refusal("method_not_allowed" if methods else "not_found")
            response = await self._refuse(refusal, actor, self._client_ip(request))
            if response.status == 405:
                response.headers[hdrs.ALLOW] = ", ".join(sorted(methods))
            return response

        return _observed("", UNKNOWN, respond)

    def _identify(self, request: web.Request, ip: str | None) -> Actor:
        """Who calls. Raises Refusal missing_token, invalid_token or token_expired."""
        headers = request.headers
        actor = self._authenticator.identify(headers).actor
        if actor.role is Role.DRIVER and self._on_driver_call is not None:
            self._on_driver_call(actor, ip, headers.get(hdrs.USER_AGENT, ""))
        return actor

    async def _refuse(self, refusal: Refusal, actor: Actor | None, ip: str | None) -> HttpResponse:
        return refusal_response(refusal, await counted_answer(refusal, self._limits, actor, ip))

    def _traced(self, route: str, handler: Handler) -> Handler:
        return handler if self._tracer is None else traced(self._tracer, route, handler)


def _observed(route: str, action: str, respond: PublicHandler) -> Handler:
    """Adds request id, problems, metrics and log lines; metrics are named after the action."""
    finish = _finisher(route, action)

    async def answered(request: web.Request) -> Any:
        started_s, request_id = _begin(request)
        try:
            response = await respond(request)
        except ConnectionError:
            raise  # the client is gone
        except Exception as error:
            response = _problem_response(request, error)
        if not isinstance(response, HttpResponse):  # a WebSocket that has ended
            return response
        return finish(request, response, started_s, request_id)

    return answered


def _begin(request: web.Request) -> tuple[float, str]:
    """A call has come: when, by the clock of `finish`, and its id, which log lines carry from now on."""
    request_id = request_id_of(request._message.headers)
    REQUEST_ID.set(request_id)
    TRIP_ID.set("")
    return time.perf_counter(), request_id


def _finisher(
    route: str, action: str
) -> Callable[[web.Request, HttpResponse, float, str], HttpResponse]:
    """What completes a response, counts it and logs it where somebody should know."""
    clock, numbers = time.perf_counter, ACTIONS.numbers
    observe_own = ACTION_SECONDS.of(HTTP, action).observe

    def finish(
        request: web.Request, response: HttpResponse, started_s: float, request_id: str
    ) -> HttpResponse:
        headers = response.headers
        headers[REQUEST_ID_HEADER] = request_id
        key = request._message.headers.get(IDEMPOTENCY_KEY)
        if key is not None and key.isascii() and key.isprintable():
            headers[IDEMPOTENCY_KEY] = key
        took_s, status = clock() - started_s, response.status
        if response.action is None:
            numbers[HTTP, action, response.code] += 1
            observe_own(took_s)
        else:
            count_action(HTTP, response.action, response.code, took_s)
        if took_s > _SLOW_S or status >= 500:
            event = "Slow request" if status < 500 else "Request not served"
            fields = {
                "method": request.method, "route": route, "status": status,
                "took_ms": round(took_s * 1000), "request_id": request_id,
            }  # fmt: skip
            # In an outage, they are all of the calls.
            CROWD_LINES.add((event, route, status), logging.WARNING, "dispatcher.web", event, fields)
        return response

    return finish


def _problem_response(request: web.Request, error: Exception) -> HttpResponse:
    refusal = refusal_of(error)
    if refusal.code == "internal_error":
        _log.error("Request failed", request_id=REQUEST_ID.get(), path=request.path, exc_info=error)
    return refusal_response(refusal, uncounted_answer(refusal))
