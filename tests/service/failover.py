"""A Redis that lacks the last writes, as after a failover or a restore."""

from __future__ import annotations

from typing import Any

from tests.harness.services import City


class StaleReplica:
    """What Redis held at one moment, to take its place later."""

    def __init__(self, city: City, held: dict[str, tuple[str, int]]) -> None:
        self._city = city
        self._held = held

    @classmethod
    async def of(cls, city: City) -> StaleReplica:
        """A replica of what Redis holds now, which gets no write from now on."""
        names = await city.redis("KEYS", "*")
        held = {}
        for name in names:
            kind = await city.redis("TYPE", name)
            held[name] = (kind, await _read(city, kind, name), await city.redis("PTTL", name))
        return cls(city, held)  # type: ignore[arg-type]

    async def take_over(self, *, notice: bool = True) -> None:
        """The replica answers from now on, and has another run id than the zones were loaded into."""
        city = self._city
        await city.redis("FLUSHDB")
        for name, (kind, content, life_ms) in self._held.items():  # type: ignore[misc]
            for command in _writes(kind, name, content):
                await city.redis(*command)
            if int(life_ms) > 0:
                await city.redis("PEXPIRE", name, life_ms)
            if name.endswith(":epoch"):
                loaded_ms, horizon_ms, _ = str(content).split(" ")
                await city.redis("SET", name, f"{loaded_ms} {horizon_ms} {'a' * 40}")
        if notice:
            await city.reconcile().run()
            for zone in city.parts.zones.names():
                await city.parts.rehydration.warm(zone)


async def _read(city: City, kind: str, name: str) -> Any:
    match kind:
        case "string":
            return await city.redis("GET", name)
        case "hash":
            return await city.redis("HGETALL", name)
        case "zset":
            return await city.redis("ZRANGE", name, 0, -1, "WITHSCORES")
        case "set":
            return await city.redis("SMEMBERS", name)
        case "list":
            return await city.redis("LRANGE", name, 0, -1)
        case "stream":
            return await city.redis("XRANGE", name, "-", "+")
    raise AssertionError(kind)


def _writes(kind: str, name: str, content: Any) -> list[tuple[Any, ...]]:
    match kind:
        case "string":
            return [("SET", name, content)]
        case "hash":
            flat = content if isinstance(content, list) else [x for kv in content.items() for x in kv]
            return [("HSET", name, *flat)]
        case "zset":
            pairs = zip(content[::2], content[1::2], strict=True)
            return [("ZADD", name, score, member) for member, score in pairs]
        case "set":
            return [("SADD", name, *content)]
        case "list":
            return [("RPUSH", name, *content)]
        case "stream":
            return [("XADD", name, entry, *fields) for entry, fields in content]
    raise AssertionError(kind)
