"""What loads zones from Postgres into Redis, for servers and for `dispatcher rebuild`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from dispatcher.config import Settings
from dispatcher.service.authorities import Authorities
from dispatcher.service.catch_up import CatchUp
from dispatcher.service.limit_seeds import LimitSeeds
from dispatcher.service.outbox import Outbox
from dispatcher.service.queue_log import QueueLog
from dispatcher.service.rehydration import Rehydration
from dispatcher.service.unheard_events import UnheardEvents
from dispatcher.wings import LedgerWing, LiveWing


@dataclass(frozen=True, slots=True)
class Loading:
    """What was committed and not settled, what loads zones, and what is told to a Redis before that."""

    outbox: Outbox
    rehydration: Rehydration
    catch_up: CatchUp


@contextlib.asynccontextmanager
async def open_loading(
    settings: Settings,
    live: LiveWing,
    ledger: LedgerWing,
    authorities: Authorities,
    seeds: LimitSeeds,
    queue_log: QueueLog,
) -> AsyncIterator[Loading]:
    """Waits at its end for what is being loaded."""
    database, lease_ms = ledger.database, settings.claim_lease_ms
    outbox = Outbox(settler=live.settler, state=live.state, stream=live.stream, database=database)
    unheard = UnheardEvents(live.stream, live.comparison, database, live.notes, lease_ms=lease_ms)
    rehydration = Rehydration(
        live.state, database, outbox, unheard, authorities, seeds, queue_log,
        presence=live.presence, presence_ttl_s=settings.presence_ttl_s, lease_ms=lease_ms,
    )  # fmt: skip
    catch_up = CatchUp(
        state=live.state, notes=live.notes, outbox=outbox, unheard=unheard, database=database,
        authorities=authorities,
    )  # fmt: skip
    try:
        yield Loading(outbox, rehydration, catch_up)
    finally:
        await catch_up.close()
        await rehydration.close()
