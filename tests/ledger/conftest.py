"""What every test of the ledger wing may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.ledger.harness import LedgerDatabase


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[LedgerDatabase]:
    """A migrated, empty database for this test alone, and a connection to it."""
    connection = await asyncpg.connect(database_url)
    yield LedgerDatabase(database_url, connection)
    await connection.close()
