"""The API's description (OpenAPI 3.1), made from the table of endpoints, the models and the problems."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dispatcher.core.errors import PROBLEMS
from dispatcher.web.endpoints import ENDPOINTS, Endpoint

_SCHEMAS: Final = "#/components/schemas/"
_BODY_CODES: Final = (
    "malformed_request", "malformed_json", "invalid_body", "body_too_large", "unsupported_media_type",
)  # fmt: skip
_IDEMPOTENCY_CODES: Final = (
    "invalid_idempotency_key", "duplicate_idempotency_key", "missing_idempotency_key",
    "request_in_progress", "idempotency_key_reused",
)  # fmt: skip
_GENERAL_CODES: Final = ("rate_limit_exceeded", "internal_error", "service_unavailable")
_IDENTITY_CODES: Final = ("missing_token", "invalid_token", "token_expired", "wrong_role")
_FIELD_CODES: Final = {
    "NewTrip": ("invalid_location", "invalid_trip_id", "invalid_zone", "invalid_vehicle_type"),
    "Cancellation": ("invalid_trip_id", "invalid_version"),
    "Ending": ("invalid_trip_id", "invalid_version"),
    "TripAction": ("unknown_action", "invalid_trip_id", "invalid_version"),
    "Fix": ("invalid_location",),
    "Assignment": ("invalid_trip_id", "invalid_version", "invalid_driver_id"),
    "ForcedOffline": ("invalid_driver_id",),
    "Availability": ("invalid_location", "invalid_zone", "invalid_vehicle_type"),
}
#: Endpoints that answer a trip with the `ETag` of its version.
_TRIPS: Final = ("customer_trip", "driver_trip", "admin_trip")
_LIMIT_HEADERS: Final = {
    "X-RateLimit-Limit": "Calls that the limit admits in its window",
    "X-RateLimit-Remaining": "Calls that remain",
    "X-RateLimit-Reset": "When it eases, in s since the epoch",
    "RateLimit-Policy": "The limit, as the IETF draft writes it",
    "RateLimit": "What is left of it, as the IETF draft writes it",
}


def codes_of(endpoint: Endpoint) -> list[str]:
    """Every `response_code` of a refusal that the endpoint can answer."""
    if not endpoint.path.startswith("/api/"):
        return list(endpoint.codes)
    codes = [*_IDENTITY_CODES, *_GENERAL_CODES, *endpoint.codes]
    if endpoint.body:
        codes += (*_BODY_CODES, *_FIELD_CODES[endpoint.body[0].__name__])
    if endpoint.is_change:
        codes += (*_IDEMPOTENCY_CODES, "outcome_unknown")
    if endpoint.query is not None:
        codes += ("invalid_body", "invalid_zone")
    if "{id}" in endpoint.path:
        codes.append("invalid_trip_id")
    if "{driver_id}" in endpoint.path:
        codes.append("invalid_driver_id")
    if "{zone}" in endpoint.path:
        codes.append("invalid_zone")
    return codes


def describe(vehicle_types: Collection[str]) -> dict[str, Any]:
    """The description as a document, with the vehicle types that are set."""
    models = dict.fromkeys(m for e in ENDPOINTS for m in (*e.body, *((e.query,) if e.query else ())))
    _, schemas = models_json_schema(
        [(m, "validation") for m in models], ref_template=_SCHEMAS + "{model}"
    )
    for schema in schemas["$defs"].values():
        for part in _texts(schema.get("properties", {}).get("vehicle_type", {})):
            part["enum"] = [*vehicle_types]
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dispatcher",
            "version": version("redis-trip-dispatcher"),
            "description": "Riders create trips, drivers accept them, and exactly one driver wins.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Problem": _problem_schema()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _problem_schema() -> dict[str, Any]:
    """RFC 9457, with what apps switch on."""
    text = {"type": "string"}
    number = {"type": "integer"}
    return {
        "type": "object",
        "description": "Any answer of 400 and above.",
        "required": ["type", "title", "status", "detail", "response_code", "message"],
        "properties": {
            "type": text, "title": text, "status": number, "detail": text,
            "response_code": {"type": "string", "enum": list(PROBLEMS)}, "message": text,
            "retry_after": {**number, "description": "s"},
            "version": {**number, "description": "The trip's current version"},
            "current_status": text, "field": text, "limit_class": text,
        },
    }  # fmt: skip


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint),
    }
    if endpoint.role is not None:
        roles = (
            f"roles `{endpoint.role}` and `{endpoint.also}`"
            if endpoint.also
            else f"role `{endpoint.role}`"
        )
        operation["description"] = f"For the {roles}."
        operation["security"] = [{"bearer": []}]
    if endpoint.body:
        refs = [{"$ref": _SCHEMAS + model.__name__} for model in endpoint.body]
        schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    text = {"type": "string"}
    in_path = re.findall(r"{(\w+)}", endpoint.path)
    found: list[dict[str, Any]] = [
        parameter | {"in": "path" if parameter["name"] in in_path else "query"}
        for model in (endpoint.path_parts, endpoint.query)
        if model is not None
        for parameter in _parameters_of(model)
    ]
    if endpoint.is_change:
        found.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key has one effect and one answer.",
                "schema": {**text, "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
            }
        )
    if endpoint.name in _TRIPS:
        found.append({"name": "If-None-Match", "in": "header", "schema": text})
    return found


def _parameters_of(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    definitions, required = schema.get("$defs", {}), schema.get("required", ())
    return [
        {"name": name, "required": name in required, "schema": _with_definitions(part, definitions)}
        for name, part in schema.get("properties", {}).items()
    ]


def _texts(part: dict[str, Any]) -> list[dict[str, Any]]:
    """What says that a property is text, in its schema or in one of several that it may have."""
    return [each for each in (part, *part.get("anyOf", ())) if each.get("type") == "string"]


def _with_definitions(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A part of a schema with what it refers to in its place: a parameter stands by itself."""
    if isinstance(part, list):
        return [_with_definitions(each, definitions) for each in part]
    if not isinstance(part, dict):
        return part
    if reference := part.get("$ref"):
        return definitions[reference.rpartition("/")[2]]
    return {name: _with_definitions(each, definitions) for name, each in part.items()}


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    success: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.role is not None:
        success["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in _LIMIT_HEADERS.items()
        }
        success["content"] = {"application/json": {"schema": {"type": "object"}}}
    responses = {str(endpoint.status): success}
    if endpoint.name in _TRIPS:
        responses["304"] = {"description": "The client has this version"}
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes_of(endpoint)):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": {"application/problem+json": {"schema": {"$ref": _SCHEMAS + "Problem"}}},
        }
    return responses


def render(vehicle_types: Collection[str]) -> bytes:
    """The description as JSON."""
    return orjson.dumps(describe(vehicle_types))
