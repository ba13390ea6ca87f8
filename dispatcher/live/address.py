"""What a Redis URL says: one node, a primary that Sentinels name, or a cluster.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]       one node; unix:///PATH for a socket
    redis+sentinel://…HOST[:PORT],…/MASTER[/DB]    the hosts are Sentinels
    redis+cluster://…HOST[:PORT],…                 the hosts are any nodes of a cluster

With rediss for redis, all connections use TLS. The scheme of Sentinels is that of the package
redis-sentinel-url, the one of clusters that of the package limits. User and password are those of the
data nodes. Options follow in the query, by redis-py's names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import parse_url

from dispatcher.live.tls import TlsContext

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
CREDENTIALS: Final = ("username", "password", "client_name")
TLS_OPTIONS: Final[tuple[str, ...]] = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")


class Kind(StrEnum):
    """What stands behind a URL."""

    NODE = "node"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis URL, read. `options` are redis-py's, for each connection to a data node, and
    `sentinel_options` those to a Sentinel; both lack host, port and what concerns TLS."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    master: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    tls: TlsContext | None = field(default=None, repr=False)


def parse_address(url: str) -> RedisAddress:
    """Reads a URL. Raises ValueError, in one sentence that shows nothing of a place for passwords."""
    # Not by urlsplit, which newer Pythons let refuse a list of hosts.
    full_scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    scheme, _, kind_name = full_scheme.partition("+")
    kind = Kind(kind_name or Kind.NODE)
    credentials, at, listed = netloc.rpartition("@")
    port = _SENTINEL_PORT if kind is Kind.SENTINEL else _PORT
    hosts: tuple[tuple[str, int], ...] = ()
    if scheme != "unix":
        hosts = tuple(_host(text, port, kind) for text in listed.split(","))
        if kind is Kind.NODE and len(hosts) > 1:
            raise ValueError("names several hosts: is redis+cluster:// or redis+sentinel:// meant?")
    master = ""
    if kind is Kind.SENTINEL:
        master, _, path = path.partition("/")
        if not master:
            raise ValueError("names no master: redis+sentinel://HOST:PORT,HOST:PORT/MASTER is meant")
    if scheme != "unix" and path.strip("/") and not path.strip("/").isdigit():
        raise ValueError("its path is not the number of a database")
    # redis-py reads one host, which is put in its place.
    place = f"{credentials}{at}" + ("" if scheme == "unix" else "host")
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{place}/{path}?{query}"))
    for name in ("connection_class", "host"):
        options.pop(name, None)
    is_tls = scheme == "rediss"
    _check_options(options, kind, is_tls=is_tls)
    if kind is Kind.CLUSTER and options.pop("db", 0):
        raise ValueError("a cluster has no database but 0")
    own = {name: options.pop(name) for name in SENTINEL_OPTIONS if name in options}
    tls = {name: options.pop(name) for name in TLS_OPTIONS if name in options}
    return RedisAddress(
        kind,
        hosts,
        unquote(master),
        options,
        {name.removeprefix("sentinel_"): value for name, value in own.items()},
        TlsContext(tls) if is_tls else None,
    )


def _host(text: str, port: int, kind: Kind) -> tuple[str, int]:
    """`HOST`, `HOST:PORT` or `[ADDRESS]:PORT`."""
    try:
        one = urlsplit(f"//{text}")
        host, port = unquote(one.hostname or ""), one.port or port
    except ValueError:
        raise ValueError("names a host or port that is none") from None
    if not host and kind is not Kind.NODE:
        raise ValueError("names a host that is empty")
    return host or "localhost", port


def _check_options(options: dict[str, Any], kind: Kind, *, is_tls: bool) -> None:
    allowed = {"db", *CREDENTIALS}
    if "path" in options:
        allowed.add("path")
    if kind is Kind.SENTINEL:
        allowed.update(SENTINEL_OPTIONS)
    for name in options:
        if name in TLS_OPTIONS and not is_tls:
            raise ValueError(f"{name} needs rediss://, as it is for TLS")
        if name not in allowed and name not in TLS_OPTIONS:
            known = ", ".join(sorted(allowed | (set(TLS_OPTIONS) if is_tls else set())))
            raise ValueError(f"does not take the option {name}; it takes {known}")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("ssl_keyfile needs ssl_certfile, whose key it is")
