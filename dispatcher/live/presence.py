"""Presence in Redis: connections that live as long as they give signs of life."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.actors import Role
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline

#: A sweeper that dies leaves its users to another one after this long.
_SWEEP_AGAIN_MS: Final = 10_000
#: Scores are doubles, and may be infinite.
_LATEST_MS: Final = 2**53


class Touch(NamedTuple):
    """A connection to register or to prolong: whose it is (role:id), what is known of it (JSON), and
    how long it lives from now on, in ms."""

    address: str
    connection_id: str
    metadata: str
    life_ms: int
    #: Of the driver's row that places them here; -1 where there is none, and for other users.
    version: int


class TouchResult(IntEnum):
    """What became of a touch."""

    ELSEWHERE = -1  # not done: the driver works in another zone
    UNKNOWN = 0  # done; the zone does not know the driver, or not yet that they work here
    HERE = 1  # done


class Swept(NamedTuple):
    """The epoch of the zone, empty where it is cold, Redis' time in ms, and absent users' addresses."""

    epoch: str
    now_ms: int
    addresses: list[str]


class OpenConnection(NamedTuple):
    """A connection of a user: until when (ms) it lives without a sign of life, and what is known."""

    connection_id: str
    ends_ms: int
    about: dict[str, Any]


class PresenceScripts:
    """The connections of a zone's users. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def touch_presence(self, keys: Keys, touches: Sequence[Touch]) -> list[TouchResult]:
        """Registers or prolongs connections; a result each."""
        names: list[str] = [keys.present]
        args: list[Any] = [keys.zone]
        for touch in touches:
            role, _, user_id = touch.address.partition(":")
            names += (
                keys.presence(touch.address, touch.connection_id), keys.connections(touch.address),
                keys.driver(user_id) if role == Role.DRIVER else keys.present,
            )  # fmt: skip
            args += touch
        results = await self._pipeline.run("touch_presence", names, args)
        return [TouchResult(result) for result in results]

    async def drop_presence(self, keys: Keys, address: str, connection_id: str) -> int:
        """Removes one connection; returns how many its user has left."""
        left: int = await self._pipeline.run(
            "drop_presence",
            (keys.presence(address, connection_id), keys.connections(address), keys.present),
            (connection_id, address),
        )
        return left

    async def begin_look(self, keys: Keys, node: str, *, every_ms: int) -> bool:
        """Whether this server is to look for users without a presence: one does, within `every_ms`."""
        won: Any = await self._pipeline.command("SET", keys.presence_look, node, "NX", "PX", every_ms)
        return bool(won)

    async def expect_present(self, keys: Keys, addresses: Sequence[str], *, life_ms: int) -> int:
        """Gives users without any presence one that ends after `life_ms`; returns how many they are."""
        added: int = await self._pipeline.run("expect_present", (keys.present,), (life_ms, *addresses))
        return added

    async def sweep_absent(
        self,
        keys: Keys,
        *,
        grace_ms: int,
        epoch: str,
        latest_ms: int,
        life_ms: int,
        max_users: int = 200,
    ) -> Swept:
        """Users who have been gone for longer than the grace period; none where the zone was loaded
        in another epoch than `epoch`, the text of an earlier sweep, or where Redis' clock shows a later
        time than `latest_ms`. No presence lasts for longer than `life_ms` from now on."""
        known, now_ms, addresses = await self._pipeline.run(
            "sweep_absent",
            (keys.present, keys.epoch),
            (grace_ms, _SWEEP_AGAIN_MS, max_users, epoch, latest_ms, life_ms),
        )
        return Swept(known, now_ms, addresses)

    async def connections_of(self, keys: Keys, address: str) -> tuple[int | None, list[OpenConnection]]:
        """The end of a user's presence (ms; None: no presence), and their connections."""
        ends = await self._pipeline.command("ZSCORE", keys.present, address)
        listed = await self._pipeline.command("ZRANGE", keys.connections(address), 0, -1)
        found = []
        for connection_id in listed:
            about = await self._pipeline.command("GET", keys.presence(address, connection_id))
            until = await self._pipeline.command("ZSCORE", keys.connections(address), connection_id)
            if about is not None and until is not None:
                with self._pipeline.decoding(
                    keys.presence(address, connection_id), keys.connections(address)
                ):
                    found.append(OpenConnection(connection_id, _time_ms(until), orjson.loads(about)))
        return (None if ends is None else _time_ms(ends)), found

    async def forget_absent(self, keys: Keys, address: str) -> bool:
        """Forgets a user who is gone; False where they came back."""
        return bool(await self._pipeline.run("forget_absent", (keys.present,), (address,)))


def _time_ms(score: str) -> int:
    return int(min(float(score), _LATEST_MS))
