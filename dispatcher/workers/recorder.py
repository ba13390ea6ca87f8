"""Brings what may lag a little to Postgres, in batches: drivers' last positions."""

from __future__ import annotations

from dispatcher.service.positions import Positions


class Recorder:
    """Saves what this server has gathered since the last time."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions

    async def __call__(self) -> None:
        await self._positions.save()
