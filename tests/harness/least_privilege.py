"""The rights that operators are told to give: the shipped ACL file and roles, and who works under them.

With LEAST_PRIVILEGE=1 in the environment, everything of the product that tests start on the session's
engines works as the ACL user of docs/redis.acl and as the role of sql/roles.sql. The tests' own looks
keep the rights of an administrator.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import asyncpg
import redis.asyncio

from dispatcher.embedded.engines import EngineUrls
from dispatcher.resources import SQL_DIR

ACL_FILE: Final = Path(__file__).parents[2] / "docs" / "redis.acl"
ROLES_FILE: Final = SQL_DIR / "roles.sql"
APP_ROLE: Final = "dispatcher_app"
OWNER_ROLE: Final = "dispatcher_owner"
IS_ON: Final = os.environ.get("LEAST_PRIVILEGE") == "1"
_PASSWORD: Final = "the-password-of-the-restricted-user"


def acl_line() -> list[str]:
    """The words of the ACL file's one line: `user`, a name, and the rules."""
    (line,) = ACL_FILE.read_text().splitlines()
    return line.split()


async def make_acl_user(redis_url: str) -> None:
    """Makes the user of the ACL file on the session's Valkey."""
    _, name, *rules = acl_line()
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.execute_command("ACL", "SETUSER", name, "reset", *rules, f">{_PASSWORD}")


async def make_roles(database_url: str) -> None:
    """Makes the roles, or gives them their rights in one more database."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(ROLES_FILE.read_text())
    finally:
        await connection.close()


class Restricted:
    """The URLs of the session's engines, as users with fewer rights; others stay as they are."""

    def __init__(self) -> None:
        self._engines: EngineUrls | None = None

    async def set_up(self, engines: EngineUrls) -> None:
        await make_acl_user(engines.redis_url)
        self._engines = engines

    def redis_url(self, url: str) -> str:
        if self._engines is None or not url.startswith(_without_path(self._engines.redis_url)):
            return url
        return f"redis://{acl_line()[1]}:{_PASSWORD}@{url.partition('@')[2]}"

    def database_url(self, url: str) -> str:
        if (
            self._engines is None
            or url.partition("?")[2] != self._engines.database_url.partition("?")[2]
        ):
            return url
        return url.replace("://postgres@", f"://{APP_ROLE}@", 1)


def _without_path(url: str) -> str:
    return url.rpartition("/")[0] + "/"


#: Of this process: set up with its session's engines, where LEAST_PRIVILEGE asks for it.
RESTRICTED: Final = Restricted()
