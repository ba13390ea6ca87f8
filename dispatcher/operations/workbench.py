"""Both engines as the servers use them, for a command that works while servers run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from dispatcher.config import Settings, SettingsError
from dispatcher.core.zones import Zones
from dispatcher.embedded.engines import running_database_url, running_redis_url
from dispatcher.ledger import migrate
from dispatcher.ledger.preflight import check_postgres
from dispatcher.live.preflight import check_redis
from dispatcher.loading import open_loading
from dispatcher.service.authorities import Authorities
from dispatcher.service.limit_seeds import LimitSeeds
from dispatcher.service.local_limits import LocalLimits
from dispatcher.service.queue_log import QueueLog
from dispatcher.service.rehydration import Rehydration
from dispatcher.wings import LedgerWing, LiveWing, open_ledger, open_live
from dispatcher.zones_file import load_zones


@dataclass(frozen=True, slots=True)
class Workbench:
    """What the commands work with."""

    settings: Settings
    zones: Zones
    live: LiveWing
    ledger: LedgerWing
    authorities: Authorities
    rehydration: Rehydration


@contextlib.asynccontextmanager
async def open_workbench(settings: Settings) -> AsyncIterator[Workbench]:
    """Connects to the engines that the servers use, and loads and migrates nothing.

    Raises SettingsError where an engine cannot be reached, MigrationError where the schema is not the
    one of this version.
    """
    settings = _with_urls(settings)
    zones = load_zones(settings.zones_file)
    redis_url, database_url = settings.redis_url or "", settings.database_url or ""
    await check_redis(redis_url, zones=zones.names())
    await check_postgres(database_url)
    await migrate.check_current(database_url)
    async with open_live(settings) as live, open_ledger(settings) as ledger:
        authorities = Authorities(
            zones.names(), database=ledger.database, pipeline=live.pipeline, state=live.state, node=""
        )
        # It admits nothing, so there is nothing to seed.
        seeds = LimitSeeds(LocalLimits(lambda: 1), live.limits, has_one_node=True)
        queue_log = QueueLog(zones, ledger.database)
        async with open_loading(settings, live, ledger, authorities, seeds, queue_log) as loading:
            yield Workbench(settings, zones, live, ledger, authorities, loading.rehydration)


def _with_urls(settings: Settings) -> Settings:
    """The settings with the URLs of the embedded engines that run, where none are set."""
    redis_url = settings.redis_url or running_redis_url(settings.data_dir)
    database_url = settings.database_url or running_database_url(settings.data_dir)
    for name, url in (("REDIS_URL", redis_url), ("DATABASE_URL", database_url)):
        if url is None:
            raise SettingsError(
                f"DISPATCHER_{name}: is not set, and no embedded engine runs below "
                f"{settings.data_dir}: start `dispatcher serve` there first"
            )
    return settings.model_copy(update={"redis_url": redis_url, "database_url": database_url})
