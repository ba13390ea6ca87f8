"""What became of a commit whose answer was lost."""

from __future__ import annotations

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import KeyedAnswer
from dispatcher.ledger.changes import Change
from dispatcher.ledger.database import Database


async def was_committed(
    database: Database, change: Change, answer: KeyedAnswer | None, attempt: str
) -> bool:
    """Whether this very attempt is in the history, or its key's row holds its answer.

    False where Postgres cannot be asked, or knows nothing of it yet.
    """
    try:
        if change.event is not None:
            row = await database.row(
                "event_of_attempt", trip_id=change.trip_id, version=change.version, attempt=attempt
            )
            return row is not None
        if answer is not None:
            stored = await database.stored_answer(answer.key)
            return stored is not None and stored.body == answer.body
    except StoreUnavailable:
        pass
    return False
