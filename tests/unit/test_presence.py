"""The connections that a process knows of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import StoreUnavailable
from dispatcher.service.connections import HTTP, Connection, Connections
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


def _connection(number: int) -> Connection:
    return Connection(HTTP, Actor(f"d{number}", Role.DRIVER), "z", "")


async def test_many_connections_are_looked_at_in_turns() -> None:
    """Calls are answered in between: a hundred thousand at once would hold them up for 60 ms."""
    connections, turns = Connections(60.0), 0
    for number in range(10_001):
        connections.add(_connection(number))

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    assert len(await connections.due({})) == 10_001
    task.cancel()
    assert turns >= 5


async def test_who_leaves_while_others_are_looked_at_is_told_of_no_more() -> None:
    connections = Connections(60.0)
    first, silent, *others = (_connection(number) for number in range(3_000))
    silent.seen = -1_000.0
    silent.told = silent.told_at = 0.0
    for connection in (first, silent, *others):
        connections.add(connection)
    due = asyncio.create_task(connections.due({}))
    await asyncio.sleep(0)
    connections.remove(first)
    connections.add(came_back := _connection(0))
    assert await due == others, "neither who has left, nor whom a new connection stands for"
    assert connections.find("driver:d1", HTTP) is None, "who is silent is forgotten"
    assert connections.find("driver:d0", HTTP) is came_back
