"""Places in queues, compared: what is said by the drivers' hashes, by the queues, and by Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dispatcher.core.drivers import is_free
from dispatcher.core.times import iso, millis
from dispatcher.ledger.database import Database
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.keys import Keys
from dispatcher.live.queues import QueueScripts, is_place

#: What was not told to Postgres for longer, no flush will tell it.
_TOLD_AFTER_MS: Final = 30_000


class QueueLooks:
    """Which drivers' places differ, how, and what puts them right. All raise StoreUnavailable."""

    def __init__(self, *, scripts: ComparisonScripts, queues: QueueScripts, database: Database) -> None:
        self._scripts = scripts
        self._queues = queues
        self._database = database

    async def differences(self, keys: Keys, ids: Sequence[str]) -> dict[str, str]:
        """Drivers by id, and how what is known of their place differs."""
        rows = {r["user_id"]: r for r in await self._database.rows("queue_places", ids=list(ids))}
        hashes = await self._scripts.hashes([keys.driver(driver_id) for driver_id in ids])
        now_ms, _ = await self._scripts.read_clock(keys)
        found = {}
        for driver_id, hash_ in zip(ids, hashes, strict=True):
            row = rows.get(driver_id)
            if row is None or row["zone"] != keys.zone:
                continue
            if _holds_place(hash_, now_ms):
                detail = await self._held_differs(keys, driver_id, hash_, row, now_ms)
            else:
                detail = _lost_differs(hash_, row, now_ms)
            if detail:
                found[driver_id] = detail
        return found

    async def _held_differs(
        self, keys: Keys, driver_id: str, hash_: dict[str, str], row: Any, now_ms: int
    ) -> str:
        queue, queued_ms = hash_["queue"], int(hash_["queued_at"])
        name = keys.queue(queue, hash_.get("vehicle_type", ""))
        (score,) = await self._scripts.scores([(name, driver_id)])
        # With another vehicle, the next position brings them into its queue.
        has_moved = int(hash_.get("fix_ms") or 0) <= int(hash_.get("updated_at") or 0)
        since = f"in the queue {queue} since {iso(queued_ms)}"
        if score is None and not has_moved:
            return f"holds a place {since}, and does not stand there (version {hash_.get('version')})"
        is_known = row["queue"] == queue and millis(row["queued_at"]) == queued_ms
        if not is_known and now_ms - queued_ms > _TOLD_AFTER_MS:
            return f"stands {since}, and Postgres does not know it"
        return ""

    async def repair(self, keys: Keys, driver_id: str) -> None:
        """Redis decides who holds a place: their queue and Postgres are told."""
        (hash_,) = await self._scripts.hashes([keys.driver(driver_id)])
        now_ms, _ = await self._scripts.read_clock(keys)
        queue: str | None = None
        at_ms = now_ms
        if _holds_place(hash_, now_ms):
            queue, at_ms = hash_["queue"], int(hash_["queued_at"])
            await self._queues.put_back(keys, queue, hash_["vehicle_type"], driver_id, at_ms)
        await self._database.execute("set_queue_place", driver_id=driver_id, queue=queue, at_ms=at_ms)


def _holds_place(hash_: dict[str, str], now_ms: int) -> bool:
    queue, until = hash_.get("queue", ""), hash_.get("queue_until", "")
    is_there = is_place(queue, until, hash_.get("queued_at", "")) and int(until) > now_ms
    return is_there and is_free(
        is_online=hash_.get("is_online") == "1",
        availability_status=hash_.get("availability_status", ""),
        trip_id=hash_.get("trip_id"),
    )


def _lost_differs(hash_: dict[str, str], row: Any, now_ms: int) -> str:
    if row["queue"] is None or hash_.get("queue") or not hash_:
        return ""
    # When they lost it: Postgres is told of that within some seconds.
    found = (hash_.get(name, "") for name in ("updated_at", "free_since", "queue_until"))
    times_ms = [int(text) for text in found if text.isascii() and text.isdigit()]
    lost_ms = max(*times_ms, millis(row["queued_at"]) or 0, 0)
    if now_ms - lost_ms <= _TOLD_AFTER_MS:
        return ""
    return f"stands in no queue, and Postgres knows of a place in {row['queue']}"
