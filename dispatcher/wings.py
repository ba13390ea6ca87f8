"""The two wings of a process, opened and closed: what talks to Redis, and what talks to Postgres."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from dispatcher.config import Settings
from dispatcher.ledger.commits import Commits
from dispatcher.ledger.database import Database
from dispatcher.ledger.outage_notices import OutageNotices
from dispatcher.live.announcements import Announcements
from dispatcher.live.catch_up_notes import CatchUpNotes
from dispatcher.live.channel_nodes import channel_nodes
from dispatcher.live.claims import ClaimScripts
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.deliveries import DeliveryScripts
from dispatcher.live.deployment import open_pipeline
from dispatcher.live.event_stream import EventStream
from dispatcher.live.inspection import InspectionScripts
from dispatcher.live.limits import LimitScripts
from dispatcher.live.matching import MatchScripts
from dispatcher.live.mending import Mending
from dispatcher.live.offers import OfferScripts
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.positions import PositionScripts
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.pubsub import Subscriber
from dispatcher.live.queues import QueueScripts
from dispatcher.live.servers import ServerScripts
from dispatcher.live.settle import Settler
from dispatcher.live.state import StateScripts


@dataclass(frozen=True, slots=True)
class LiveWing:
    """What talks to Redis."""

    pipeline: Pipeline
    claims: ClaimScripts
    settler: Settler
    state: StateScripts
    offers: OfferScripts
    matching: MatchScripts
    positions: PositionScripts
    presence: PresenceScripts
    limits: LimitScripts
    inspection: InspectionScripts
    comparison: ComparisonScripts
    servers: ServerScripts
    announcements: Announcements
    mending: Mending
    deliveries: DeliveryScripts
    queues: QueueScripts
    stream: EventStream
    notes: CatchUpNotes


@dataclass(frozen=True, slots=True)
class LedgerWing:
    """What talks to Postgres."""

    commits: Commits
    database: Database
    notices: OutageNotices


@contextlib.asynccontextmanager
async def open_live(settings: Settings) -> AsyncIterator[LiveWing]:
    """Connects to Redis, and lets go of it once everything was sent."""
    assert settings.redis_url is not None
    async with contextlib.AsyncExitStack() as stack:
        pipeline = await stack.enter_async_context(
            open_pipeline(settings.redis_url, timeout_s=settings.redis_timeout_s, breaks=True)
        )
        mending = Mending(pipeline)
        pipeline.on_corrupt = mending.suspect
        stack.push_async_callback(mending.close)
        announcements = Announcements(pipeline)
        stack.push_async_callback(announcements.close)
        settler = Settler(pipeline, fix_age_s=settings.fix_max_age_s, announcements=announcements)
        stack.callback(settler.close)
        yield LiveWing(
            pipeline,
            ClaimScripts(pipeline),
            settler,
            StateScripts(pipeline),
            OfferScripts(pipeline),
            MatchScripts(pipeline),
            PositionScripts(pipeline),
            PresenceScripts(pipeline),
            LimitScripts(pipeline),
            InspectionScripts(pipeline),
            ComparisonScripts(pipeline),
            ServerScripts(pipeline),
            announcements,
            mending,
            DeliveryScripts(pipeline),
            QueueScripts(pipeline),
            EventStream(pipeline),
            CatchUpNotes(pipeline),
        )


@contextlib.asynccontextmanager
async def open_subscriber(settings: Settings) -> AsyncIterator[Subscriber]:
    """What listens to channels; it connects once somebody does."""
    assert settings.redis_url is not None
    subscriber = Subscriber(channel_nodes(settings.redis_url))
    await subscriber.open()
    try:
        yield subscriber
    finally:
        await subscriber.stop()


@contextlib.asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[LedgerWing]:
    """Connects to Postgres, and lets go of it once everything is committed."""
    assert settings.database_url is not None
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(
            settings.database_url,
            size=settings.database_pool,
            timeout_s=settings.commit_timeout_s,
        )
        stack.push_async_callback(database.close)
        commits = Commits(
            settings.database_url,
            timeout_s=settings.commit_timeout_s,
            max_batch=settings.commit_batch,
        )
        await commits.start()
        stack.push_async_callback(commits.close)
        notices = OutageNotices(settings.database_url, database, timeout_s=settings.commit_timeout_s)
        stack.callback(notices.close)
        yield LedgerWing(commits, database, notices)
