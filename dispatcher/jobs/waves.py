"""Runs the waves of offers that are due in a zone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from dispatcher.live.matching import TripInWaiting
from dispatcher.service.offers import Offers

#: Nothing wakes the job while its wake-ups cannot be heard: it looks as often as this.
_DEAF_REST_S: Final = 0.2
#: It is woken when a trip begins to wait, so this is only how long it trusts that.
_MAX_REST_S: Final = 60.0
_MIN_REST_S: Final = 0.005


class Waves:
    """One job a zone, on the server that holds it. What makes a wave due wakes it, wherever that is.

    `fence` gives that by which the zone is held, `hears` whether wake-ups are heard; `hand_over` takes
    the trips that are for a round of matching, which is run here without it.
    """

    def __init__(
        self,
        offers: Offers,
        zone: str,
        *,
        fence: Callable[[], str] = lambda: "",
        hears: Callable[[], bool] = lambda: False,
        hand_over: Callable[[Mapping[str, TripInWaiting]], None] | None = None,
    ) -> None:
        self.name = f"waves-{zone}"
        self.interval_s = _DEAF_REST_S
        self._offers = offers
        self._zone = zone
        self._fence = fence
        self._hears = hears
        self._hand_over = hand_over

    async def run(self) -> float:
        most_s = _MAX_REST_S if self._hears() else _DEAF_REST_S
        wait_ms = await self._offers.run_due(self._zone, self._fence(), hand_over=self._hand_over)
        if wait_ms is None:
            return most_s
        return min(most_s, max(_MIN_REST_S, wait_ms / 1000))
