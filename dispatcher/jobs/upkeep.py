"""Looks after a zone: what is overdue, who is absent, is it loaded. Rests until something is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.jobs.absent_drivers import AbsentDrivers
from dispatcher.jobs.reconcile import Reconcile
from dispatcher.live.keys import keys_of
from dispatcher.live.servers import ServerScripts, Survey
from dispatcher.live.state import StateScripts
from dispatcher.service.offers import ZoneLost
from dispatcher.service.presence_outages import PresenceOutages

log = structlog.get_logger("dispatcher.upkeep")

#: Another Redis than the one that a zone was loaded into is noticed within this, in s.
_RUN_ID_AGE_S: Final = 1.0


class Upkeep:
    """One job a zone, on the server that holds it.

    A look costs one call. `max_rest_s` is short enough that nothing which begins after a look is due
    before the next one: a lease, a grace. `fence` gives that by which the zone is held.
    """

    def __init__(
        self,
        *,
        zone: str,
        scripts: ServerScripts,
        state: StateScripts,
        reconcile: Reconcile,
        absent: AbsentDrivers,
        outages: PresenceOutages,
        is_degraded: Callable[[], bool],
        fence: Callable[[], str],
        wave_is_due: Callable[[], None],
        fix_age_s: float,
        grace_s: float,
        max_rest_s: float,
        interval_s: float,
    ) -> None:
        self.name = f"upkeep-{zone}"
        self.interval_s = interval_s
        self._zone = zone
        self._keys = keys_of(zone)
        self._scripts = scripts
        self._state = state
        self._reconcile = reconcile
        self._absent = absent
        self._outages = outages
        self._is_degraded = is_degraded
        self._fence = fence
        self._wave_is_due = wave_is_due
        self._fix_age_ms = int(fix_age_s * 1000)
        self._grace_ms = int(grace_s * 1000)
        self._max_rest_s = max(interval_s, max_rest_s)

    async def run(self) -> float:
        """Raises ZoneLost where the zone is another server's, StoreUnavailable, OutcomeUnknown."""
        if self._is_degraded():  # Postgres decides alone: dispatcher/jobs/degraded_zones.py
            self._outages.began(self._zone)
            return self.interval_s
        try:
            survey = await self._scripts.survey_zone(self._keys, self._fence())
            run_id = await self._state.run_id(self._keys, max_age_s=_RUN_ID_AGE_S)
        except StoreUnavailable:
            self._outages.began(self._zone)
            raise
        if not survey.is_held:
            raise ZoneLost(self._zone)
        if survey.next_wave_ms is not None and survey.next_wave_ms <= survey.now_ms:
            self._wave_is_due()
        is_loaded = survey.epoch.endswith(f" {run_id}")
        works: list[Coroutine[Any, Any, object]] = []
        if not is_loaded:
            works.append(self._reconcile.run())
        elif self._first_due_ms(survey) <= survey.now_ms:
            works.append(self._reconcile.sweep())
        if self._absent.is_due(survey):
            works.append(self._absent.run())
        await _all(self._zone, works)
        return self._rest_s(survey) if is_loaded else self.interval_s

    def _first_due_ms(self, survey: Survey) -> float:
        """When the first claim is overdue, or the first fix stale."""
        lease_ms, fix_ms = survey.first_lease_ms, survey.oldest_fix_ms
        return min(
            float("inf") if lease_ms is None else lease_ms,
            float("inf") if fix_ms is None else fix_ms + self._fix_age_ms,
        )

    def _rest_s(self, survey: Survey) -> float:
        absence_ms = survey.first_absence_ms
        due_ms = min(
            self._first_due_ms(survey),
            float("inf") if absence_ms is None else absence_ms + self._grace_ms,
        )
        return max(self.interval_s, min(self._max_rest_s, (due_ms - survey.now_ms) / 1000))


async def _all(zone: str, works: list[Coroutine[Any, Any, object]]) -> None:
    """Does all of them: one that fails does not stop another one. Raises the first failure of ours, or
    else the first of an engine."""
    ended = await asyncio.gather(*works, return_exceptions=True)
    failures = [end for end in ended if isinstance(end, BaseException)]
    failures.sort(key=lambda failure: isinstance(failure, StoreUnavailable))
    for failure in failures[1:]:
        log.warning("upkeep is not done", zone=zone, reason=repr(failure))
    if failures:
        raise failures[0]
