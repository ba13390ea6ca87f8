"""Repairs of single things, each by what a loading zone or a waking server does anyway."""

from __future__ import annotations

import structlog

from dispatcher.core.actors import Role, address_of
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.ledger.database import Database, answer_from_row
from dispatcher.live.claims import ClaimScripts, OverdueClaim
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.mending import Mending
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.state import StateScripts
from dispatcher.service.drift import Drift, DriftCheck, DriftKind
from dispatcher.service.queue_looks import QueueLooks
from dispatcher.service.rehydration import Rehydration

log = structlog.get_logger("dispatcher.repairs")


class Repairs:
    """Makes one thing equal to Postgres at a time. All raise StoreUnavailable.

    What versions tell is reloaded, and missed events are settled. What they do not tell, such as a lost
    field, is dropped first: to claims that is a key that Redis has lost, which they load again.
    """

    def __init__(
        self,
        *,
        check: DriftCheck,
        scripts: ComparisonScripts,
        mending: Mending,
        state: StateScripts,
        claims: ClaimScripts,
        presence: PresenceScripts,
        queues: QueueLooks,
        database: Database,
        rehydration: Rehydration,
        presence_ttl_s: int,
    ) -> None:
        self._check = check
        self._scripts = scripts
        self._mending = mending
        self._state = state
        self._claims = claims
        self._presence = presence
        self._queues = queues
        self._database = database
        self._rehydration = rehydration
        self._presence_ttl_ms = presence_ttl_s * 1000

    async def repair(self, drift: Drift) -> bool:
        """Repairs what differs; says whether it does not differ any more."""
        keys, subject = keys_of(drift.zone), drift.subject
        match drift.kind:
            case DriftKind.ZONE:
                await self._rehydration.warm(drift.zone)
            case DriftKind.TRIP:
                await self._rehydration.reload_trip(keys, subject)
                if await self._check.still_differs(drift):
                    await self._load_trip_anew(keys, subject)
            case DriftKind.DRIVER:
                await self._rehydration.reload_driver(keys, subject)
                if await self._check.still_differs(drift):
                    await self._load_driver_anew(keys, subject)
            case DriftKind.GEO:
                await self._load_driver_anew(keys, subject)
            case DriftKind.QUEUE:
                await self._queues.repair(keys, subject)
            case DriftKind.OFFERS:
                await self._repair_offers(keys, *subject.split(":", 1))
            case DriftKind.CLAIMS:
                claim = OverdueClaim.decode(subject)
                await self._rehydration.reload(
                    keys, claim.trip_id or "", claim.driver_id or "", attempt=claim.token
                )
                await self._claims.forget_overdue(keys, claim)
            case DriftKind.PRESENCE:
                await self._presence.expect_present(
                    keys, [address_of(Role.DRIVER, subject)], life_ms=self._presence_ttl_ms
                )
            case DriftKind.VALUES:
                await self._mending.mend([subject])
                await self._rehydration.warm(drift.zone)
            case DriftKind.ANSWERS:
                await self._repair_answer(keys, subject)
        is_repaired = not await self._check.still_differs(drift)
        log.info(
            "drift repaired" if is_repaired else "drift not repaired",
            zone=drift.zone, kind=drift.kind, subject=subject,
        )  # fmt: skip
        return is_repaired

    async def _load_trip_anew(self, keys: Keys, trip_id: str) -> None:
        former = await self._state.driver_of(keys, trip_id)
        await self._scripts.drop_trip(keys, trip_id)
        await self._rehydration.reload_trip(keys, trip_id, former_driver=former)

    async def _load_driver_anew(self, keys: Keys, driver_id: str) -> None:
        fix = await self._scripts.drop_driver(keys, driver_id)
        await self._rehydration.reload_driver(keys, driver_id, fix=fix)

    async def _repair_offers(self, keys: Keys, side: str, name: str) -> None:
        if side == "trip":
            await self._load_trip_anew(keys, name)
            return
        now_ms = (await self._scripts.read_clock(keys))[0]
        (inbox,) = await self._scripts.open_members([keys.inbox(name)], now_ms)
        pairs = [(keys.offers(trip_id), name) for trip_id in inbox]
        for trip_id, score in zip(inbox, await self._scripts.scores(pairs), strict=True):
            if score is None:
                await self._scripts.drop_offer(keys, trip_id, name)

    async def _repair_answer(self, keys: Keys, row_id: str) -> None:
        for row in await self._database.rows("answers_by_id", ids=[int(row_id)]):
            answer = answer_from_row(row)
            key = IdempotencyKey(
                row["user_id"], row["endpoint"], row["idempotency_key"], answer.fingerprint
            )
            await self._rehydration.reload_answer(keys, key)
