"""Whose address a call is counted against."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from aiohttp import web
from aiohttp.hdrs import X_FORWARDED_FOR

_Address = IPv4Address | IPv6Address
_MAX_REMEMBERED: Final = 10_000
_IPV6_PREFIX_BITS: Final = 64  # what one IPv6 customer gets at least, and can roam through at will


class ClientIp:
    """The client's address: an IPv4 address, or the /64 of an IPv6 one.

    `X-Forwarded-For` is believed only from trusted proxies, and read from the right: the first hop
    that is no trusted proxy is the client. What stands further left, anybody can have written.
    """

    def __init__(self, trusted_proxies: Sequence[IPv4Network | IPv6Network]) -> None:
        self._trusted = tuple(trusted_proxies)
        self._of = lru_cache(maxsize=_MAX_REMEMBERED)(self.of)

    def __call__(self, request: web.BaseRequest) -> str | None:
        """The client of a request; None where it came over a Unix socket, say."""
        peer = request.remote
        if not peer:
            return None
        forwarded = ""
        if self._trusted:
            forwarded = ",".join(request.headers.getall(X_FORWARDED_FOR, ()))
        return self._of(peer, forwarded)

    def of(self, peer: str, forwarded: str) -> str | None:
        """The same, from the peer's address and the header's text."""
        address = _parse(peer)
        if address is None:
            return None
        client = address
        if forwarded and self._is_trusted(address):
            for text in reversed(forwarded.split(",")):
                hop = _parse(text)
                if hop is None:
                    client = address
                    break
                client = hop
                if not self._is_trusted(hop):
                    break
        return _counted_address(client)

    def trusts(self, peer: str) -> bool:
        """Whether the peer is a trusted proxy, which brings the calls of others."""
        address = _parse(peer) if self._trusted else None
        return address is not None and self._is_trusted(address)

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> _Address | None:
    """An address, with or without brackets and port; None for anything else."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _counted_address(address: _Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    network = int(address) >> (128 - _IPV6_PREFIX_BITS) << (128 - _IPV6_PREFIX_BITS)
    return f"{IPv6Address(network)}/{_IPV6_PREFIX_BITS}"
