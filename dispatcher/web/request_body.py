"""The body of a request as one JSON object."""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from dispatcher.core.errors import Refusal
from dispatcher.web.fastpath import body_at_hand
from dispatcher.web.json_object import MAX_BODY, parse_json_object
from dispatcher.web.timed_connection import LateBody


def json_object_at_hand(request: web.Request) -> dict[str, Any] | None:
    """The body as a JSON object where all of it has arrived; None where `read_json_object` waits for it.

    Raises Refusal unsupported_media_type or malformed_json.
    """
    _check_media_type(request._message.headers)
    raw = body_at_hand(request)
    return None if raw is None else parse_json_object(raw)


async def read_json_object(request: web.Request) -> dict[str, Any]:
    """The same of a body that is still to come, whose type was looked at.

    Raises Refusal body_too_large, malformed_json, malformed_request or request_timeout.
    """
    length = request.content_length
    if length is not None and length > MAX_BODY:
        raise Refusal("body_too_large")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refusal("body_too_large") from None
    except LateBody:
        raise Refusal("request_timeout") from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise Refusal("malformed_request", "The body's transfer encoding is broken.") from None
    return parse_json_object(raw)


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
