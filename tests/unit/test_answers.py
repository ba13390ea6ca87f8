"""The models of answers, and what the API's description makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from dispatcher.config import Settings
from dispatcher.core.errors import PROBLEMS
from dispatcher.web import openapi
from dispatcher.web.endpoints import ENDPOINTS, Endpoint

DOCUMENT = orjson.loads(openapi.render(Settings().vehicle_types))
OPERATIONS = [
    (endpoint, DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]) for endpoint in ENDPOINTS
]
MODELS = sorted(
    {model for e in ENDPOINTS for model in (*e.body, e.answer) if model is not None},
    key=lambda model: model.__name__,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_each_body_has_an_example_that_is_one(model: type[BaseModel]) -> None:
    examples = model.model_json_schema().get("examples")
    assert examples, f"{model.__name__} has no example"
    for example in examples:
        model.model_validate_json(orjson.dumps(example))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_each_endpoint_says_what_it_answers(endpoint: Endpoint) -> None:
    if endpoint.role is not None:
        assert endpoint.answer is not None, "name the model of the success body: answer=…"
    assert endpoint.answer is None or endpoint.media_type is None


def _parts(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield document
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            yield from _parts(part)


def _lookup(reference: str) -> Any:
    found = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_reference_leads_somewhere() -> None:
    references = {part["$ref"] for part in _parts(DOCUMENT) if isinstance(part.get("$ref"), str)}
    assert len(references) > 100
    for reference in references:
        assert _lookup(reference), reference


def test_every_example_fits_its_schema() -> None:
    schemas = [part for part in _parts(DOCUMENT) if "examples" in part and "schema" not in part]
    with_examples = [part for part in schemas if isinstance(part["examples"], list)]
    assert len(with_examples) > 20
    for schema in with_examples:
        validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
        for example in schema["examples"]:
            assert [error.message for error in validator.iter_errors(example)] == []
    problems = {**DOCUMENT["components"]["schemas"]["Problem"], "components": DOCUMENT["components"]}
    for example in DOCUMENT["components"]["examples"].values():
        assert list(Draft202012Validator(problems).iter_errors(example["value"])) == []
    for header in DOCUMENT["components"]["headers"].values():
        assert list(Draft202012Validator(header["schema"]).iter_errors(header["example"])) == []


def test_each_refusal_names_its_codes() -> None:
    for endpoint, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            if int(status) < 400:
                continue
            content = response["content"]["application/problem+json"]
            codes = content["schema"]["properties"]["response_code"]["enum"]
            assert codes == list(content["examples"])
            assert {PROBLEMS[code].status for code in codes} == {int(status)}, endpoint.name


def test_headers_are_where_they_are_sent() -> None:
    by_name = {endpoint.name: operation["responses"] for endpoint, operation in OPERATIONS}
    limits = {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
    accept = by_name["trip_action"]
    assert limits | {"X-Request-Id", "X-Idempotent-Replay"} <= set(accept["200"]["headers"])
    assert "Retry-After" in accept["429"]["headers"]
    assert "WWW-Authenticate" in accept["401"]["headers"]
    assert "ETag" in by_name["admin_trip"]["200"]["headers"]
    assert "ETag" in by_name["admin_trip"]["304"]["headers"]
    assert set(by_name["healthz"]["200"]["headers"]) == {"X-Request-Id"}


def test_operations_are_in_order_for_people() -> None:
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {name for _, operation in OPERATIONS for name in operation["tags"]} == tags
    assert DOCUMENT["servers"][0]["url"] == "/"
    times = DOCUMENT["components"]["schemas"]["Trip"]["properties"]
    kinds = [each for each in times["accepted_at"]["anyOf"] if each["type"] == "string"]
    assert [kind["format"] for kind in kinds] == ["date-time"]
    assert re.search(r'"additionalProperties":false', orjson.dumps(DOCUMENT["components"]).decode())
    assert "additionalProperties" not in DOCUMENT["components"]["schemas"]["Trip"]
