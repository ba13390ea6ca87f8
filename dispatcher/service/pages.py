"""Where a page of rows begins: after the last row of the page before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

#: A page without a beginning begins here: later than any change, should clocks differ.
_AHEAD: Final = timedelta(minutes=5)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: No row is later (the year 2255), and every database and runtime holds it.
_LATEST_US: Final = 2**53


class Place(NamedTuple):
    """Where a page begins: after the row of this time (µs since the epoch) and id."""

    at_us: int
    id: str

    @classmethod
    def read(cls, text: str) -> Place:
        """The place that `next` of a page names: `µs~id`."""
        at_us, _, id_ = text.partition("~")
        return cls(min(max(int(at_us), 0), _LATEST_US), id_)

    @classmethod
    def of(cls, at: datetime, id_: str) -> Place:
        """The place of a row."""
        return cls((at - _EPOCH) // timedelta(microseconds=1), id_)

    @classmethod
    def latest(cls, after: str | None) -> Place:
        """Where a page begins whose rows come latest first; `after` is the `next` of the page before."""
        return cls.read(after) if after else cls.of(datetime.now(UTC) + _AHEAD, "")

    @classmethod
    def oldest(cls, after: str | None) -> Place:
        """The same where rows come oldest first."""
        return cls.read(after) if after else cls(0, "")

    @property
    def moment(self) -> datetime:
        """The time of the row."""
        return _EPOCH + timedelta(microseconds=self.at_us)

    def __str__(self) -> str:
        return f"{self.at_us}~{self.id}"


def next_place(rows: Sequence[Any], limit: int, *, time: str, id_: str) -> str | None:
    """Where the page after these rows begins; None where they do not fill their page."""
    return str(Place.of(rows[-1][time], rows[-1][id_])) if len(rows) == limit else None
