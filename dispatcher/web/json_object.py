"""One JSON object, from the body of a request or the text of a frame."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from dispatcher.core.errors import Refusal

#: In bytes; nothing that an app has to say comes near it.
MAX_BODY: Final = 64 * 1024
# An escaped NUL is legal JSON, and nothing that Postgres can store as text or jsonb.
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


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
