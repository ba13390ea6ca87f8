"""The WebSocket's description (AsyncAPI 3), made from the frames' models and the close codes.

It is written from the server's side, as the standard asks: what a client sends, the server receives.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dispatcher.web.protocol import (
    CLIENT_FRAMES,
    CLOSE_REASONS,
    SERVER_FRAMES,
    UNANSWERED,
    ClientFrameType,
    ServerFrameType,
)

_SCHEMAS: Final = "#/components/schemas/"
_CHANNEL: Final = "socket"
_DESCRIPTION: Final = """\
Offers, changes of trips and positions are pushed over one WebSocket a client; whatever an app asks by a
frame has the rules, keys and limits of HTTP. After `welcome`, whose snapshot is the user's state as it
is, ignore a trip whose `version` is older than what you have. A later version may add fields to frames.
"""
#: Clients ask, and get one of these.
_REPLIES: Final = (ServerFrameType.ACK, ServerFrameType.ERROR)

_Models = tuple[type[BaseModel], ...]


def describe() -> dict[str, Any]:
    """The description as a document."""
    sent: Mapping[str, _Models] = {str(name): models for name, models in SERVER_FRAMES.items()}
    received: Mapping[str, _Models] = {str(name): models for name, models in CLIENT_FRAMES.items()}
    models = dict.fromkeys(m for group in (*received.values(), *sent.values()) for m in group)
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template=_SCHEMAS + "{model}"
    )
    from_server = {model.__name__ for group in sent.values() for model in group}
    for name, schema in schemas["$defs"].items():
        if name in from_server or name not in {model.__name__ for model in models}:
            schema.pop("additionalProperties", None)  # see `openapi`
    messages = {name: _message(name, forms) for name, forms in {**received, **sent}.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "dispatcher",
            "version": version("redis-trip-dispatcher"),
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "this": {
                "host": "{host}",
                "protocol": "ws",
                "description": "`wss` where a proxy ends TLS before it",
                "variables": {"host": {"default": "127.0.0.1:8080"}},
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            }
        },
        "channels": {
            _CHANNEL: {
                "address": "/ws",
                "title": "The WebSocket of a user",
                "description": "Without the `Authorization` header, the first frame is `auth`, in 10 s.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
                "x-close-codes": [
                    {"code": int(code), "name": code.name.lower(), "reason": reason}
                    for code, reason in CLOSE_REASONS.items()
                ],
            }
        },
        "operations": {
            **{f"receive_{name}": _receive(name) for name in CLIENT_FRAMES},
            **{f"send_{name}": _send(name) for name in SERVER_FRAMES if name not in _REPLIES},
        },
        "components": {
            "messages": messages,
            "schemas": schemas["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _message(name: str, forms: _Models) -> dict[str, Any]:
    refs = [{"$ref": _SCHEMAS + form.__name__} for form in forms]
    return {
        "name": name,
        "title": name,
        "summary": _summary(forms[0]),
        "payload": refs[0] if len(refs) == 1 else {"anyOf": refs},
        "examples": [
            {"name": form.__name__, "summary": _summary(form), "payload": example}
            for form in forms
            for example in form.model_json_schema()["examples"]
        ],
    }


def _summary(form: type[BaseModel]) -> str:
    return " ".join((form.__doc__ or "").split())


def _receive(name: ClientFrameType) -> dict[str, Any]:
    operation = {
        "action": "receive", "channel": {"$ref": f"#/channels/{_CHANNEL}"}, "messages": [_of(name)],
        "reply": {
            "channel": {"$ref": f"#/channels/{_CHANNEL}"}, "messages": [_of(name) for name in _REPLIES],
        },
    }  # fmt: skip
    if name in UNANSWERED:
        operation["description"] = "Answered where it has an `id`."
    return operation


def _send(name: ServerFrameType) -> dict[str, Any]:
    channel = {"$ref": f"#/channels/{_CHANNEL}"}
    return {"action": "send", "channel": channel, "messages": [_of(name)]}


def _of(name: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{_CHANNEL}/messages/{name}"}


def render() -> bytes:
    """The description as JSON."""
    return orjson.dumps(describe())
