"""Checks Postgres before a server or a command starts on it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg

from dispatcher.config import SettingsError, url_refused

_TIMEOUT_S: Final = 5.0  # a server that takes longer to answer is not one to start on
_OLDEST_POSTGRES: Final = 14  # the first that reports with the connection whether it is read-only


async def check_postgres(url: str) -> None:
    """Check that Postgres 14+ answers at `url`, and that it takes writes.

    Raises SettingsError, which names the setting and never shows the URL's password.
    """
    try:
        connection = await asyncpg.connect(url, timeout=_TIMEOUT_S)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise url_refused("database_url", url, f"Postgres cannot be reached: {reason}") from None
    try:
        version: int = connection.get_server_version().major
        read_only = _is_read_only(connection)
    finally:
        async with asyncio.timeout(_TIMEOUT_S):
            await connection.close()
    if version < _OLDEST_POSTGRES:
        raise SettingsError(
            f"DISPATCHER_DATABASE_URL: Postgres {version} is there; "
            f"{_OLDEST_POSTGRES} or newer is needed"
        )
    if read_only:
        raise SettingsError("DISPATCHER_DATABASE_URL: is read-only; give the URL of the primary")


def _is_read_only(connection: Any) -> bool:
    settings = connection.get_settings()
    return "on" in (
        getattr(settings, "in_hot_standby", "off"),
        getattr(settings, "default_transaction_read_only", "off"),
    )
