"""The live copy of idempotency keys: how `lua/lib/idempotency.lua` writes its records."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from dispatcher.core.idempotency import StoredAnswer
from dispatcher.core.trips import Status

#: What stands where a refusal tells neither version nor state.
NOT_TOLD: Final = "-"


class KeptAnswer(NamedTuple):
    """The answer to a request that had an effect."""

    status: int
    body: str


class KeptRefusal(NamedTuple):
    """The refusal of a request: its code, and the trip's version and state where they are told."""

    code: str
    version: int | None
    status: Status | None


def done_record(answer: StoredAnswer) -> str:
    """The record of an answer that Postgres keeps."""
    return f"D {answer.fingerprint} {answer.status} {answer.body}"


def is_asked_of_postgres(record: str, fingerprint: str, now_ms: int) -> bool:
    """Whether a request with this fingerprint that meets the record is answered with what Postgres has:
    it is one in flight whose lease is over."""
    leased = re.match(f"L {fingerprint} ([0-9]+) ", record)
    return leased is not None and int(leased[1]) <= now_ms


def decode_record(text: str) -> KeptAnswer | KeptRefusal:
    """A finished record as a script hands it out, that is without its fingerprint.

    Raises ValueError where it is none.
    """
    kind, _, rest = text.partition(" ")
    if kind == "D":
        status, _, body = rest.partition(" ")
        return KeptAnswer(int(status), body)
    if kind != "N":
        raise ValueError(f"{kind!r} is no kind of finished record")
    code, version, state = rest.split(" ")
    return KeptRefusal(code, *decode_version(version, state))


@lru_cache(maxsize=1_024)
def decode_version(version: str, status: str) -> tuple[int | None, Status | None]:
    """The version and state of a trip that a script tells with a refusal.

    Remembered, since a crowd that lost the same trip is told the same.
    """
    if version == NOT_TOLD:
        return None, None
    return int(version), Status(status)
