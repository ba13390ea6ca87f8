"""Runs the rounds of matching of a zone, beside its waves: a routing engine that hangs, or a large plan,
holds up no trip that needs no round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from dispatcher.live.matching import TripInWaiting
from dispatcher.service.offers import Offers

#: It is woken when trips are handed over; nothing else is due.
_REST_S: Final = 60.0


class MatchingRounds:
    """One job a zone, on the server that holds it: so a zone plans one round at a time.

    Trips that are handed over while a round is planned are in the next one, and are due with it as all
    others once this one is over; they are due again before that, should this server fail. `fence` gives
    that by which the zone is held; `wave_is_due` is called after each round.
    """

    def __init__(
        self,
        offers: Offers,
        zone: str,
        *,
        fence: Callable[[], str] = lambda: "",
        wave_is_due: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = f"matching-{zone}"
        self.interval_s = _REST_S
        self._offers = offers
        self._zone = zone
        self._fence = fence
        self._wave_is_due = wave_is_due
        self._wake: Callable[[], None] = lambda: None
        self._looking: dict[str, TripInWaiting] = {}

    def subscribe(self, wake: Callable[[], None]) -> None:
        """`wake` is called when there are trips for a round."""
        self._wake = wake

    def hand_over(self, looking: Mapping[str, TripInWaiting]) -> None:
        """These trips take part in the next round."""
        self._looking.update(looking)
        self._wake()

    async def run(self) -> None:
        looking, self._looking = self._looking, {}
        if not looking:
            return
        try:
            await self._offers.run_round(self._zone, looking, self._fence())
        finally:
            # Those of this round that were claimed meanwhile have an offer by now, or are due again.
            for trip_id in looking:
                self._looking.pop(trip_id, None)
            self._wave_is_due()
