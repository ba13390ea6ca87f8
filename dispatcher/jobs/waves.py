"""Runs the waves of offers that are due in a zone."""

from __future__ import annotations

from typing import Final

from dispatcher.service.offers import Offers

#: Looked at least this often: another server may have made a wave due that we do not know of.
_MAX_REST_S: Final = 0.2
_MIN_REST_S: Final = 0.005


class Waves:
    """One job a zone. A trip created here is looked at at once: its wake-up ends the rest."""

    def __init__(self, offers: Offers, zone: str) -> None:
        self.name = f"waves-{zone}"
        self.interval_s = _MAX_REST_S
        self._offers = offers
        self._zone = zone

    async def run(self) -> float:
        wait_ms = await self._offers.run_due(self._zone)
        if wait_ms is None:
            return _MAX_REST_S
        return min(_MAX_REST_S, max(_MIN_REST_S, wait_ms / 1000))
