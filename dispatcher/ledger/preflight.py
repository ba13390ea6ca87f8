"""Checks Postgres before a server or a command starts on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiosql
import asyncpg

from dispatcher.config import SettingsError, url_refused
from dispatcher.ledger.connections import connect
from dispatcher.resources import SQL_DIR

_TIMEOUT_S: Final = 5.0  # a server that takes longer to answer is not one to start on
_OLDEST_POSTGRES: Final = 14  # the first that reports with the connection whether it is read-only
_queries: Any = aiosql.from_path(SQL_DIR / "preflight.sql", "asyncpg")


async def check_postgres(url: str) -> None:
    """Check that Postgres 14+ answers at `url`, and that it takes writes.

    Raises SettingsError, which names the setting and never shows the URL's password.
    """
    async with _connection(url) as connection:
        version: int = connection.get_server_version().major
        read_only = _is_read_only(connection)
    if version < _OLDEST_POSTGRES:
        raise SettingsError(
            f"DISPATCHER_DATABASE_URL: Postgres {version} is there; "
            f"{_OLDEST_POSTGRES} or newer is needed"
        )
    if read_only:
        raise SettingsError("DISPATCHER_DATABASE_URL: is read-only; give the URL of the primary")


async def check_privileges(url: str) -> None:
    """Check that the role at `url` may do what a server does, in a database with our schema.

    Raises SettingsError, which names what it may not.
    """
    async with _connection(url) as connection:
        rows = [row async for row in _queries.missing_privileges(connection)]
    if unseen := [f"{row['kind']} {row['name']}" for row in rows if not row["is_seen"]]:
        raise SettingsError(
            f"DISPATCHER_DATABASE_URL: its role sees no {', '.join(unseen)}: "
            "`dispatcher migrate up` makes them, and the role needs USAGE on their schema"
        )
    if rows:
        lacks = ", ".join(f"{row['privileges']} on {row['kind']} {row['name']}" for row in rows)
        raise SettingsError(f"DISPATCHER_DATABASE_URL: its role lacks {lacks}")


async def is_decided_by_postgres(url: str, zones: Sequence[str]) -> bool:
    """Whether Postgres alone decides about all these zones: servers that ran had lost Redis.

    Raises SettingsError.
    """
    async with _connection(url) as connection:
        if not await _queries.has_authorities(connection):
            return False
        return int(await _queries.count_degraded(connection, zones=list(zones))) == len(zones)


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[Any]:
    """A connection for a check. Raises SettingsError where there is none, or it breaks."""
    try:
        connection = await connect(url, timeout=_TIMEOUT_S, command_timeout=_TIMEOUT_S)
        try:
            yield connection
            async with asyncio.timeout(_TIMEOUT_S):
                await connection.close()
        finally:
            connection.terminate()
    except asyncpg.TargetServerAttributeNotMatched:
        raise SettingsError(
            "DISPATCHER_DATABASE_URL: none of its hosts takes writes; one of them must be the primary"
        ) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise url_refused("database_url", url, f"Postgres cannot be reached: {reason}") from None


def _is_read_only(connection: Any) -> bool:
    settings = connection.get_settings()
    return "on" in (
        getattr(settings, "in_hot_standby", "off"),
        getattr(settings, "default_transaction_read_only", "off"),
    )
