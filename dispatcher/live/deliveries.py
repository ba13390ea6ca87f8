"""What a webhook is to be told, in Redis: streams, and how far each receiver has taken them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline

#: Offers end within minutes, so the stream of those needs no more than a busy minute.
_OFFERS_KEPT: Final = 10_000
_DEAD_LETTERS_KEPT: Final = 1_000
#: All servers are one consumer: how long ago an entry was handed out says whether somebody has it.
_CONSUMER: Final = "servers"


class NoGroup(Exception):
    """The receiver has not begun yet, or Redis has been emptied since."""


class Rests(NamedTuple):
    """How long an attempt may take, and the rests between attempts: all in ms."""

    attempt_ms: int
    first_ms: int
    longest_ms: int


class Claimed(NamedTuple):
    """An entry to deliver: its stream and its id there, the number of this attempt (1: the first), and
    its text."""

    stream: str
    entry: str
    attempt: int
    text: str


class DeadLetter(NamedTuple):
    """What could not be delivered: its id, when that was given up (ms), and what is known of it."""

    id: str
    at_ms: int
    fields: dict[str, str]


class DeliveryScripts:
    """The deliveries of a zone. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def queue_offers(self, keys: Keys, offers: Sequence[tuple[str, str]], http: str) -> int:
        """Queues offers to drivers who have no socket; each is the driver's address, and JSON.

        `http` names the connection that stands for calls. Returns how many were queued.
        """
        queued: int = await self._pipeline.run(
            "queue_offers",
            (keys.unheard, *(keys.connections(address) for address, _ in offers)),
            (_OFFERS_KEPT, http, *(text for _, text in offers)),
        )
        return queued

    async def claim_deliveries(
        self, stream: str, group: str, *, max_entries: int, rests: Rests, max_pending: int
    ) -> tuple[int, list[Claimed]]:
        """Entries whose next attempt is due, each to one server at a time; and how many are under way
        or waiting. Raises NoGroup."""
        try:
            pending, rows = await self._pipeline.run(
                "claim_deliveries", (stream,),
                (group, _CONSUMER, max_entries, *rests, max_pending),
            )  # fmt: skip
        except ResponseError as error:
            raise _error_of(error) from None
        return pending, [
            Claimed(stream, entry, attempt, _text_of(_as_dict(fields)))
            for entry, attempt, fields in rows
        ]

    async def next_deliveries(
        self, streams: Sequence[str], group: str, max_entries: int
    ) -> list[Claimed]:
        """Entries of these streams that nobody has been handed, each to one server: the first streams'
        first. Raises NoGroup."""
        found: list[Claimed] = []
        try:
            read = await self._pipeline.command(
                "XREADGROUP", "GROUP", group, _CONSUMER, "COUNT", max(1, max_entries // len(streams)),
                "STREAMS", *streams, *(">" for _ in streams),
            )  # fmt: skip
        except ResponseError as error:
            raise _error_of(error) from None
        for stream, entries in read or ():
            found += [Claimed(stream, entry, 1, _text_of(_as_dict(f))) for entry, f in entries]
        return found

    async def create_group(self, stream: str, group: str, *, from_now_on: bool) -> None:
        """Lets a receiver begin: with what comes from now on, or with all that is there."""
        try:
            await self._pipeline.command(
                "XGROUP", "CREATE", stream, group, "$" if from_now_on else "0", "MKSTREAM"
            )
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another server was faster
                raise

    async def delivered(self, stream: str, group: str, entry: str) -> None:
        """The receiver has taken it, or it is given up."""
        await self._pipeline.command("XACK", stream, group, entry)

    async def failed(self, stream: str, group: str, entry: str, *, attempt_ms: int) -> None:
        """The attempt has failed: the rest before the next one begins now."""
        await self._pipeline.command(
            "XCLAIM", stream, group, _CONSUMER, 0, entry, "IDLE", attempt_ms, "JUSTID"
        )

    async def bury(
        self, keys: Keys, stream: str, group: str, entry: str, about: Mapping[str, str | int]
    ) -> None:
        """Gives an entry up: it is kept with the dead letters."""
        fields: list[Any] = [part for item in about.items() for part in item]
        await self._pipeline.command(
            "XADD", keys.dead_letters, "MAXLEN", "~", _DEAD_LETTERS_KEPT, "*", *fields
        )
        await self.delivered(stream, group, entry)

    async def dead_letters(self, keys: Keys, before: str | None, max_rows: int) -> list[DeadLetter]:
        """Dead letters, the latest first; `before` is the id of the last one that was seen."""
        if before is not None and not before.strip("0-"):
            return []  # nothing is before the first id there can be
        start = f"({before}" if before else "+"
        rows = await self._pipeline.command(
            "XREVRANGE", keys.dead_letters, start, "-", "COUNT", max_rows
        )
        return [DeadLetter(id_, int(id_.partition("-")[0]), _as_dict(fields)) for id_, fields in rows]


def _error_of(error: ResponseError) -> Exception:
    return NoGroup(str(error)) if str(error).startswith("NOGROUP") else error


def _text_of(fields: dict[str, str]) -> str:
    """What our entries hold; empty for those of others."""
    return fields.get("event", "")


def _as_dict(fields: Any) -> dict[str, str]:
    """A cluster's client gives an entry's fields as a dictionary, our own connection as a flat list."""
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
