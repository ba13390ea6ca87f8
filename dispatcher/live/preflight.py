"""Checks Redis or Valkey before a server starts on it."""

from __future__ import annotations

from collections.abc import Sequence

from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError, ResponseError

from dispatcher.config import EngineAway, url_refused
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.address import Kind, RedisAddress, parse_address
from dispatcher.live.client import connect, sentinels_of
from dispatcher.live.cluster_preflight import check_cluster
from dispatcher.live.node_preflight import UnfitError, check_node


async def check_redis(url: str, *, zones: Sequence[str] = (DEFAULT_ZONE,)) -> None:
    """Check that `url` leads to what it says: one node, a primary that the Sentinels know, or a cluster.

    Also that it is Redis 7.2+ or Valkey 8+, never evicts a key, takes writes, and that the user may
    do all that a server does to the keys of `zones`.

    Raises SettingsError, which names the setting and never shows a password of the URL: EngineAway where
    nothing answers.
    """
    try:
        address = parse_address(url)
        if address.tls is not None:
            address.tls.check_files()
    except ValueError as error:
        raise url_refused("redis_url", url, f"is not a Redis URL: {error}") from None
    try:
        if address.kind is Kind.CLUSTER:
            await check_cluster(address, zones)
            return
        if address.kind is Kind.SENTINEL:
            await _check_sentinels(address)
        client = connect(url)
        try:
            await check_node(client, zones)
        finally:
            await client.aclose()
    except UnfitError as error:
        raise url_refused("redis_url", url, str(error)) from None
    except (RedisError, OSError, TimeoutError, UnicodeError) as error:
        reason = f"Redis cannot be reached: {error}"
        raise url_refused("redis_url", url, reason, EngineAway) from None


async def _check_sentinels(address: RedisAddress) -> None:
    """One of the Sentinels at least must know the master."""
    sentinels = sentinels_of(address)
    known: set[str] = set()
    errors: list[str] = []
    try:
        for client, (host, port) in zip(list(sentinels.sentinels), address.hosts, strict=True):
            try:
                known |= {str(name) for name in await client.sentinel_masters()}
            except (NotConnected, OSError, TimeoutError) as error:
                errors.append(str(error))
            except ResponseError as error:
                errors.append(f"{host}:{port} is no Sentinel, or refuses its user: {error}")
    finally:
        await sentinels.aclose()
    if address.master in known:
        return
    if known:
        raise UnfitError(
            f"the Sentinels know no master {address.master}, only {', '.join(sorted(known))}"
        )
    reason = errors[0] if errors else "they watch no master at all"
    raise UnfitError(f"no Sentinel names the master {address.master}: {reason}")
