"""Around every request: who it is from, its id, and every refusal as problem+json."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from dispatcher.core.errors import OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.core.model import Actor, Role
from dispatcher.observe import Metrics
from dispatcher.service.limits import Limits
from dispatcher.service.presence import Presence
from dispatcher.store.scripts import LimitState
from dispatcher.web.answers import respond_refusal
from dispatcher.web.auth import Verifier

log = structlog.get_logger("dispatcher.web")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ActorHandler = Callable[[web.Request, Actor, str | None], Awaitable[web.StreamResponse]]
ClientIp = Callable[[web.BaseRequest], str | None]

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BY_STATUS: Final = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


class Gate:
    """Identifies callers; a call without a valid identity is limited by its address."""

    def __init__(
        self, *, verifier: Verifier, limits: Limits, presence: Presence, client_ip: ClientIp
    ) -> None:
        self._verifier = verifier
        self._limits = limits
        self._presence = presence
        self.client_ip = client_ip

    def only(self, *roles: Role) -> Callable[[ActorHandler], Handler]:
        """Lets users of these roles through to a handler."""
        allowed = frozenset(roles)

        def wrap(handler: ActorHandler) -> Handler:
            async def guarded(request: web.Request) -> web.StreamResponse:
                ip = self.client_ip(request)
                actor = await self._identify(request, ip)
                if actor.role not in allowed:
                    refusal = Refusal("wrong_role")
                    refusal.limit = await self._limits.check("general", actor, ip)
                    raise refusal
                if actor.role is Role.DRIVER:
                    agent = request.headers.get("User-Agent", "")
                    self._presence.seen_over_http(actor, ip, agent)
                return await handler(request, actor, ip)

            return guarded

        return wrap

    async def _identify(self, request: web.Request, ip: str | None) -> Actor:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            if scheme.lower() != "bearer":
                raise Refusal("missing_token")
            return self._verifier.verify(token.strip())[0]
        except Refusal as refusal:
            refusal.limit = await self._limits.check("anonymous", None, ip)
            raise

    async def count_stray(self, request: web.Request) -> LimitState | None:
        """A call of an address that does not exist counts like one without an identity."""
        return await self._limits.check("anonymous", None, self.client_ip(request))


def middleware(gate: Gate, metrics: Metrics) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The one middleware."""
    prefix, numbers = secrets.token_hex(4), itertools.count(1)

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{prefix}-{next(numbers)}"
        try:
            response = await handler(request)
        except Exception as error:
            response = await _refusal(request, error, gate, request_id)
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "-"
        metrics.observe(route, response.status, time.perf_counter() - started)
        return response

    return around


async def _refusal(
    request: web.Request, error: Exception, gate: Gate, request_id: str
) -> web.StreamResponse:
    try:
        if isinstance(error, web.HTTPException):
            code = _BY_STATUS.get(error.status, "malformed_request")
            stray = code in ("not_found", "method_not_allowed")
            limit = await gate.count_stray(request) if stray else None
            response = respond_refusal(Refusal(code), limit)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response
        raise error
    except Refusal as refusal:
        return respond_refusal(refusal)
    except OutcomeUnknown:
        log.warning("outcome unknown", request_id=request_id, path=request.path)
        return respond_refusal(Refusal("outcome_unknown", retry_after=1))
    except StoreUnavailable as away:
        log.warning("cannot decide", request_id=request_id, path=request.path, reason=str(away))
        return respond_refusal(Refusal("service_unavailable", retry_after=1))
    except Exception:
        log.exception("request failed", request_id=request_id, path=request.path)
        return respond_refusal(Refusal("internal_error"))
