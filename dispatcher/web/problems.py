"""From what went wrong to the answer: the one map, for HTTP and for WebSocket.

A refusal that a handler raises was not counted yet, and is counted here, once. Not counted are a
limit that was hit, since that is the count, and whatever is the server's own fault.
"""

from __future__ import annotations

from typing import Final

from dispatcher.core.actors import Actor
from dispatcher.core.errors import OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.service.answers import Answer, RateLimited, refusal_answer
from dispatcher.service.rate_limits import RateLimits

#: When to ask again after an outage of a moment; balancers take longer to notice.
RETRY_AFTER_S: Final = 1


def refusal_of(error: Exception) -> Refusal:
    """The refusal that an exception means to a client: `internal_error` is for what nobody foresaw."""
    match error:
        case Refusal():
            return error
        case OutcomeUnknown():
            return Refusal("outcome_unknown", retry_after=RETRY_AFTER_S)
        case StoreUnavailable():
            return Refusal("service_unavailable", retry_after=RETRY_AFTER_S)
        case _:
            return Refusal("internal_error")


def uncounted_answer(refusal: Refusal) -> Answer:
    """The answer to a refusal that is not to be counted any more."""
    return refusal_answer(refusal, refusal.state if isinstance(refusal, RateLimited) else None)


async def counted_answer(
    refusal: Refusal, limits: RateLimits, actor: Actor | None, ip: str | None
) -> Answer:
    """The answer to a refusal that was raised by a handler, whose call is counted with it.

    It is a 429 where that hits a limit. Raises StoreUnavailable.
    """
    if isinstance(refusal, RateLimited) or refusal.problem.status >= 500:
        return uncounted_answer(refusal)
    return await limits.refuse(refusal, actor, ip)
