"""Which refusals each endpoint can answer, for the API's description."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from dispatcher.web.endpoints import Endpoint
from dispatcher.web.requests import FIELD_CODES

_BODY_CODES: Final = (
    "malformed_json", "invalid_body", "body_too_large", "unsupported_media_type", "request_timeout",
)  # fmt: skip
_IDEMPOTENCY_CODES: Final = (
    "invalid_idempotency_key", "duplicate_idempotency_key", "missing_idempotency_key",
    "request_in_progress", "idempotency_key_reused",
)  # fmt: skip
#: What is answered before anybody looks which address is asked.
_CONNECTION_CODES: Final = ("malformed_request", "too_many_calls", "too_many_connections")
_GENERAL_CODES: Final = ("rate_limit_exceeded", "internal_error", "service_unavailable")
_IDENTITY_CODES: Final = ("missing_token", "invalid_token", "token_expired", "wrong_role")


def codes_of(endpoint: Endpoint) -> list[str]:
    """Every `response_code` of a refusal that the endpoint can answer, each once."""
    codes = [*_CONNECTION_CODES, *endpoint.codes]
    if endpoint.role is not None:
        codes += (*_IDENTITY_CODES, *_GENERAL_CODES)
    if endpoint.body:
        codes += _BODY_CODES
    if endpoint.is_change:
        codes += (*_IDEMPOTENCY_CODES, "outcome_unknown")
    if endpoint.query is not None:
        codes.append("invalid_body")
    if endpoint.role is not None:
        for model in (*endpoint.body, endpoint.query, endpoint.path_parts):
            codes += _codes_of_fields(model) if model is not None else ()
    return list(dict.fromkeys(codes))


def _codes_of_fields(model: type[BaseModel]) -> list[str]:
    """The codes of wrong fields, those within fields included."""
    named = _properties(model.model_json_schema())
    return [FIELD_CODES[name] for name in named if name in FIELD_CODES]


def _properties(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for part in schema.values():
            yield from _properties(part)
