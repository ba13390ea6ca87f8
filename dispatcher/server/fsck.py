"""`dispatcher fsck`: what differs between Redis and Postgres, and its repair."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import orjson

from dispatcher.composition import open_ledger, open_live
from dispatcher.config import Settings, SettingsError
from dispatcher.ledger import migrate
from dispatcher.live.inspection import Inspection
from dispatcher.live.keys import keys_of
from dispatcher.live.state import StateScripts
from dispatcher.server.preflight import check_engines
from dispatcher.service.consistency import Consistency
from dispatcher.service.drift import Drift
from dispatcher.service.drift_repair import DriftRepair
from dispatcher.service.outbox import Outbox
from dispatcher.service.rehydration import Rehydration
from dispatcher.zones_file import load_zones


class ZoneReport(NamedTuple):
    """What a look at one zone has found, what of it is left after a repair, and whether it is cold: the
    next call loads it then, and there is nothing to compare."""

    zone: str
    found: list[Drift]
    left: list[Drift]
    is_cold: bool = False

    def to_text(self) -> str:
        """A line a difference, or one that says that there is none."""
        if self.is_cold:
            return f"{self.zone}: cold, the next call loads it"
        lines = [
            f"{self.zone}: {what} {subject}  Redis: {redis}  Postgres: {postgres}"
            + ("" if (what, subject, redis, postgres) in self.left else "  (repaired)")
            for what, subject, redis, postgres in self.found
        ]
        return "\n".join(lines) or f"{self.zone}: Redis and Postgres agree"

    def to_json(self) -> bytes:
        """The same as one JSON object."""
        found = [drift._asdict() | {"is_repaired": drift not in self.left} for drift in self.found]
        return orjson.dumps({"zone": self.zone, "is_cold": self.is_cold, "drift": found})


class _Tools(NamedTuple):
    state: StateScripts
    consistency: Consistency
    repair: DriftRepair


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[_Tools]:
    """Nothing is loaded on the way, as a server would."""
    async with open_live(settings) as live, open_ledger(settings) as ledger:
        inspection, database = Inspection(live.pipeline), ledger.database
        outbox = Outbox(settler=live.settler, state=live.state, database=database)
        rehydration = Rehydration(live.state, database, outbox, lease_ms=settings.claim_lease_ms)
        consistency = Consistency(
            inspection=inspection,
            database=database,
            fix_age_s=settings.fix_max_age_s,
            lease_ms=settings.claim_lease_ms,
        )
        repair = DriftRepair(
            inspection=inspection,
            consistency=consistency,
            claims=live.claims,
            rehydration=rehydration,
        )
        try:
            yield _Tools(live.state, consistency, repair)
        finally:
            await rehydration.close()


async def fsck(settings: Settings, *, zone: str | None, repair: bool) -> AsyncIterator[ZoneReport]:
    """Looks at all zones, or one, each by itself; servers may run meanwhile.

    `settings` must hold both URLs. Raises SettingsError where an engine cannot be used, the zone is not
    known, or the schema is not of this version; StoreUnavailable where an engine goes away.
    """
    zones = load_zones(settings.zones_file).names()
    if zone is not None and zone not in zones:
        raise SettingsError(f"--zone: {zone} is none of the zones, which are {', '.join(zones)}")
    redis_url, database_url = settings.redis_url or "", settings.database_url or ""
    await check_engines(redis_url, database_url, redis_cluster=settings.redis_cluster, zones=zones)
    await migrate.check_current(database_url)
    async with _opened(settings) as tools:
        for name in [zone] if zone else zones:
            keys = keys_of(name)
            if await tools.state.read_epoch(keys) is None:
                yield ZoneReport(name, [], [], is_cold=True)
                continue
            found = left = await tools.consistency.check(keys)
            if repair and found:
                await tools.repair.repair(keys, found)
                left = await tools.consistency.check(keys)
            yield ZoneReport(name, found, left)
