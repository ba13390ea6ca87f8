"""Checks a cluster before a server starts on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import structlog
from redis.exceptions import AuthenticationError, RedisError

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.stragglers import gather_soon
from dispatcher.live.address import RedisAddress
from dispatcher.live.client import connect_to
from dispatcher.live.keys import keys_of
from dispatcher.live.node_preflight import UnfitError, check_cluster_node, mode_of
from dispatcher.live.topology import Node, Topology

#: How long nodes that hang are waited for, once one has answered.
_REST_S: Final = 1.0
#: Errors of a node that may come back.
_AWAY: Final = (RedisError, OSError, TimeoutError, UnicodeError)

log = structlog.get_logger("dispatcher.cluster")


async def check_cluster(address: RedisAddress, zones: Sequence[str]) -> None:
    """Every primary must be fit, as far as it answers: a server starts while a node is away.

    Raises UnfitError, redis.exceptions.RedisError, OSError.
    """
    await _check_named(address)
    topology = Topology(address)
    try:
        await topology.refresh()
        owners = {zone: topology.owner(keys_of(zone).epoch) for zone in zones}
        homeless = [zone for zone, owner in owners.items() if owner is None]
        if homeless:
            raise UnfitError(f"no node of the cluster has the slot of the zone {homeless[0]}")
        nodes = sorted(topology.primaries())
        zone_of = {owner: zone for zone, owner in owners.items() if owner is not None}
        checks = [_check_primary(address, node, zones, zone_of.get(node)) for node in nodes]
        ends = await gather_soon(checks, rest_s=_REST_S)
    except StoreUnavailable as error:
        raise UnfitError(str(error)) from None
    finally:
        await topology.close()
    away = [(node, end) for node, end in zip(nodes, ends, strict=True) if end is not None]
    for node, end in away:
        if not isinstance(end, _AWAY):
            raise end
        if len(away) == len(nodes):
            place = f"{node.host}:{node.port}"
            raise UnfitError(f"no primary of the cluster can be reached; {place}: {end}")
        log.warning("a primary of the cluster is away", host=node.host, port=node.port, reason=str(end))


async def _check_named(address: RedisAddress) -> None:
    """The nodes of the URL that answer must be of a cluster, and one must answer."""
    ends = await gather_soon((_mode_at(address, host) for host in address.hosts), rest_s=_REST_S)
    for (host, port), end in zip(address.hosts, ends, strict=True):
        if isinstance(end, str) and end != "cluster":
            kind = "a Sentinel" if end == "sentinel" else f"a single node in {end} mode"
            raise UnfitError(f"{host}:{port} is {kind}, not one of a cluster")
    errors = [end for end in ends if isinstance(end, BaseException)]
    if len(errors) == len(ends):
        raise errors[0]


async def _mode_at(address: RedisAddress, host: tuple[str, int]) -> str:
    client = connect_to(address, host)
    try:
        return await mode_of(client)
    finally:
        await client.aclose()


async def _check_primary(
    address: RedisAddress, node: Node, zones: Sequence[str], own_zone: str | None
) -> None:
    """Raises UnfitError, or what kept the node from answering."""
    client: Any = connect_to(address, node)
    try:
        await check_cluster_node(client, zones, own_zone)
    except UnfitError as error:
        raise UnfitError(f"{node.host}:{node.port}: {error}") from None
    except AuthenticationError as error:
        raise UnfitError(f"{node.host}:{node.port} refuses the user: {error}") from None
    finally:
        await client.aclose()
