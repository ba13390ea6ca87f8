"""Which server does the rounds of which zone: the same answer on every server, with no word between."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Final

_MASK: Final = (1 << 64) - 1
#: An odd number of 64 bits (of the golden ratio): it spreads a difference of hashes over all bits.
_SPREAD: Final = 0x9E3779B97F4A7C15


def zone_shares(serves: Mapping[str, Collection[str]]) -> dict[str, str]:
    """The server of each zone, of `serves`, the zones that each server could take.

    A zone goes to the server that ranks first for it (rendezvous hashing), so that few zones move when a
    server comes or goes; one that has its share already is passed over, so that no server has more than
    its share of the zones, rounded up.
    """
    able: dict[str, list[str]] = {}
    for server in sorted(serves):
        for zone in serves[server]:
            able.setdefault(zone, []).append(server)
    most = math.ceil(len(able) / len(serves)) if serves else 0
    hashes = {name: _hash(name) for name in (*able, *serves)}
    held = dict.fromkeys(serves, 0)
    shares: dict[str, str] = {}
    for zone in sorted(able, key=lambda name: (hashes[name], name)):
        ranks = {name: (hashes[zone] ^ hashes[name]) * _SPREAD & _MASK for name in able[zone]}
        ranked = sorted(ranks, key=lambda name: (ranks[name], name), reverse=True)
        server = next((name for name in ranked if held[name] < most), ranked[0])
        held[server] += 1
        shares[zone] = server
    return shares


def digest_of(zones: Collection[str]) -> str:
    """What stands for these zones."""
    return hashlib.sha256("\n".join(sorted(zones)).encode()).hexdigest()[:32]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
