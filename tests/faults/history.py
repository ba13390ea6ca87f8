"""What clients did and were told, with the times at which they sent and heard it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

#: Fields that a frame adds to the answer that HTTP would have given.
_ENVELOPE = frozenset({"type", "id", "status", "replayed"})


@dataclass(slots=True)
class Attempt:
    """One sending of one intent. Times are seconds since the epoch; `status` is None without an answer."""

    user: str
    endpoint: str
    key: str
    body: dict[str, Any]
    sent_at: float
    answered_at: float | None = None
    status: int | None = None
    raw: bytes = b""
    is_frame: bool = False

    def answered(self, status: int, raw: bytes) -> None:
        self.answered_at, self.status, self.raw = time.time(), status, raw

    @property
    def answer(self) -> dict[str, Any]:
        """The answer's fields, the same by HTTP and by frame."""
        fields = orjson.loads(self.raw)
        return {
            name: value for name, value in fields.items() if name not in _ENVELOPE or not self.is_frame
        }

    @property
    def code(self) -> str:
        return str(self.answer.get("response_code", "")) if self.raw else ""

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """Whether an app takes this for the answer; after anything else it asks again with the same key."""
        if self.status is None or self.status >= 500 or self.status == 429:
            return False
        return self.code not in ("request_in_progress", "outcome_unknown")


@dataclass(frozen=True, slots=True)
class Heard:
    """A frame that a socket brought: a `welcome` (which has no trip), or news of a trip."""

    user: str
    at: float
    trip: str = ""
    version: int = -1


@dataclass
class History:
    """Everything that the clients of one round did and heard, and what the stream was seen to hold."""

    attempts: list[Attempt] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    told: set[tuple[str, int]] = field(default_factory=set)
    #: From when to when Redis could not decide, or forgot what it had admitted.
    undecided: list[tuple[float, float]] = field(default_factory=list)

    def begin(self, user: str, endpoint: str, key: str, body: dict[str, Any]) -> Attempt:
        attempt = Attempt(user, endpoint, key, body, time.time())
        self.attempts.append(attempt)
        return attempt

    def hear(self, user: str, frame: dict[str, Any]) -> None:
        """Keeps what a frame says of versions."""
        if frame["type"] == "welcome":
            self.heard.append(Heard(user, time.time()))
        elif frame["type"] == "trip":
            self.heard.append(Heard(user, time.time(), frame["trip"]["id"], frame["trip"]["version"]))

    def read_stream(self, entries: list[Any]) -> None:
        """Keeps what the stream of a zone holds, in XRANGE's form."""
        for _, fields in entries:
            trip = orjson.loads(fields["event"])["trip"]
            self.told.add((trip["id"], trip["version"]))

    def write(self, file: Path) -> None:
        """Writes down what clients did and heard, for whoever looks into a round later."""
        file.write_bytes(
            orjson.dumps(
                {
                    "attempts": [
                        {
                            "at": attempt.sent_at,
                            "answered_at": attempt.answered_at,
                            "user": attempt.user,
                            "endpoint": attempt.endpoint,
                            "key": attempt.key,
                            "is_frame": attempt.is_frame,
                            "body": attempt.body,
                            "status": attempt.status,
                            "answer": attempt.raw.decode(),
                        }
                        for attempt in self.attempts
                    ],
                    "heard": [asdict(item) for item in self.heard],
                },
                option=orjson.OPT_INDENT_2,
            )
        )

    def by_key(self) -> dict[tuple[str, str, str], list[Attempt]]:
        """The attempts of each intent, in the order they were sent."""
        intents: dict[tuple[str, str, str], list[Attempt]] = {}
        for attempt in self.attempts:
            intents.setdefault((attempt.user, attempt.endpoint, attempt.key), []).append(attempt)
        return intents
