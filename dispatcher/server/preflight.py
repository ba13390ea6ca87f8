"""What has to be right before a server process starts: files, both engines, and the schema."""

from __future__ import annotations

import structlog

from dispatcher.config import EngineAway, Settings, SettingsError
from dispatcher.ledger import migrate
from dispatcher.ledger.preflight import check_postgres, check_privileges, is_decided_by_postgres
from dispatcher.live.preflight import check_redis
from dispatcher.observe import tracing
from dispatcher.web.jwt_keys import read_keys
from dispatcher.zones_file import load_zones

_log = structlog.get_logger("dispatcher")


def check_files(settings: Settings) -> None:
    """Read the zones file and the keys of tokens, and look for what traces are sent by, only to see
    whether the processes will be able to.

    Raises SettingsError, which names the setting.
    """
    load_zones(settings.zones_file)
    read_keys(settings)
    try:
        tracing.check()
    except tracing.TracingError as error:
        raise SettingsError(str(error)) from None


async def check_and_migrate(settings: Settings) -> None:
    """Check both engines, apply every migration that is missing, and check what the role may do then.

    `settings` must hold both URLs. Raises SettingsError if an engine cannot be used,
    MigrationError if the schema cannot be brought forward. A Redis that is away is no reason not to
    start where Postgres decides about all zones already.
    """
    redis_url, database_url = settings.redis_url or "", settings.database_url or ""
    zones = load_zones(settings.zones_file).names()
    try:
        await check_redis(redis_url, zones=zones)
    except EngineAway as error:
        try:
            is_decided = await is_decided_by_postgres(database_url, zones)
        except SettingsError:  # both are away: the first one is named
            is_decided = False
        if not is_decided:
            raise
        _log.warning("Redis is away: Postgres decides until it is back", reason=str(error))
    await check_postgres(database_url)
    for label in await migrate.up(database_url):
        _log.info("Migration applied", migration=label)
    await check_privileges(database_url)
