"""What a refused claim is answered with, and the log line that says so."""

from __future__ import annotations

from dispatcher.core.callers import Caller
from dispatcher.live.claim_results import PROBLEM_CODES, ClaimCode, Refused
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.observe.series import REFUSALS
from dispatcher.service.answers import Answer, rate_limited_answer, refused_answer
from dispatcher.service.rate_limits import log_limited

REFUSALS.know((code,) for code in PROBLEM_CODES.values())


def answer_refused(caller: Caller, trip_id: str, refused: Refused) -> Answer:
    """Logs a refusal by a claim, and answers it."""
    actor = caller.actor
    match refused.code:
        case ClaimCode.RATE_LIMITED:
            assert refused.limit is not None
            log_limited(refused.limit, actor)
            return rate_limited_answer(refused.limit)
        case ClaimCode.KEY_REUSED:
            pass
        case _:
            log_refusal(
                refused.code, trip_id=trip_id, user=actor.user_id,
                version=refused.version,
            )  # fmt: skip
    return refused_answer(refused)
