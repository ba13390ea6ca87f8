"""The web application: every endpoint of the table with its handler, behind the boundary."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from dispatcher.web.boundary import Boundary, PublicHandler
from dispatcher.web.endpoints import ENDPOINTS, Endpoint
from dispatcher.web.fastpath import DIRECT_HANDLERS
from dispatcher.web.handlers import Handlers
from dispatcher.web.json_object import MAX_BODY

#: As aiohttp names the route of any address that no other route answers.
_WEBSOCKET: Final = "/ws"
_UNKNOWN_ADDRESS: Final = "/{rest}"


def build_application(
    handlers: Handlers,
    boundary: Boundary,
    *,
    websocket: PublicHandler | None = None,
    hidden: Collection[str] = (),
    extra_routes: Sequence[web.RouteDef] = (),
) -> web.Application:
    """The application, for `fastpath.make_runner`.

    `websocket` handles `GET /ws`; `hidden` are names of endpoints that are not there; handlers of
    `extra_routes` answer anybody.
    """
    routes = [
        _route(endpoint, handler)
        for endpoint in ENDPOINTS
        if endpoint.name not in hidden
        and (handler := _handler_of(endpoint, handlers, boundary, websocket)) is not None
    ]
    routes += [
        web.RouteDef(route.method, route.path, boundary.public(route.path, route.handler), route.kwargs)
        for route in extra_routes
    ]
    app = web.Application(client_max_size=MAX_BODY)
    app.add_routes(routes)
    unknown_address = boundary.unknown_address(_allowed_methods)
    for path in {route.path for route in routes if "{" not in route.path}:
        # Else another method would be asked of a trip that has this address for its id.
        app.router.add_route(hdrs.METH_ANY, path, unknown_address)
    app.router.add_route("*", _UNKNOWN_ADDRESS.replace("}", r":[\s\S]*}"), unknown_address)
    # Of changes and of sockets, since questions ask aiohttp's router for the parts of their path.
    app[DIRECT_HANDLERS] = {
        (route.method, route.path): route.handler
        for route in routes
        if route.path == _WEBSOCKET or (route.method == hdrs.METH_POST and "{" not in route.path)
    }
    return app


def _handler_of(
    endpoint: Endpoint, handlers: Handlers, boundary: Boundary, websocket: PublicHandler | None
) -> Handler | None:
    if endpoint.name == "websocket":
        if websocket is None:
            return None
        return boundary.public(endpoint.path, websocket, endpoint.name)
    handler = getattr(handlers, endpoint.name)
    if endpoint.body:
        return boundary.change(endpoint, handler)
    if endpoint.role is not None:
        return boundary.question(endpoint, handler)
    return boundary.public(endpoint.path, handler, endpoint.name)


def _route(endpoint: Endpoint, handler: Handler) -> web.RouteDef:
    # aiohttp's own pattern turns braces into 404; here they are a wrong id or zone.
    path = re.sub(r"{(\w+)}", r"{\1:[^/]+}", endpoint.path)
    add = web.get if endpoint.method == "GET" else web.post
    return add(path, handler)


async def _allowed_methods(request: web.Request) -> set[str]:
    """The methods that the request's address answers. An address of its own is no trip of that name."""
    methods: set[str] = set()
    for resource in request.app.router.resources():
        if resource.canonical == request.rel_url.raw_path:
            return {route.method for route in resource} - {hdrs.METH_ANY}
        if resource.canonical != _UNKNOWN_ADDRESS:
            methods |= (await resource.resolve(request))[1]
    return methods - {hdrs.METH_ANY}
