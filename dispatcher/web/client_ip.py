"""Which address a request is from, for the limits of requests without a known user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp import web

Network = IPv4Network | IPv6Network


def client_ip_reader(trusted: Sequence[Network]) -> Callable[[web.BaseRequest], str | None]:
    """A function from a request to its client's address.

    `X-Forwarded-For` is read from the right and believed as far as trusted proxies wrote it.
    """

    @lru_cache(maxsize=65_536)
    def resolve(peer: str, forwarded: str) -> str:
        address = _parse(peer)
        if address is None:
            return peer
        hops = [hop.strip() for hop in forwarded.split(",")] if forwarded else []
        while hops and any(address in network for network in trusted):
            before = _parse(hops.pop())
            if before is None:
                break
            address = before
        return _subject(address)

    def client_ip(request: web.BaseRequest) -> str | None:
        peer = request.remote
        if peer is None:
            return None
        forwarded = ""
        if trusted:
            forwarded = ",".join(request.headers.getall("X-Forwarded-For", ()))
        return resolve(peer, forwarded)

    return client_ip


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _subject(address: IPv4Address | IPv6Address) -> str:
    # A household or a phone holds a /64 (RFC 6177), so single addresses of it are free to change.
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)
