"""What leaves: an answer is bytes, so that a replay is the same bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey, StoredAnswer
from dispatcher.core.limits import LimitState
from dispatcher.core.trips import Status
from dispatcher.live.claim_results import PROBLEM_CODES, Refused, Replayed
from dispatcher.live.idempotency import KeptAnswer
from dispatcher.observe.series import IDEMPOTENCY_HITS

_PROBLEM_TYPE: Final = "urn:dispatcher:problem:"
#: How the bodies of changes and of refusals begin.
_SUCCESS_START: Final = b'{"response_code":"'
_PROBLEM_START: Final = b'{"type":"' + _PROBLEM_TYPE.encode()
_SUCCESS_LENGTH: Final = len(_SUCCESS_START)
_PROBLEM_LENGTH: Final = len(_PROBLEM_START)
#: Stands for the code of an answer that has none: of a document.
OK_CODE: Final = "ok"
#: What a client does best about a refusal that passes by itself.
_RETRY_AFTER_S: Final = {"request_in_progress": 1, "trip_busy": 1}


class Answer(NamedTuple):
    """Status and body of an answer, with what its headers tell.

    The body is JSON, `application/problem+json` where the status is 400 or more.
    """

    status: int
    body: bytes
    limit: LimitState | None = None
    replayed: bool = False
    retry_after_s: int | None = None

    @property
    def code(self) -> str:
        """The `response_code` of the body, which begins with it, or with the problem's type."""
        body = self.body
        if self.status >= 400:
            return _code_of_problem(body)
        if not body.startswith(_SUCCESS_START):
            return OK_CODE
        return body[_SUCCESS_LENGTH : body.index(b'"', _SUCCESS_LENGTH)].decode()

    @property
    def is_new_success(self) -> bool:
        """Whether this call had its effect, now and not before."""
        return self.status < 300 and not self.replayed


@lru_cache(maxsize=1_024)
def _code_of_problem(body: bytes) -> str:
    # A crowd that lost the same trip gets the same bytes.
    if not body.startswith(_PROBLEM_START):
        return OK_CODE
    return body[_PROBLEM_LENGTH : body.index(b'"', _PROBLEM_LENGTH)].decode()


class RateLimited(Refusal):
    """Refused by a limit; `state` says which, and when it eases."""

    def __init__(self, state: LimitState) -> None:
        super().__init__(
            "rate_limit_exceeded",
            f"Too many requests. Please try again in {state.retry_after_s} seconds.",
            retry_after=state.retry_after_s,
            limit_class=state.name,
        )
        self.state = state


def refusal_answer(refusal: Refusal, limit: LimitState | None = None) -> Answer:
    """A refusal as problem+json (RFC 9457). Holds nothing of one request alone: replays are equal."""
    problem = refusal.problem
    body = {
        "type": _PROBLEM_TYPE + problem.code,
        "title": problem.title,
        "status": problem.status,
        "detail": refusal.message,
        "response_code": problem.code,
        "message": refusal.message,
        **refusal.fields,
    }
    retry_after = refusal.fields.get("retry_after")
    return Answer(problem.status, orjson.dumps(body), limit, retry_after_s=retry_after)


def rate_limited_answer(state: LimitState) -> Answer:
    """The answer to a call that a limit refused."""
    return refusal_answer(RateLimited(state), state)


def refused_answer(refused: Refused) -> Answer:
    """The answer to a claim that was refused."""
    return claim_refusal(PROBLEM_CODES[refused.code], refused.version, refused.status, refused.limit)


def claim_refusal(
    code: str,
    version: int | None = None,
    status: Status | None = None,
    limit: LimitState | None = None,
) -> Answer:
    """The answer to a refusal of this code, given the trip's version and state where they are told."""
    answer = _claim_refusal(code, version, status)
    return Answer(answer.status, answer.body, limit, retry_after_s=answer.retry_after_s)


@lru_cache(maxsize=1_024)
def _claim_refusal(code: str, version: int | None, status: Status | None) -> Answer:
    # A crowd that lost the same trip gets the same bytes.
    fields: dict[str, Any] = {}
    if version is not None:
        fields = {"version": version, "current_status": status}
    if code in _RETRY_AFTER_S:
        fields["retry_after"] = _RETRY_AFTER_S[code]
    return refusal_answer(Refusal(code, **fields))


def replayed_answer(replayed: Replayed) -> Answer:
    """The answer again that a request got before, as Redis keeps it."""
    IDEMPOTENCY_HITS.add("redis")
    record = replayed.record
    if isinstance(record, KeptAnswer):
        return Answer(record.status, record.body.encode(), replayed.limit, replayed=True)
    answer = claim_refusal(record.code, record.version, record.status, replayed.limit)
    return answer._replace(replayed=True)


def stored_answer(key: IdempotencyKey, stored: StoredAnswer, limit: LimitState | None = None) -> Answer:
    """The answer again that a request got before, as Postgres keeps it, if it was the same request."""
    if stored.fingerprint != key.fingerprint:
        return refusal_answer(Refusal("idempotency_key_reused"), limit)
    IDEMPOTENCY_HITS.add("postgres")
    return Answer(stored.status, stored.body.encode(), limit, replayed=True)
