"""Settles that do not give up at once: what is committed is to be heard."""

from __future__ import annotations

import time
from functools import partial
from typing import Final, NamedTuple

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import StoredAnswer
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.settle import Settler
from dispatcher.live.settlement import Settlement
from dispatcher.observe.series import SETTLE_SECONDS
from dispatcher.service.commands.command import Plan
from dispatcher.service.lease_retries import LeaseRetries

log = structlog.get_logger("dispatcher.coordinator")

#: How often a settle is tried before its request is answered: a lost connection is found again at once.
_MAX_TRIES: Final = 2


class Telling(NamedTuple):
    """What one zone is to be told of a change."""

    keys: Keys
    attempt: Attempt
    settlement: Settlement
    answer: StoredAnswer | None


def tellings_of(keys: Keys, attempt: Attempt, plan: Plan, answer: StoredAnswer | None) -> list[Telling]:
    """What each zone is to be told of a committed plan; `answer` is kept in all of them."""
    told = [Telling(keys, attempt, plan.settlement, answer)]
    if plan.other_settlement is not None:
        # The other zone comes first: as long as this one is not settled, the reconcile job knows of the
        # attempt. Both keep the answer: a retry asks where the driver works by then.
        elsewhere = attempt._replace(trip_id="")
        told.insert(0, Telling(keys_of(plan.other_zone), elsewhere, plan.other_settlement, answer))
    return told


class PersistentSettles:
    """Settles what is durable: what Redis does not take goes on in the background, until the attempt's
    lease is over, from when on the reconcile job looks after it."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self._retries = LeaseRetries(first_wait_s=0.005, max_wait_s=0.25)

    def __len__(self) -> int:
        """How many changes are durable, and not heard yet."""
        return len(self._retries)

    async def settle(self, zones: list[Telling]) -> None:
        """Settles one change in each of these zones, in their order, now or later.

        It is durable, so it is answered in any case.
        """
        began_s = time.perf_counter()
        for _ in range(_MAX_TRIES):
            try:
                while zones:
                    await self._settler.settle(*zones[0])
                    del zones[0]
            except StoreUnavailable as error:
                reason = str(error)
            else:
                SETTLE_SECONDS.observe(time.perf_counter() - began_s)
                return
        keys, attempt, *_ = zones[0]
        log.warning(
            "committed but not settled", zone=keys.zone, trip_id=attempt.trip_id,
            token=attempt.token, reason=reason,
        )  # fmt: skip
        self._retries.start(attempt, partial(self._settle_all, zones), at_once=False)

    async def _settle_all(self, zones: list[Telling]) -> bool:
        while zones:
            await self._settler.settle(*zones[0])
            del zones[0]
        return True

    async def close(self) -> None:
        """Leaves the rest to other servers' reconcile jobs."""
        await self._retries.close()
