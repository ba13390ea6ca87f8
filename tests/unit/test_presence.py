"""The connections that a process knows of."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import StoreUnavailable
from dispatcher.service.presence import Presence


class _Away:
    """Scripts of a Redis that is away."""

    async def touch_presence(self, *_: Any) -> None:
        raise StoreUnavailable


class _Steady:
    """Redis decides, whatever happens."""

    async def has_left_redis(self, _: str) -> bool:
        return False


async def test_a_registration_that_failed_is_forgotten() -> None:
    scripts: Any = _Away()
    directory: Any = None
    authorities: Any = _Steady()
    presence = Presence(
        scripts=scripts, directory=directory, authorities=authorities, node="n", ttl_s=60
    )
    with pytest.raises(StoreUnavailable):
        await presence.register("c1", Actor("r1", Role.CUSTOMER), None, "")
    assert len(presence.connections) == 0
