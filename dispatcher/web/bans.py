"""Addresses that are refused for a while, since their connections had to be ended again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: So many connections that had to be ended, each within the length of a ban, bring one.
_STRIKES: Final = 3
#: Beyond this the oldest is forgotten, so that a crowd of addresses cannot fill the memory.
_MAX_ADDRESSES: Final = 10_000


@dataclass(slots=True)
class _Record:
    strikes: int
    #: Until when the strikes count; once there are enough of them, until when the address is refused.
    until_s: float


class Bans:
    """The addresses that one server process remembers. Times are in s of one monotonic clock."""

    def __init__(self, ban_s: float) -> None:
        self._ban_s = ban_s
        self._records: dict[str, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def strike(self, address: str, now_s: float) -> bool:
        """A connection of the address had to be ended. True where the address is refused from now on."""
        record = self._records.pop(address, None)
        if record is None or record.until_s <= now_s:
            record = _Record(0, 0.0)
        record.strikes += 1
        record.until_s = now_s + self._ban_s
        if len(self._records) >= _MAX_ADDRESSES:
            del self._records[next(iter(self._records))]
        self._records[address] = record
        return record.strikes == _STRIKES

    def remaining_s(self, address: str, now_s: float) -> float:
        """How long the address is still refused; 0 where it is not."""
        record = self._records.get(address)
        if record is None or record.strikes < _STRIKES:
            return 0.0
        if record.until_s <= now_s:
            del self._records[address]
            return 0.0
        return record.until_s - now_s
