"""What a zone's Redis was told while Postgres decides alone, noted in that Redis itself."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline

#: A server that dies as it tells a zone leaves it to another one after this long.
_LOCK_MS: Final = 10_000
#: A zone is given back, and loaded, within seconds; a load that comes later tells all.
_NOTE_MS: Final = 60_000


class CaughtUp(NamedTuple):
    """All that was visible at a time (ms, by Postgres' clock): events, and answers of keys up to a row's
    id, but for those that expire by the horizon (ms)."""

    at_ms: int
    answer_id: int
    horizon_ms: int


class CatchUpNotes:
    """One server at a time tells a zone. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def begin(self, keys: Keys, token: str) -> bool:
        """Whether this server may tell the zone."""
        won: Any = await self._pipeline.command("SET", keys.catching_up, token, "NX", "PX", _LOCK_MS)
        return bool(won)

    async def go_on(self, keys: Keys) -> None:
        """The lock lives on."""
        await self._pipeline.command("PEXPIRE", keys.catching_up, _LOCK_MS)

    async def end_catching_up(
        self, keys: Keys, token: str, *, fence: int = 0, run_id: str = "", caught: CaughtUp | None = None
    ) -> bool:
        """Lets go of the lock, and notes what was told, under which fence, and to which Redis. False
        where the lock was not held any more: nothing is noted."""
        note = " ".join(map(str, (fence, *caught, run_id))) if caught else ""
        reply: int = await self._pipeline.run(
            "end_catching_up", (keys.catching_up, keys.caught_up), (token, note, _NOTE_MS)
        )
        return reply == 1

    async def read(self, keys: Keys, *, fence: int, run_id: str) -> CaughtUp | None:
        """What this Redis was told under this fence; None: nothing. One that was started again since, or
        has followed another, may have lost it."""
        note = await self._pipeline.command("GET", keys.caught_up)
        if note is None:
            return None
        with self._pipeline.decoding(keys.caught_up):
            *numbers, told = note.split(" ")
            noted_fence, at_ms, answer_id, horizon_ms = map(int, numbers)
        return CaughtUp(at_ms, answer_id, horizon_ms) if (noted_fence, told) == (fence, run_id) else None
