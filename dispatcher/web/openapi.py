"""The description of the API (OpenAPI 3.1) and its page, made from the models and the routes."""

from __future__ import annotations

import html
import re
from typing import Any, Final

import orjson
from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dispatcher import __version__
from dispatcher.core.errors import PROBLEMS
from dispatcher.web import handlers
from dispatcher.web.requests import Availability, CancelTrip, CreateTrip, Location, TripAction

#: What each endpoint takes and does; a test holds the keys against the routes.
SUMMARIES: Final[dict[tuple[str, str], tuple[type[BaseModel] | None, str]]] = {
    ("POST", handlers.CREATE): (CreateTrip, "Create a trip (customer)"),
    ("POST", handlers.CANCEL): (CancelTrip, "Cancel an own trip (customer)"),
    ("GET", "/api/customer/ride/{id}"): (None, "An own trip (customer)"),
    ("POST", handlers.ACTION): (TripAction, "Accept, decline, arrive, start, complete, cancel (driver)"),
    ("POST", handlers.LOCATION): (Location, "Positions, one or a batch (driver)"),
    ("POST", handlers.AVAILABILITY): (Availability, "Availability (driver)"),
    ("GET", "/api/driver/ride/pending"): (None, "Pending trips nearby, nearest first (driver)"),
    ("GET", "/api/driver/ride/{id}"): (None, "An own trip (driver)"),
    ("POST", handlers.ADMIN_CANCEL): (CancelTrip, "Cancel any trip (admin)"),
    ("GET", "/api/admin/ride/{id}/timeline"): (None, "The history of a trip (admin)"),
    ("GET", "/api/admin/rides/abandoned"): (None, "Trips taken long ago, not started (admin)"),
    ("GET", "/api/admin/zones/{zone}/statistics"): (None, "Live trips of a zone by state (admin)"),
    ("GET", "/healthz"): (None, "Liveness"),
    ("GET", "/readyz"): (None, "Readiness"),
    ("GET", "/metrics"): (None, "Metrics for Prometheus"),
    ("GET", "/ws"): (None, "The WebSocket of driver and customer apps"),
    ("GET", "/openapi.json"): (None, "This description"),
    ("GET", "/docs"): (None, "This description as a page"),
}


def describe() -> list[web.RouteDef]:
    """Routes for `/openapi.json` and `/docs`."""
    document = orjson.dumps(openapi(), option=orjson.OPT_INDENT_2)
    page = _page().encode()

    async def as_json(_: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    async def as_page(_: web.Request) -> web.Response:
        return web.Response(body=page, content_type="text/html", charset="utf-8")

    return [web.get("/openapi.json", as_json), web.get("/docs", as_page)]


def openapi() -> dict[str, Any]:
    """The document for all routes."""
    models: list[tuple[type[BaseModel], Any]] = [
        (model, "validation") for model in {m for m, _ in SUMMARIES.values() if m}
    ]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for method, path in sorted(SUMMARIES):
        model, summary = SUMMARIES[method, path]
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {
                "default": {
                    "description": "A refusal",
                    "content": {
                        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                    },
                },
                "2XX": {"description": "Done"},
            },
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"{(\w+)}", path)
            ],
        }
        if path.startswith("/api/"):
            operation["security"] = [{"bearer": []}]
        if model is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
                },
            }
            if model is not Location:
                operation["parameters"].append({"$ref": "#/components/parameters/IdempotencyKey"})
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "dispatcher", "version": __version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "parameters": {
                "IdempotencyKey": {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
                }
            },
            "schemas": {
                **schemas.get("$defs", {}),
                "Problem": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "response_code", "message"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "response_code": {"type": "string", "enum": sorted(PROBLEMS)},
                        "message": {"type": "string"},
                        "retry_after": {"type": "integer"},
                        "version": {"type": "integer"},
                    },
                },
            },
        },
    }


def _page() -> str:
    calls = "".join(
        f"<tr><td><code>{method}</code></td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(summary)}</td></tr>"
        for (method, path), (_, summary) in sorted(SUMMARIES.items(), key=lambda item: item[0][1])
    )
    codes = "".join(
        f"<tr><td>{p.status}</td><td><code>{code}</code></td><td>{html.escape(p.message)}</td></tr>"
        for code, p in sorted(PROBLEMS.items(), key=lambda item: (item[1].status, item[0]))
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>dispatcher API</title><style>"
        "body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ccc;padding:.3rem;"
        "text-align:left;vertical-align:top}</style><h1>dispatcher API</h1>"
        "<p>Schemas: <a href=/openapi.json>openapi.json</a></p><h2>Calls</h2><table>"
        f"{calls}</table><h2>Refusals</h2><table>{codes}</table></html>"
    )
