"""The WebSocket's description: valid AsyncAPI 3, of every frame and every close code."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import orjson
from jsonschema import Draft7Validator, Draft202012Validator

from dispatcher.web import asyncapi
from dispatcher.web.protocol import CLIENT_FRAMES, SERVER_FRAMES, CloseCode

#: `3.0.0-without-$id.json` of `@asyncapi/specs` 6.11.1 (npm registry), as it is; Apache 2.0.
SCHEMA = (Path(__file__).parents[1] / "schemas" / "asyncapi-3.0.0.json").read_bytes()
CHECKSUM = "abe96881dbfaad495ccbb6bd8d3fb43ca18a13b9d7564849ccb66f39d5e5b20f"
DOCUMENT: dict[str, Any] = orjson.loads(asyncapi.render())


def test_the_standards_schema_is_what_was_taken() -> None:
    assert hashlib.sha256(SCHEMA).hexdigest() == CHECKSUM


def test_the_document_is_valid() -> None:
    validator = Draft7Validator(orjson.loads(SCHEMA))
    assert [error.message for error in validator.iter_errors(DOCUMENT)] == []
    wrong = copy.deepcopy(DOCUMENT)
    del wrong["operations"]["receive_trip_action"]["action"]
    assert not validator.is_valid(wrong)


def test_every_frame_and_close_code_is_described() -> None:
    messages = DOCUMENT["components"]["messages"]
    assert list(messages) == [*CLIENT_FRAMES, *SERVER_FRAMES]
    [channel] = DOCUMENT["channels"].values()
    assert list(channel["messages"]) == list(messages)
    assert {row["code"] for row in channel["x-close-codes"]} == set(CloseCode)
    told = {
        reference["$ref"].rpartition("/")[2]
        for operation in DOCUMENT["operations"].values()
        for reference in (*operation["messages"], *operation.get("reply", {}).get("messages", ()))
    }
    assert told == set(messages)


def test_every_example_fits_its_schema() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
        for example in schema.get("examples", ()):
            assert [error.message for error in validator.iter_errors(example)] == []


def test_every_example_fits_its_message() -> None:
    for message in DOCUMENT["components"]["messages"].values():
        validator = Draft202012Validator({**message["payload"], "components": DOCUMENT["components"]})
        assert message["examples"]
        for example in message["examples"]:
            assert [error.message for error in validator.iter_errors(example["payload"])] == []
