"""One pass over the keys of a node for all the zones that want to see theirs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final

from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline

#: What the keys of every zone begin with.
_ALL: Final = "dsp:{"

Take = Callable[[list[str]], Awaitable[None]]


@dataclass(slots=True)
class _Wish:
    """A zone that wants its keys, what takes a page of them, and what waits for the end."""

    keys: Keys
    take: Take
    end: asyncio.Future[None]


class SharedScan:
    """Zones that ask while a pass goes on share the next one: a thousand zones cost two passes."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._waiting: defaultdict[Hashable, list[_Wish]] = defaultdict(list)
        self._passes: dict[Hashable, asyncio.Task[None]] = {}

    async def scan(self, keys: Keys, take: Take) -> None:
        """Gives `take` the zone's keys, in pages; a key may come twice. Raises StoreUnavailable."""
        node = self._pipeline.node_of(keys.epoch)
        wish = _Wish(keys, take, asyncio.get_running_loop().create_future())
        self._waiting[node].append(wish)
        if node not in self._passes:
            self._passes[node] = asyncio.get_running_loop().create_task(self._pass_on(node))
        await wish.end

    async def was_filled(self, keys: Keys) -> bool:
        """Whether the zone was ever loaded into what this Redis holds, be it by an earlier release that
        left no mark of it; it is, from now on."""
        was_filled = await self._pipeline.command("SET", keys.filled, 1, "GET")
        if was_filled is not None:
            return True
        lists = (keys.seen, keys.waves, keys.claims, keys.present, keys.vehicles, keys.events)
        return bool(await self._pipeline.command("EXISTS", *lists))

    async def _pass_on(self, node: Hashable) -> None:
        try:
            while wishes := self._waiting.pop(node, []):
                await self._pass(wishes)
        finally:
            del self._passes[node]

    async def _pass(self, wishes: list[_Wish]) -> None:
        by_prefix = {wish.keys.prefix: wish for wish in wishes}
        prefix = wishes[0].keys.prefix if len(wishes) == 1 else _ALL
        failure: BaseException | None = None
        try:
            async for page in self._pipeline.scan(wishes[0].keys.epoch, prefix):
                await self._hand_out(page, by_prefix)
        except BaseException as error:
            failure = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            for wish in wishes:
                if wish.end.done():
                    continue
                if failure is None:
                    wish.end.set_result(None)
                else:
                    wish.end.set_exception(type(failure)(*failure.args))

    async def _hand_out(self, page: list[str], by_prefix: dict[str, _Wish]) -> None:
        of_zone: defaultdict[str, list[str]] = defaultdict(list)
        for name in page:
            of_zone[name[: name.find("}:") + 2]].append(name)
        wanted = [(by_prefix[prefix], names) for prefix, names in of_zone.items() if prefix in by_prefix]
        await asyncio.gather(*(wish.take(names) for wish, names in wanted if not wish.end.done()))
