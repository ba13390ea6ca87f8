"""Looks into the live state for operators: the scripts of `lua/inspect/`, which change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dispatcher.core.zones import Wave
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline

_PASSES = {"yes": True, "no": False, "-": None}


class FilterView(NamedTuple):
    """What one filter of a wave says of a driver; `passes` is None where it could not be asked, or
    decides later."""

    name: str
    passes: bool | None
    saw: str


class InspectionScripts:
    """Questions of operators. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def why(
        self,
        keys: Keys,
        trip_id: str,
        driver_id: str,
        *,
        fix_age_ms: int,
        max_open_offers: int,
        candidates_per_offer: int,
        more_candidates: int,
        waves: Sequence[Wave],
        queue: str = "",
    ) -> list[FilterView]:
        """What each filter of a trip's next wave says of a driver, in the order of the wave. `queue` is
        the one at whose place the pickup is, or empty."""
        args: list[Any] = [fix_age_ms, max_open_offers, candidates_per_offer, more_candidates, queue]
        for wave in waves:
            args += (wave.size, wave.radius_m)
        *rows, _ = await self._pipeline.run(
            "inspect/why", (keys.trip(trip_id), keys.driver(driver_id)), args
        )
        return [FilterView(name, _PASSES[passes], saw) for name, passes, saw in rows]
