"""Looks whether both engines can write, and how long they take to say so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog

from dispatcher.observe.series import ENGINES

log = structlog.get_logger("dispatcher.engines")

#: Often enough that no scrape of the metrics is told of a state of long ago.
_INTERVAL_S: Final = 5.0
_OK: Final = "ok"


class EngineWatch:
    """Every server does it for itself: an engine may be away for one of them alone.

    `check` says whether the server can decide, and what each engine's state is.
    """

    name = "engine-watch"
    interval_s = _INTERVAL_S

    def __init__(self, check: Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]) -> None:
        self._check = check
        # Both have answered before a server serves.
        self._states: dict[str, Any] = dict.fromkeys(ENGINES, _OK)

    def up(self) -> Mapping[tuple[str, ...], float]:
        """1 for each engine that could write when it was last asked, and else 0."""
        return {(engine,): float(state == _OK) for engine, state in self._states.items()}

    async def run(self) -> None:
        _, details = await self._check()
        states = {engine: details[engine] for engine in ENGINES}
        for engine, state in states.items():
            if state != self._states[engine]:
                log.warning("engine has changed", engine=engine, state=state)
        self._states = states
