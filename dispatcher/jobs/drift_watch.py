"""Compares the zones with Postgres, one after the other: slowly, and what is cheap to compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.keys import keys_of
from dispatcher.live.mending import Mending
from dispatcher.service.authorities import Authorities
from dispatcher.service.drift import DriftCheck, DriftKind

log = structlog.get_logger("dispatcher.drift")

#: Things that differ are named in the log up to this many for each look.
_NAMED: Final = 10


class DriftWatch:
    """Looks at one of this server's zones a run, and at each within `interval_s`. What another server
    saw before does not count any more, so that the sum over all servers is what differs."""

    name = "drift-watch"

    def __init__(
        self,
        *,
        check: DriftCheck,
        scripts: ComparisonScripts,
        mending: Mending,
        zones: Sequence[str],
        held: Callable[[], Sequence[str]],
        authorities: Authorities,
        node: str,
        interval_s: float,
    ) -> None:
        self.interval_s = interval_s / len(zones)
        self._check = check
        self._scripts = scripts
        self._held = held
        self._all_s = interval_s
        self._mending = mending
        self._authorities = authorities
        self._node = node
        self._every_ms = int(interval_s * 900)  # below the interval, whose rests vary by a tenth
        self._turn = 0
        self._found: dict[str, Counter[DriftKind]] = {zone: Counter() for zone in zones}

    def found(self) -> Mapping[tuple[str, ...], float]:
        """How many things differ, by zone and kind; 0 where nothing does, from the start."""
        return {
            (zone, kind.value): float(counts[kind])
            for zone, counts in self._found.items()
            for kind in DriftKind
        }

    async def run(self) -> float:
        held = [zone for zone in self._held() if not self._authorities.of(zone).is_degraded]
        for zone in self._found.keys() - set(held):
            self._found[zone] = Counter()
        if held:
            zone = held[self._turn % len(held)]
            self._turn += 1
            if await self._scripts.begin_look(keys_of(zone), self._node, every_ms=self._every_ms):
                await self._look(zone)
            else:
                self._found[zone] = Counter()
        return self._all_s / max(1, len(held))

    async def _look(self, zone: str) -> None:
        counts: Counter[DriftKind] = Counter()
        async for drift in self._check.check(zone, every_key=False):
            if drift.kind is DriftKind.VALUES:
                await self._mending.mend([drift.subject])  # it cannot be right
            counts[drift.kind] += 1
            if counts.total() <= _NAMED:
                log.warning(
                    "drift", zone=zone, kind=drift.kind, subject=drift.subject, detail=drift.detail
                )
        self._found[zone] = counts
        if counts:
            log.warning("zone drifts", zone=zone, things={kind.value: n for kind, n in counts.items()})
