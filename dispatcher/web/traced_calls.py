"""A span around each call, which goes on with the trace of its `traceparent`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Handler

from dispatcher.web.request_ids import REQUEST_ID_HEADER

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def traced(tracer: Tracer, route: str, answered: Handler) -> Handler:
    """The handler within a span of its own, named as OpenTelemetry's conventions for HTTP say."""
    # ruff: noqa: PLC0415  it is there, since there is a tracer
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, StatusCode

    async def answered_in_span(request: web.Request) -> Any:
        with tracer.start_as_current_span(
            f"{request.method} {route}",
            context=extract(request.headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": request.method, "http.route": route},
        ) as span:
            response: Any = await answered(request)
            span.set_attribute("http.response.status_code", response.status)
            span.set_attribute("dispatcher.request_id", response.headers[REQUEST_ID_HEADER])
            if response.status >= 500:
                span.set_status(StatusCode.ERROR)
            return response

    return answered_in_span
