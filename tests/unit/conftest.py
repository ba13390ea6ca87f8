"""Fixtures of the tests that need neither Redis nor Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.http_harness import Client, open_client


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async for opened in open_client():
        yield opened
