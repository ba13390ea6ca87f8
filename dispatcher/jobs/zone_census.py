"""Counts, for the metrics, what waits and who is free in each zone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from dispatcher.live.keys import keys_of
from dispatcher.live.zone_view import ZoneNumbers, ZoneViewScripts

#: Often enough that no scrape of the metrics is told of long ago; it takes three sizes a zone.
_INTERVAL_S: Final = 5.0


class ZoneCensus:
    """Every server asks for itself, and all are told the same. A zone that cannot be asked keeps the
    numbers of its last time."""

    name = "zone-census"
    interval_s = _INTERVAL_S

    def __init__(self, scripts: ZoneViewScripts, zones: Sequence[str]) -> None:
        self._scripts = scripts
        self._numbers = dict.fromkeys(zones, ZoneNumbers(0, 0, 0))

    def numbers(self, name: str) -> Mapping[tuple[str, ...], float]:
        """One of the numbers of ZoneNumbers, by zone."""
        return {(zone,): getattr(numbers, name) for zone, numbers in self._numbers.items()}

    async def run(self) -> None:
        asked = await asyncio.gather(*map(self._ask, self._numbers), return_exceptions=True)
        failures = [failure for failure in asked if failure is not None]
        if failures:
            raise failures[0]

    async def _ask(self, zone: str) -> None:
        self._numbers[zone] = await self._scripts.numbers(keys_of(zone))
