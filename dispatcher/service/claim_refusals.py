"""What a refused claim is answered with, and the log line that says so."""

from __future__ import annotations

from typing import Any, Final

from dispatcher.core.actors import Role
from dispatcher.core.trips import Status
from dispatcher.live.claim_results import (
    BY_THE_TRIP_OR_DRIVER,
    PROBLEM_CODES,
    ClaimCode,
    Refused,
    Replayed,
)
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.observe.series import REFUSALS
from dispatcher.service.answers import Answer, rate_limited_answer, refused_answer
from dispatcher.service.commands.command import Command
from dispatcher.service.race_log import RaceLog
from dispatcher.service.rate_limits import log_limited

# To find a member of an enum takes 50 ns, and a crowd's losers are many.
_TAKEN: Final = ClaimCode.TRIP_ALREADY_ASSIGNED
_KEY_REUSED: Final = ClaimCode.KEY_REUSED
_DRIVER: Final = Role.DRIVER

REFUSALS.know((code,) for code in PROBLEM_CODES.values())

#: Not a crowd's losers, who are many: the trip was taken. Nor what stays so: a trip that has ended, or
#: exists.
_MAY_HAVE_CHANGED: Final = frozenset(
    code.value
    for code in BY_THE_TRIP_OR_DRIVER
    - {ClaimCode.TRIP_ALREADY_ASSIGNED, ClaimCode.TRIP_NOT_PENDING, ClaimCode.TRIP_EXISTS}
)


def answer_refused(command: Command[Any], trip_id: str, refused: Refused, race_log: RaceLog) -> Answer:
    """Logs a refusal by a claim, which may be a race that was lost, and answers it."""
    code, actor = refused.code, command.caller.actor
    if code is _TAKEN:
        _note_race(race_log, command, refused)
    elif code is ClaimCode.RATE_LIMITED:
        assert refused.limit is not None
        log_limited(refused.limit, actor)
        return rate_limited_answer(refused.limit)
    if code is not _KEY_REUSED:
        log_refusal(code, trip_id=trip_id, user=actor.user_id, version=refused.version)
    return refused_answer(refused)


def may_have_changed(refused: Refused | Replayed) -> bool:
    """Whether what Redis refuses is looked at again before it is told, since Postgres may have decided
    alone meanwhile."""
    code = refused.code if isinstance(refused, Refused) else getattr(refused.record, "code", None)
    return code in _MAY_HAVE_CHANGED


def _note_race(race_log: RaceLog, command: Command[Any], refused: Refused) -> None:
    """Of what is refused since the trip is taken, an accept by a driver is a race that was lost."""
    if not command.driver_id or command.caller.actor.role is not _DRIVER:
        return
    version = refused.version or 0
    if refused.status is Status.PENDING:
        version += 1  # the winner has the claim, and the commit is to come
    race_log.add(command.trip_id, command.driver_id, refused.now_ms, version)
