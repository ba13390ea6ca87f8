"""Settles that do not give up at once: what is committed is to be heard."""

from __future__ import annotations

from functools import partial
from typing import Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import StoredAnswer
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.live.settle import Settlement, Settler
from dispatcher.service.lease_retries import LeaseRetries

log = structlog.get_logger("dispatcher.coordinator")

#: How often a settle is tried before its request is answered: a lost connection is found again at once.
_MAX_TRIES: Final = 2


class PersistentSettles:
    """Settles what is durable: what Redis does not take goes on in the background, until the attempt's
    lease is over, from when on the reconcile job looks after it."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self._retries = LeaseRetries(first_wait_s=0.005, max_wait_s=0.25)

    async def settle(
        self, keys: Keys, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None
    ) -> None:
        """Settles, now or later; the change is durable, so it is answered in any case."""
        for _ in range(_MAX_TRIES):
            try:
                await self._settler.settle(keys, attempt, settlement, answer)
            except StoreUnavailable as error:
                reason = str(error)
            else:
                return
        log.warning(
            "committed but not settled", zone=keys.zone, trip_id=attempt.trip_id,
            token=attempt.token, reason=reason,
        )  # fmt: skip
        work = partial(self._settle_again, keys, attempt, settlement, answer)
        self._retries.start(attempt, work, at_once=False)

    async def _settle_again(
        self, keys: Keys, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None
    ) -> bool:
        await self._settler.settle(keys, attempt, settlement, answer)
        return True

    async def close(self) -> None:
        """Leaves the rest to other servers' reconcile jobs."""
        await self._retries.close()
