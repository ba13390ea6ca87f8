"""Limits as the scripts take them, and as they report them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from dispatcher.core.limits import Limit, LimitState
from dispatcher.live.keys import SERVER_KEYS, Keys, keys_of
from dispatcher.live.pipeline import Pipeline


class _Code(StrEnum):
    ADMITTED = "admitted"
    RATE_LIMITED = "rate_limited"
    COLD = "cold"


class Admission(NamedTuple):
    """Whether a call was admitted, and how the limit to report stands (None: none applies).

    Where the zone that keeps the log is cold, nothing was counted: the logs are to be seeded.
    """

    is_admitted: bool
    limit: LimitState | None
    is_cold: bool = False


def limit_keys_and_rates(keys: Keys, limits: Iterable[Limit]) -> tuple[list[str], list[int]]:
    """The tails of a script's keys and arguments: the logs, then quota and window (s) of each."""
    names: list[str] = []
    rates: list[int] = []
    for limit in limits:
        names.append(limit_key(keys, limit))
        rates += limit.rate
    return names, rates


def limit_key(keys: Keys, limit: Limit) -> str:
    """The log that counts a limit; `keys` are those of the zone that decides on the call."""
    name, subject, _, kept_by = limit
    return (keys_of(kept_by) if kept_by else keys).limit(name, subject)


def limit_state(
    limits: Sequence[Limit], limit_index: int, remaining: int, reset_ms: int, now_ms: int
) -> LimitState | None:
    """What a script says of the limit to report: its index in `limits` counts from 1; 0 for none."""
    if not limit_index:
        return None
    limit = limits[limit_index - 1]
    return LimitState(limit.name, limit.rate, remaining, reset_ms, now_ms)


class LimitScripts:
    """Counting of calls that have no script of their own."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def check_limit(
        self, keys: Keys, limits: Sequence[Limit], *, is_seeded: bool = False
    ) -> Admission:
        """Counts one call, unless a limit refuses it, or the zone is cold and the caller has not seeded
        the logs. Raises StoreUnavailable."""
        names, rates = limit_keys_and_rates(keys, limits)
        args = (int(is_seeded), *rates)
        reply = await self._pipeline.run("check_limit", (keys.epoch, *names), args)
        text, now_ms, limit_index, remaining, reset_ms = reply
        code = _Code(text)
        state = limit_state(limits, limit_index, remaining, reset_ms, now_ms)
        return Admission(code is _Code.ADMITTED, state, is_cold=code is _Code.COLD)

    def announce_load(self, zone: str) -> None:
        """Tells all servers that a zone is being loaded. Nobody waits for it, and it never fails."""
        reply = self._pipeline.command("SPUBLISH", SERVER_KEYS.loads, zone)
        reply.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def seed_limits(self, logs: Sequence[tuple[str, int, Sequence[int]]]) -> int:
        """Adds admissions that Redis does not know to logs of one node: each log's key, its window (s),
        and times (ms), oldest first. Returns how many it did not know. Raises StoreUnavailable."""
        args: list[int] = []
        for _, window_s, times_ms in logs:
            args += (window_s, len(times_ms), *times_ms)
        added: int = await self._pipeline.run("seed_limits", [key for key, *_ in logs], args)
        return added
