"""What every test of the ledger wing may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.ledger.harness import LedgerDatabase
from tests.ledger.small_migrations import write


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[LedgerDatabase]:
    """A migrated, empty database for this test alone, and a connection to it."""
    connection, committing = [await asyncpg.connect(database_url) for _ in range(2)]
    yield LedgerDatabase(database_url, connection, committing)
    await committing.close()
    await connection.close()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three small migrations."""
    write(tmp_path, "0001_first", "CREATE TABLE first (id int);", "DROP TABLE first;")
    write(tmp_path, "0002_second", "CREATE TABLE second (id int);", "DROP TABLE second;")
    write(tmp_path, "0003_third", "CREATE TABLE third (id int);", "DROP TABLE third;")
    return tmp_path
