"""What every test of the scripts may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.live.client import connect
from tests.harness.lua_zone import BACKENDS, Zone, open_zone


@pytest.fixture(params=BACKENDS)
async def zone(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Zone]:
    """A warm zone at START_MS, once on fakeredis and once on the real engine."""
    async with open_zone(request.param, redis_url) as opened:
        yield opened


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    """A client as servers have it, of the real engine."""
    opened = connect(redis_url)
    yield opened
    await opened.aclose()
