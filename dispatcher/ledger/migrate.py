"""Migrations, forward and backward: `sql/migrations/NNNN_name.up.sql` and `.down.sql`.

Each migration and its row in `schema_migrations` are one transaction, so a migration may not hold
what Postgres refuses there (`CREATE INDEX CONCURRENTLY`). Runs under an advisory lock of the
session: behind a pooler that shares sessions, migrate over a direct connection.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import aiosql
import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random

from dispatcher.config import SettingsError
from dispatcher.ledger.connections import connect
from dispatcher.ledger.schema_objects import schema_losses, schema_objects
from dispatcher.resources import SQL_DIR

MIGRATIONS_DIR = SQL_DIR / "migrations"

_T = TypeVar("_T")
_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.(up|down)\.sql")
_LOCK_KEY = 0x6469737061746368  # "dispatch" in ASCII: one key of Postgres's 64-bit space
#: The role may not do it, or may not even look into the schema.
_FORBIDDEN = (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError)
#: Others hold what a migration needs. It waits in short turns: whoever comes later waits behind it.
_IN_USE = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
_REST_S = (0.5, 1.0)
_GIVE_UP_S = 60.0
_queries: Any = aiosql.from_path(SQL_DIR / "schema_migrations.sql", "asyncpg")


class MigrationError(Exception):
    """The migrations of this program and the state of the database do not fit together."""


class SchemaError(MigrationError):
    """The database is of another version than this program: nothing was done."""


@dataclass(frozen=True)
class Migration:
    """One step of the schema, with the text of both directions."""

    version: int
    name: str
    up_sql: str
    down_sql: str

    @property
    def label(self) -> str:
        return f"{self.version:04}_{self.name}"

    @property
    def checksum(self) -> str:
        """SHA-256 of the up file, in hexadecimal."""
        return hashlib.sha256(self.up_sql.encode()).hexdigest()


@dataclass(frozen=True)
class MigrationStatus:
    """One migration, and when it was applied; None where it was not."""

    version: int
    name: str
    applied_at: datetime | None


@dataclass(frozen=True)
class Downgrade:
    """What taking back migrations takes away: their labels, newest first, and one line for each table
    (with its rows), column, function and type."""

    labels: list[str]
    losses: list[str]


async def up(database_url: str, directory: Path = MIGRATIONS_DIR) -> list[str]:
    """Apply what is missing, in order; the labels of what was applied.

    Raises MigrationError before anything is changed if the database does not fit the files.
    """
    migrations = read_migrations(directory)
    applied: list[str] = []
    async with _locked(database_url) as connection:
        done = await _check_applied(connection, migrations)
        for migration in migrations[len(done) :]:
            await _in_turns(_apply, connection, migration)
            applied.append(migration.label)
    return applied


async def down(
    database_url: str, steps: int, directory: Path = MIGRATIONS_DIR, *, force: bool = False
) -> list[str]:
    """Take back the last `steps` migrations, newest first; the labels of what was taken back.

    After the last one the database holds nothing of this program. Raises MigrationError, also where
    servers are connected, unless `force` says that they do not matter.
    """
    migrations = read_migrations(directory)
    reverted: list[str] = []
    async with _locked(database_url) as connection:
        for migration in await _last_applied(connection, migrations, steps, force=force):
            await _in_turns(_take_back, connection, migration)
            reverted.append(migration.label)
    return reverted


async def preview_down(
    database_url: str, steps: int, directory: Path = MIGRATIONS_DIR, *, force: bool = False
) -> Downgrade:
    """What `down` would take away. Raises MigrationError where `down` would.

    The migrations are taken back in a transaction that is rolled back, so this is what happens, and
    not what their files seem to say.
    """
    migrations = read_migrations(directory)
    async with _locked(database_url) as connection:
        reverting = await _last_applied(connection, migrations, steps, force=force)
        before = await schema_objects(connection)
        after = await _in_turns(_objects_without, connection, *reverting)
        losses = await schema_losses(connection, before, after)
    return Downgrade([migration.label for migration in reverting], losses)


async def status(database_url: str, directory: Path = MIGRATIONS_DIR) -> list[MigrationStatus]:
    """Every migration of this program, applied or not. Changes nothing. Raises MigrationError."""
    migrations = read_migrations(directory)
    async with _locked(database_url) as connection:
        times = await _check_applied(connection, migrations)
    return [
        MigrationStatus(migration.version, migration.name, times.get(migration.version))
        for migration in migrations
    ]


async def check_current(database_url: str) -> None:
    """Raises SchemaError where the database is not of this program's version."""
    missing = [step for step in await status(database_url) if step.applied_at is None]
    if missing:
        raise SchemaError(
            f"this database is behind: it lacks migration {missing[0].version:04}_{missing[0].name}; "
            "run `dispatcher migrate up`"
        )


def read_migrations(directory: Path) -> list[Migration]:
    """The migrations of a directory by version, which must run 1, 2, 3 … without a gap."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name}: a migration is named NNNN_name.up.sql or .down.sql")
        found.setdefault(f"{match[1]}_{match[2]}", {})[match[3]] = path.read_text("utf-8")
    migrations = []
    for expected, (label, texts) in enumerate(sorted(found.items()), start=1):
        number, _, name = label.partition("_")
        if int(number) != expected:
            raise MigrationError(f"migration {expected:04} is missing or there twice: see {label}")
        if len(texts) != 2:
            raise MigrationError(f"migration {label} needs both an up and a down file")
        migrations.append(Migration(expected, name, texts["up"], texts["down"]))
    return migrations


@asynccontextmanager
async def _locked(database_url: str) -> AsyncIterator[Any]:
    """A connection that alone may migrate; the lock ends with the connection.

    Raises SettingsError where its role may not.
    """
    connection = await connect(database_url)
    try:
        await _queries.lock_migrations(connection, key=_LOCK_KEY)
        yield connection
    except _FORBIDDEN as error:
        raise SettingsError(
            f"DISPATCHER_DATABASE_URL: its role may not migrate the schema: {error}; "
            "run `dispatcher migrate` as its owner"
        ) from None
    finally:
        await connection.close()


async def _last_applied(
    connection: Any, migrations: list[Migration], steps: int, *, force: bool
) -> list[Migration]:
    """The last applied migrations, newest first. Raises MigrationError where servers would miss them."""
    done = len(await _check_applied(connection, migrations))
    sessions = await _queries.count_server_sessions(connection)
    if sessions and not force:
        raise MigrationError(
            f"servers are connected to this database ({sessions} sessions): stop them, or use --force"
        )
    return migrations[max(0, done - steps) : done][::-1]


async def _check_applied(connection: Any, migrations: list[Migration]) -> dict[int, datetime]:
    """When each applied version was applied; refuses a database that does not fit the files."""
    if not await _queries.schema_migrations_exists(connection):
        return {}
    times: dict[int, datetime] = {}
    rows = [row async for row in _queries.list_applied(connection)]
    for expected, row in enumerate(rows, start=1):
        label = f"{row['version']:04}_{row['name']}"
        if row["version"] > len(migrations):
            raise SchemaError(
                f"this database is from a newer version of the program: it has migration {label}, "
                f"and this version knows {len(migrations)}; update the program"
            )
        if row["version"] != expected:
            raise SchemaError(f"migration {expected:04} was not applied, but {label} was")
        migration = migrations[expected - 1]
        if (row["name"], row["checksum"]) != (migration.name, migration.checksum):
            raise SchemaError(
                f"migration {migration.label} was changed after it was applied (as {label}): "
                "put its file back as it was, and add a new migration for the change"
            )
        times[expected] = row["applied_at"]
    return times


async def _in_turns(step: Callable[..., Awaitable[_T]], connection: Any, *migrations: Migration) -> _T:
    """Takes a step in a transaction, again where others hold what it needs. Raises MigrationError."""
    turns = count(1)

    async def take_turn() -> _T:
        async with connection.transaction():
            await _queries.limit_migration_wait(connection, turn=next(turns))
            return await step(connection, *migrations)

    attempts = AsyncRetrying(
        stop=stop_after_delay(_GIVE_UP_S), wait=wait_random(*_REST_S),
        retry=retry_if_exception_type(_IN_USE), reraise=True,
    )  # fmt: skip
    try:
        return await attempts(take_turn)
    except _IN_USE as error:
        what = "migration " + ", ".join(each.label for each in migrations)
        raise MigrationError(
            f"{what} was rolled back: another transaction is in its way: {error}"
        ) from error


async def _apply(connection: Any, migration: Migration) -> None:
    if migration.version == 1:
        await _queries.create_schema_migrations(connection)
    await _run(connection, migration.label, migration.up_sql)
    await _queries.record_applied(
        connection, version=migration.version, name=migration.name, checksum=migration.checksum
    )


async def _take_back(connection: Any, migration: Migration) -> None:
    await _run(connection, migration.label, migration.down_sql)
    await _queries.forget_applied(connection, version=migration.version)
    if migration.version == 1:
        await _queries.drop_schema_migrations(connection)


async def _objects_without(connection: Any, *migrations: Migration) -> dict[tuple[str, str], str]:
    trial = connection.transaction()
    await trial.start()
    for migration in migrations:
        await _run(connection, migration.label, migration.down_sql)
    after = await schema_objects(connection)
    await trial.rollback()
    return after


async def _run(connection: Any, label: str, script: str) -> None:
    try:
        await connection.execute(script)
    except (*_FORBIDDEN, *_IN_USE):
        raise
    except asyncpg.PostgresError as error:
        raise MigrationError(f"migration {label} failed and was rolled back: {error}") from error
