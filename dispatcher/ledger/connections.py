"""Connections to Postgres: every one of this program is made here, so all of them follow a failover.

A URL may list hosts, as libpq's does. The one that takes writes is looked for at each new connection:
the hosts are asked in the list's order, each a moment after the one before, and the first primary
wins. A host that hangs holds up nobody: asyncpg's own list would wait for it until the time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import asyncpg

#: How long a host has to answer before the next one is asked as well. The one before keeps its chance.
_HEAD_START_S: Final = 0.25
_CONNECT_TIMEOUT_S: Final = 5.0


async def connect(url: str, *, timeout: float = _CONNECT_TIMEOUT_S, **options: Any) -> Any:  # noqa: ASYNC109
    """A connection to the Postgres at `url`, of several hosts to the one that takes writes.

    `options` are those of asyncpg.connect. Raises what asyncpg raises; TimeoutError after `timeout` s.
    """
    urls = urls_of_hosts(url)
    if len(urls) == 1:
        return await asyncpg.connect(url, timeout=timeout, **options)
    options["target_session_attrs"] = "read-write"
    async with asyncio.timeout(timeout):
        return await _first_of(urls, timeout, options)


async def create_pool(url: str, **options: Any) -> Any:
    """A pool of such connections; `options` are those of asyncpg.create_pool."""
    return await asyncpg.create_pool(url, connect=connect, **options)


def urls_of_hosts(url: str) -> list[str]:
    """One URL for each host of a URL that may list several, by commas, in its authority or its query."""
    parts = urlsplit(url)
    user, at, authority = parts.netloc.rpartition("@")
    if "," in authority:
        return [urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in authority.split(",")]
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    hosts, ports = query.get("host", "").split(","), query.get("port", "").split(",")
    if len(hosts) == 1:
        return [url]
    if len(ports) == 1:
        ports *= len(hosts)
    return [
        f"{url.partition('?')[0]}?{urlencode(_of_host(query, host, port), safe='/', quote_via=quote)}"
        for host, port in zip_longest(hosts, ports, fillvalue="")
    ]


def _of_host(query: dict[str, str], host: str, port: str) -> dict[str, str]:
    rest = {name: value for name, value in query.items() if name not in ("host", "port")}
    return {**rest, "host": host, **({"port": port} if port else {})}


async def _first_of(urls: Sequence[str], timeout_s: float, options: dict[str, Any]) -> Any:
    """The first connection that is made to a primary; no other one stays. Raises the last error."""
    tasks: list[asyncio.Task[Any]] = []
    chosen: Any = None
    try:
        pending: set[asyncio.Task[Any]] = set()
        error: BaseException | None = None
        while chosen is None and (pending or len(tasks) < len(urls)):
            if len(tasks) < len(urls):
                attempt = asyncpg.connect(urls[len(tasks)], timeout=timeout_s, **options)
                tasks.append(asyncio.create_task(attempt))
                pending.add(tasks[-1])
            head_start_s = _HEAD_START_S if len(tasks) < len(urls) else None
            done, pending = await asyncio.wait(
                pending, timeout=head_start_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in sorted(done, key=tasks.index):
                error = task.exception() or error
                if chosen is None and task.exception() is None:
                    chosen = task.result()
        if chosen is None:
            assert error is not None
            raise error
        return chosen
    finally:
        await _end(tasks, chosen)


async def _end(tasks: Sequence[asyncio.Task[Any]], chosen: Any) -> None:
    for task in tasks:
        task.cancel()
    for made in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(made, BaseException) and made is not chosen:
            made.terminate()
