"""Checks a cluster before a server starts on it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from redis.exceptions import AuthenticationError, RedisError

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.address import RedisAddress
from dispatcher.live.client import connect_to
from dispatcher.live.keys import keys_of
from dispatcher.live.node_preflight import UnfitError, check_cluster_node, mode_of
from dispatcher.live.topology import Node, Topology

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
        ends = await asyncio.gather(
            *(_check_primary(address, node, zones, zone_of.get(node)) for node in nodes)
        )
    except StoreUnavailable as error:
        raise UnfitError(str(error)) from None
    finally:
        await topology.close()
    away = {node: reason for node, reason in zip(nodes, ends, strict=True) if reason}
    for node, reason in away.items():
        if len(away) == len(nodes):
            place = f"{node.host}:{node.port}"
            raise UnfitError(f"no primary of the cluster can be reached; {place}: {reason}")
        log.warning("a primary of the cluster is away", host=node.host, port=node.port, reason=reason)


async def _check_named(address: RedisAddress) -> None:
    """The nodes of the URL that answer must be of a cluster, and one must answer."""
    errors = []
    for host in address.hosts:
        client = connect_to(address, host)
        try:
            mode = await mode_of(client)
        except (RedisError, OSError, TimeoutError, UnicodeError) as error:
            errors.append(error)
            continue
        finally:
            await client.aclose()
        if mode != "cluster":
            kind = "a Sentinel" if mode == "sentinel" else f"a single node in {mode} mode"
            raise UnfitError(f"{host[0]}:{host[1]} is {kind}, not one of a cluster")
    if len(errors) == len(address.hosts):
        raise errors[0]


async def _check_primary(
    address: RedisAddress, node: Node, zones: Sequence[str], own_zone: str | None
) -> str:
    """Why the node cannot be asked now, or nothing. Raises UnfitError."""
    client: Any = connect_to(address, node)
    try:
        await check_cluster_node(client, zones, own_zone)
    except UnfitError as error:
        raise UnfitError(f"{node.host}:{node.port}: {error}") from None
    except AuthenticationError as error:
        raise UnfitError(f"{node.host}:{node.port} refuses the user: {error}") from None
    except (RedisError, OSError, TimeoutError, UnicodeError) as error:
        return str(error)
    finally:
        await client.aclose()
    return ""
