"""Holds answers of a server against its description: status, headers, media type, body, and codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from jsonschema import Draft202012Validator

from dispatcher.web.endpoints import Endpoint

#: Of HTTP itself; of what is refused before an address is looked at, and of an upgrade.
_OF_HTTP: Final = {"content-type", "content-length", "date", "server", "connection", "transfer-encoding"}


class Description:
    """The document of `/openapi.json`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def check(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], raw: bytes) -> None:
        """Raises AssertionError where an answer of this endpoint is not as it is described."""
        about = f"{endpoint.method} {endpoint.path} {status}"
        answers = self._document["paths"][endpoint.path][endpoint.method.lower()]["responses"]
        assert str(status) in answers, about
        answer = answers[str(status)]
        described = {name.lower(): self._resolved(each) for name, each in answer["headers"].items()}
        for name, value in headers.items():
            if name.lower() in _OF_HTTP:
                continue
            assert name.lower() in described, f"{about}: {name}"
            schema = described[name.lower()]["schema"]
            read = int(value) if schema.get("type") == "integer" else value
            self._fits(schema, read, f"{about}: {name}")
        if not raw:
            return
        media_type = headers["Content-Type"].partition(";")[0]
        assert media_type in answer["content"], f"{about}: {media_type}"
        if (schema := answer["content"][media_type].get("schema")) is not None:
            body = orjson.loads(raw)
            self._fits(schema, body, about)
            if status >= 400:
                fields = self._document["components"]["schemas"]["Problem"]["properties"]
                assert set(body) <= set(fields), about

    def _resolved(self, part: Any) -> Any:
        while "$ref" in part:
            found: Any = self._document
            for name in part["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            part = found
        return part

    def _fits(self, schema: Mapping[str, Any], value: Any, about: str) -> None:
        whole = {**schema, "components": self._document["components"]}
        errors = [error.message for error in Draft202012Validator(whole).iter_errors(value)]
        assert errors == [], about
