"""What leaves: an answer is bytes, so that a replay is the same bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.drivers import Driver
from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitState
from dispatcher.core.trips import Trip

PROBLEM_TYPE: Final = "urn:dispatcher:problem:"


class Answer(NamedTuple):
    """Status and body of an answer, with what its headers tell.

    The body is JSON, `application/problem+json` where the status is 400 or more.
    """

    status: int
    body: bytes
    limit: LimitState | None = None
    replayed: bool = False
    retry_after_s: int | None = None


class RateLimited(Refusal):
    """Refused by a limit; `limit` says which, and when it eases."""

    def __init__(self, limit: LimitState) -> None:
        self.retry_after_s = max(1, -((limit.now_ms - limit.reset_ms) // 1000))
        super().__init__(
            "rate_limit_exceeded",
            f"Too many requests. Please try again in {self.retry_after_s} seconds.",
            retry_after=self.retry_after_s,
            limit_class=limit.name,
        )
        self.limit: LimitState = limit


def refusal_answer(refusal: Refusal, limit: LimitState | None = None) -> Answer:
    """A refusal as problem+json (RFC 9457). Holds nothing of one request alone: replays are equal."""
    problem = refusal.problem
    body = {
        "type": PROBLEM_TYPE + problem.code,
        "title": problem.title,
        "status": problem.status,
        "detail": refusal.message,
        "response_code": problem.code,
        "message": refusal.message,
        **refusal.fields,
    }
    retry_after = refusal.fields.get("retry_after")
    return Answer(problem.status, orjson.dumps(body), limit or refusal.limit, retry_after_s=retry_after)


#: What a client does best about a refusal that passes by itself.
_RETRY_S: Final = {"request_in_progress": 1, "trip_busy": 1}


def refused(code: str, version: str, status: str, limit: LimitState | None) -> Answer:
    """The answer to a claim that was refused with `code`, given the trip's version and state."""
    answer = _refused(code, version, status)
    return Answer(answer.status, answer.body, limit, retry_after_s=answer.retry_after_s)


@lru_cache(maxsize=1_024)
def _refused(code: str, version: str, status: str) -> Answer:
    # A crowd that lost the same trip gets the same bytes.
    fields: dict[str, Any] = {}
    if version not in ("", "-"):
        fields = {"version": int(version), "current_status": status}
    if code in _RETRY_S:
        fields["retry_after"] = _RETRY_S[code]
    return refusal_answer(Refusal(code, **fields))


def driver_body(driver: Driver, released: Trip | None) -> bytes:
    """The body of a change of availability."""
    return orjson.dumps(
        {
            "response_code": "availability_updated",
            "driver": driver.to_json(),
            "released_trip": released.to_json() if released else None,
        }
    )


def replay_of(record: str, limit: LimitState | None) -> Answer:
    """The answer that a finished idempotency record holds (lua/lib/idempotency.lua)."""
    kind, rest = record[0], record[2:]
    if kind == "D":
        status, _, body = rest.partition(" ")
        return Answer(int(status), body.encode(), limit, replayed=True)
    code, version, state = rest.split(" ")
    answer = refused(code, version, state, limit)
    return Answer(answer.status, answer.body, limit, replayed=True)
