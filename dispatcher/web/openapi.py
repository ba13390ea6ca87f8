"""The API's description (OpenAPI 3.1), made from the table of endpoints, the models and the problems."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dispatcher.core.errors import PROBLEMS, Refusal
from dispatcher.service.answers import refusal_answer
from dispatcher.web.answers import OneTrip, Problem
from dispatcher.web.endpoints import ENDPOINTS, Endpoint
from dispatcher.web.page_files import PAGE_TYPES
from dispatcher.web.refusal_codes import codes_of
from dispatcher.web.response_headers import HEADERS, header_names

_SCHEMAS: Final = "#/components/schemas/"
_PROBLEM: Final = "application/problem+json"
_DESCRIPTION: Final = """\
Riders create trips, drivers accept them, and exactly one driver wins.

Every change takes an `Idempotency-Key`: one key has one effect and one answer, byte for byte, however
often it is sent. Refusals are `application/problem+json` (RFC 9457); switch on their `response_code`.
Answers may have more fields in a later version. `asyncapi.json` describes the WebSocket.
"""
#: What has no role is part of the service itself.
_SERVICE: Final = "service"
_TAGS: Final = {
    "customer": "For riders' apps: a token of the role `customer`",
    "driver": "For drivers' apps: a token of the role `driver`",
    "admin": "For operators: a token of the role `admin`",
    _SERVICE: "The WebSocket, health, metrics, and pages: most without a token",
}


def describe(vehicle_types: Collection[str]) -> dict[str, Any]:
    """The description as a document, with the vehicle types that are set."""
    bodies = _schemas(model for endpoint in ENDPOINTS for model in endpoint.body)
    for schema in bodies.values():
        for part in _texts(schema.get("properties", {}).get("vehicle_type", {})):
            part["enum"] = [*vehicle_types]
    answers = _schemas([Problem, *(e.answer for e in ENDPOINTS if e.answer is not None)])
    for schema in answers.values():
        # Tests allow no field that is not named; an app that did would break with the next version.
        schema.pop("additionalProperties", None)
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dispatcher",
            "version": version("redis-trip-dispatcher"),
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The server that this description is from"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {**bodies, **answers},
            "headers": {name: dict(header) for name, header in HEADERS.items()},
            "examples": {code: _problem_example(code) for code in PROBLEMS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _schemas(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    _, schemas = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template=_SCHEMAS + "{model}"
    )
    found: dict[str, Any] = schemas["$defs"]
    return found


def _problem_example(code: str) -> dict[str, Any]:
    problem = PROBLEMS[code]
    return {"summary": problem.message, "value": orjson.loads(refusal_answer(Refusal(code)).body)}


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.role or _SERVICE],
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
                "example": "8f14e45f-ceea-467f-a1d5-b2b1f0a7c3de",
            }
        )
    if endpoint.answer is OneTrip or endpoint.is_page:
        found.append(
            {
                "name": "If-None-Match",
                "in": "header",
                "description": "The `ETag` that the client has; 304 where it is the latest",
                "schema": text,
            }
        )
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
    responses = {str(endpoint.status): _success(endpoint)}
    if endpoint.answer is OneTrip or endpoint.is_page:
        known = {"description": "The client has this version", "headers": _headers(endpoint, 304)}
        responses["304"] = known
    by_status: dict[int, list[str]] = {}
    for code in codes_of(endpoint):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = _refusal(endpoint, status, codes)
    return responses


def _success(endpoint: Endpoint) -> dict[str, Any]:
    success: dict[str, Any] = {
        "description": endpoint.summary, "headers": _headers(endpoint, endpoint.status),
    }  # fmt: skip
    if endpoint.answer is not None:
        schema = {"$ref": _SCHEMAS + endpoint.answer.__name__}
        success["content"] = {"application/json": {"schema": schema}}
    elif endpoint.media_type is not None:
        success["content"] = {endpoint.media_type: {}}
    elif endpoint.is_page:
        success["content"] = {kind.partition(";")[0]: {} for kind in PAGE_TYPES.values()}
    return success


def _refusal(endpoint: Endpoint, status: int, codes: list[str]) -> dict[str, Any]:
    schema = {"$ref": _SCHEMAS + "Problem", "properties": {"response_code": {"enum": codes}}}
    examples = {code: {"$ref": f"#/components/examples/{code}"} for code in codes}
    return {
        "description": ", ".join(f"`{code}`" for code in codes),
        "headers": _headers(endpoint, status),
        "content": {_PROBLEM: {"schema": schema, "examples": examples}},
    }


def _headers(endpoint: Endpoint, status: int) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in header_names(endpoint, status)}


def render(vehicle_types: Collection[str]) -> bytes:
    """The description as JSON."""
    return orjson.dumps(describe(vehicle_types))
