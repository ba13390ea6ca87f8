"""Looks after the zones that do without their Redis, and gives them back once it is there again."""

from __future__ import annotations

from typing import Final

from dispatcher.core.zones import Zones
from dispatcher.service.authorities import Authorities
from dispatcher.service.catch_up import CatchUp
from dispatcher.service.event_tail import EventTail
from dispatcher.service.ledger_offers import LedgerOffers
from dispatcher.service.rehydration import Rehydration

#: How soon a server hears of what another one has changed, and makes offers.
_INTERVAL_S: Final = 0.5


class DegradedZones:
    """Every server does it: for its own sockets, and for the zones that nobody has given back yet."""

    name = "degraded-zones"
    interval_s = _INTERVAL_S

    def __init__(
        self,
        *,
        zones: Zones,
        authorities: Authorities,
        rehydration: Rehydration,
        catch_up: CatchUp,
        tail: EventTail,
        offers: LedgerOffers,
    ) -> None:
        self._zones = zones
        self._authorities = authorities
        self._rehydration = rehydration
        self._catch_up = catch_up
        self._tail = tail
        self._offers = offers
        self._degraded: set[str] = set()

    async def run(self) -> None:
        for given in await self._authorities.tend(self._catch_up.is_done):
            await self._rehydration.check_epoch(given)  # it is loaded from now on, without waiting
        degraded = set(self._authorities.degraded())
        self._catch_up.forget_all_but(degraded)
        # Once more for those that were given back: what was committed last is told, too.
        if told := degraded | self._degraded:
            await self._tail.tell(sorted(told))
        self._degraded = degraded
        zones = [self._zones.get(name) for name in degraded]
        await self._offers.run([zone for zone in zones if zone is not None])
