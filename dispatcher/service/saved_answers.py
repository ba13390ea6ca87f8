"""The stored answers of a zone, loaded with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from dispatcher.core.times import moment
from dispatcher.ledger.database import Database, answer_from_row, key_from_row
from dispatcher.live.keys import Keys
from dispatcher.live.state import StateScripts

#: Newest answers that are loaded at once; a key older than these asks Postgres until it expires.
MAX_ANSWERS: Final = 50_000
_AT_ONCE: Final = 1_000


async def load_answers(
    state: StateScripts,
    database: Database,
    keys: Keys,
    *,
    go_on: Callable[[Keys], Awaitable[None]],
    after: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Loads the newest answers, or those that came `after` an id and a time (ms).

    Gives how many, and until when (ms) a key may have one that was not loaded, for there are too many:
    0, where all were.

    Raises StoreUnavailable.
    """
    if after is None:
        rows = await database.rows("live_answers_of_zone", zone=keys.zone, max_rows=MAX_ANSWERS)
    else:
        # By both: one that was on its way has a lower id, and one that a driver brings along from
        # another zone the time of that zone's Redis.
        answer_id, since_ms = after
        rows = await database.rows(
            "answers_of_zone_after",
            zone=keys.zone, answer_id=answer_id, since=moment(since_ms), max_rows=MAX_ANSWERS,
        )  # fmt: skip
    for start in range(0, len(rows), _AT_ONCE):
        await go_on(keys)
        await asyncio.gather(
            *(
                state.keep_answer(keys, key_from_row(row), answer_from_row(row))
                for row in rows[start : start + _AT_ONCE]
            )
        )
    horizon_ms = answer_from_row(rows[-1]).expires_at_ms if len(rows) == MAX_ANSWERS else 0
    return len(rows), horizon_ms
