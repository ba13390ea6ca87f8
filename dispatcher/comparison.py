"""What compares Redis with Postgres, for the drift watch and `dispatcher fsck`."""

from __future__ import annotations

from dispatcher.config import Settings
from dispatcher.service.drift import DriftCheck
from dispatcher.service.drift_looks import Looks
from dispatcher.service.queue_looks import QueueLooks
from dispatcher.wings import LedgerWing, LiveWing


def drift_check(settings: Settings, live: LiveWing, ledger: LedgerWing) -> DriftCheck:
    """What compares both wings."""
    looks = Looks(
        scripts=live.comparison,
        state=live.state,
        queues=queue_looks(live, ledger),
        database=ledger.database,
        fix_age_s=settings.fix_max_age_s,
        presence_ttl_s=settings.presence_ttl_s,
    )
    return DriftCheck(
        scripts=live.comparison, database=ledger.database, looks=looks, mending=live.mending
    )


def queue_looks(live: LiveWing, ledger: LedgerWing) -> QueueLooks:
    """What compares places in queues."""
    return QueueLooks(scripts=live.comparison, queues=live.queues, database=ledger.database)
