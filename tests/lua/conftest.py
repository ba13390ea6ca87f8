"""What every test of the scripts may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.harness.lua_zone import BACKENDS, Zone, open_zone


@pytest.fixture(params=BACKENDS)
async def zone(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Zone]:
    """A warm zone at START_MS, once on fakeredis and once on the real engine."""
    async with open_zone(request.param, redis_url) as opened:
        yield opened
