"""A database of another version is refused by every command, in one sentence, with exit status 2."""

from __future__ import annotations

import asyncio

import asyncpg

from dispatcher.ledger import migrate
from tests.harness.servers import JWT_SECRET
from tests.system.test_cli import _run

#: What works on a database, and does not migrate it. The other tools begin as fsck does.
COMMANDS = [("cleanup",), ("fsck",)]
SERVE = ("serve", "--port", "0")


async def _refusals(commands: list[tuple[str, ...]], redis_url: str, url: str) -> set[tuple[int, str]]:
    """The exit statuses and sentences of the commands, run together."""
    settings = {
        "DISPATCHER_REDIS_URL": redis_url, "DISPATCHER_DATABASE_URL": url,
        "DISPATCHER_JWT_SECRET": JWT_SECRET,
    }  # fmt: skip
    done = await asyncio.gather(*(asyncio.to_thread(_run, *words, **settings) for words in commands))
    return {(each.returncode, each.stderr) for each in done}


async def test_a_database_that_is_ahead(redis_url: str, database_url: str) -> None:
    known = len(migrate.read_migrations(migrate.MIGRATIONS_DIR))
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, 'later', '-')", known + 1
    )
    await connection.close()
    assert await _refusals([*COMMANDS, SERVE], redis_url, database_url) == {
        (
            2,
            "error: this database is from a newer version of the program: it has migration "
            f"{known + 1:04}_later, and this version knows {known}; update the program\n",
        )
    }


async def test_a_database_that_is_behind(redis_url: str, database_url: str) -> None:
    (label,) = await migrate.down(database_url, 1)
    assert await _refusals(COMMANDS, redis_url, database_url) == {
        (2, f"error: this database is behind: it lacks migration {label}; run `dispatcher migrate up`\n")
    }
