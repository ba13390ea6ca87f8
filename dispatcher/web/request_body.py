"""The body of a request, and the text of a frame, as one JSON object."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from dispatcher.core.errors import Refusal
from dispatcher.web.fastpath import body_at_hand

#: In bytes; nothing that an app has to say comes near it.
MAX_BODY: Final = 64 * 1024
# An escaped NUL is legal JSON, and nothing that Postgres can store as text or jsonb.
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


async def read_json_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises Refusal unsupported_media_type, body_too_large, malformed_json or malformed_request.
    """
    _check_media_type(request.headers)
    length = request.content_length
    if length is not None and length > MAX_BODY:
        raise Refusal("body_too_large")
    try:
        raw = body_at_hand(request, length)
        if raw is None:
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refusal("body_too_large") from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise Refusal("malformed_request", "The body's transfer encoding is broken.") from None
    return parse_json_object(raw)


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """One JSON object from its bytes. Raises Refusal malformed_json."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:  # broken UTF-8, NaN and too deep a nesting, too
        raise Refusal("malformed_json") from None
    if not isinstance(data, dict):
        raise Refusal("malformed_json")
    if b"\\u0000" in raw and _NUL.search(raw):
        raise Refusal("malformed_json", "Text in the body must not hold NUL characters.")
    return data


def _check_media_type(headers: CIMultiDictProxy[str]) -> None:
    encoding = headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.strip().lower() != "identity":
        raise Refusal("unsupported_media_type")
    content_type = headers.get(hdrs.CONTENT_TYPE)
    if content_type is None or content_type == "application/json":
        return
    media_type, _, parameter = content_type.partition(";")
    name, _, charset = parameter.partition("=")
    # The type of a form is what curl says when it was not told: its -d is meant as JSON here.
    if media_type.strip().lower() not in ("application/json", "application/x-www-form-urlencoded") or (
        name.strip().lower() == "charset" and charset.strip(' "').lower() not in ("utf-8", "utf8")
    ):
        raise Refusal("unsupported_media_type")
