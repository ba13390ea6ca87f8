"""Counts every refusal, and logs those that operators watch."""

from __future__ import annotations

import logging
from typing import Any, Final

from dispatcher.observe.crowd_lines import CROWD_LINES
from dispatcher.observe.series import REFUSALS

_LOGGER_NAME: Final = "dispatcher.refusals"

#: Level and event of the lines that operators of such systems search for, by the refusal's code.
_LOGGED: Final = {
    "rate_limit_exceeded": (logging.WARNING, "Rate limit exceeded"),
    "version_conflict": (logging.INFO, "Optimistic lock conflict"),
    "trip_already_assigned": (logging.INFO, "Trip already assigned"),
}


def log_refusal(code: str, **fields: Any) -> None:
    """Count a refusal; log it with `fields`, whose values JSON knows, if operators watch it.

    Of a crowd of drivers all but one are refused: a trip's refusals of a second are one line, with
    their `count`, and where there is no trip, those of a user or an address.
    """
    REFUSALS.numbers[(code,)] += 1
    logged = _LOGGED.get(code)
    if logged is not None:
        level, event = logged
        who = fields.get("trip_id") or fields.get("user") or fields.get("ip")
        CROWD_LINES.add((code, who), level, _LOGGER_NAME, event, fields)
