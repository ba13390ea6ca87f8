"""What a setting may be: its text from the environment, read and checked."""

from __future__ import annotations

import base64
import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from dispatcher.core.limits import Rate
from dispatcher.core.trips import VEHICLE_TYPE


def _parse_rate(value: object) -> object:
    """Parse `REQUESTS/SECONDS` or `off`; pydantic checks what is not a string."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "off":
        return Rate(0, 1)
    limit, slash, window = value.partition("/")
    if not slash or not limit.strip().isdigit() or not window.strip().isdigit():
        raise ValueError("takes REQUESTS/SECONDS, like 10/60, or off")
    rate = Rate(int(limit), int(window))
    if not 1 <= rate.limit <= 100_000 or not 1 <= rate.window_s <= 86_400:
        raise ValueError("takes 1 to 100000 requests in 1 to 86400 seconds")
    return rate


def _split_at_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _check_url(url: str) -> str:
    """Refuses what leads nowhere; the message does not repeat the URL, which may hold a token."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is none, or half an IPv6 address
        has_host = False
    if not has_host or parts.scheme not in ("http", "https") or re.search(r"\s", url):
        raise ValueError("takes a URL with a host, like https://example.com:8443/path")
    return url


def _check_base(url: str) -> str:
    if "?" in url or "#" in url:
        raise ValueError("takes no query and no fragment: a path is put behind it")
    return url


def _in_words(pattern: str, takes: str) -> AfterValidator:
    """Refuses what the pattern does not match whole, and says what the setting takes instead."""
    compiled = re.compile(pattern, re.DOTALL)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(takes)
        return text

    return AfterValidator(check)


def _check_tile_url(url: str) -> str:
    missing = [part for part in ("{z}", "{x}", "{y}") if part not in url]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}, for which each tile's numbers are put")
    return url


RedisUrl = Annotated[
    str,
    _in_words(
        r"(rediss?(\+sentinel|\+cluster)?|unix)://.*",
        "takes a URL that begins with redis://, rediss:// (both also with +sentinel or +cluster) or unix://",
    ),
]
DatabaseUrl = Annotated[
    str, _in_words(r"postgres(ql)?://.*", "takes a URL that begins with postgresql:// or postgres://")
]
HostPort = Annotated[
    str,
    _in_words(
        r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):[1-9][0-9]{0,4}",
        "takes HOST:PORT, like 127.0.0.1:9100 or [::1]:9100",
    ),
]
TileUrl = Annotated[
    str,
    _in_words(
        r"https?://[^/\s;,'\"]+/\S+", "takes a URL like https://tiles.example.com/{z}/{x}/{y}.png"
    ),
    AfterValidator(_check_tile_url),
]
#: Called as it is.
Url = Annotated[str, AfterValidator(_check_url)]
#: What the paths of an API are put behind.
BaseUrl = Annotated[Url, AfterValidator(_check_base)]
RateSetting = Annotated[Rate, NoDecode, BeforeValidator(_parse_rate)]
Networks = Annotated[list[IPv4Network | IPv6Network], NoDecode, BeforeValidator(_split_at_commas)]
Origins = Annotated[list[str], NoDecode, BeforeValidator(_split_at_commas)]
_VehicleType = Annotated[
    str, _in_words(VEHICLE_TYPE.pattern, "takes names of 1 to 32 lower-case letters, digits or -")
]
VehicleTypes = Annotated[list[_VehicleType], NoDecode, BeforeValidator(_split_at_commas)]
WebhookUrls = Annotated[list[Url], NoDecode, BeforeValidator(_split_at_commas)]
Page = Literal["metrics", "openapi", "docs"]
Pages = Annotated[list[Page], NoDecode, BeforeValidator(_split_at_commas)]


def is_webhook_secret(secret: SecretStr | None) -> bool:
    """Whether it is one as Standard Webhooks has it."""
    head, _, text = secret.get_secret_value().partition("_") if secret else ("", "", "")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return head == "whsec" and 24 <= len(key) <= 64
