"""What became of each intent: its answer, its refusals, and from when to when it may have been at work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from tests.faults.evidence import Evidence
from tests.faults.history import Attempt
from tests.faults.linearizability import NEVER

#: The life of a claim in a round. An attempt that ended in an error may leave one behind.
LEASE_S = 1.5
#: What a trip's event is called, by the action that a driver asks for.
EVENTS = {
    "accept": "accepted",
    "arrive": "arrived",
    "start": "started",
    "complete": "completed",
    "cancel": "released",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal that an intent was answered with; `by` is when it had been decided at the latest."""

    code: str
    by: float


@dataclass(frozen=True, slots=True)
class Intent:
    """All sendings of one key. `answer` is that of its success, be it known to the client or to Postgres alone.

    An answer is written with its effect. So an intent whose outcome no client knows has happened where Postgres
    has its answer, at any time after it was called, and has not where it has none; an effect without an answer
    belongs to no intent, and no order explains it. `returned` is when the client knew of its success; NEVER where
    it does not. `ends_by` is when nothing of it is at work any more.
    """

    user: str
    endpoint: str
    key: str
    body: dict[str, Any]
    called: float
    returned: float
    answer: dict[str, Any] | None
    refusals: tuple[Refusal, ...]
    ends_by: float

    @property
    def name(self) -> str:
        what = self.body.get("action") or self.endpoint.rpartition("/")[2]
        return f"{self.user} {what} {self.key}"

    @property
    def trip(self) -> str:
        """The trip that it is about; empty where it is about none, or nobody knows which one was created."""
        if self.answer is not None and "trip" in self.answer:
            return str(self.answer["trip"]["id"])
        return str(self.body.get("trip_request_id", ""))

    @property
    def event(self) -> str:
        """What its success is called in the history of the trip; empty where it has none there."""
        if self.endpoint.endswith("/create"):
            return "created"
        if self.endpoint.endswith("/cancel"):
            return "cancelled"
        return EVENTS.get(self.body.get("action", ""), "")

    @property
    def version(self) -> int:
        """The version of the trip that its success has led to."""
        assert self.answer is not None
        return int(self.answer["trip"]["version"])

    def is_at_work(self, other: Intent) -> bool:
        """Whether this one may have held a claim while the other was looked at."""
        return self.key != other.key and self.called <= other.ends_by and other.called <= self.ends_by


def intents(evidence: Evidence) -> Iterator[Intent]:
    """The intents of a history."""
    for (user, endpoint, key), attempts in evidence.history.by_key().items():
        stored = evidence.answers.get((user, endpoint, key))
        successes = [attempt for attempt in attempts if attempt.is_success]
        answer = successes[0].answer if successes else orjson.loads(stored) if stored else None
        first_refusals: dict[str, float] = {}
        for attempt in attempts:
            if attempt.is_final and not attempt.is_success and attempt.answered_at is not None:
                by = first_refusals.get(attempt.code, NEVER)
                first_refusals[attempt.code] = min(by, attempt.answered_at)
        yield Intent(
            user, endpoint, key, attempts[0].body,
            called=attempts[0].sent_at,
            returned=min((a.answered_at or NEVER for a in successes), default=NEVER),
            answer=answer,
            refusals=tuple(Refusal(code, by) for code, by in first_refusals.items()),
            ends_by=max(_end(attempt) for attempt in attempts),
        )  # fmt: skip


def _end(attempt: Attempt) -> float:
    if attempt.answered_at is None:
        return NEVER
    return attempt.answered_at if attempt.is_final else attempt.answered_at + LEASE_S
