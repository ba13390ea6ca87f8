"""How much a connection, or an address, may send: a token bucket that seldom asks the clock."""

from __future__ import annotations

import math
from typing import Final

from dispatcher.core.limits import Rate

#: Who was warned and is overdrawn again within this time goes on regardless.
_WARNED_S: Final = 10.0
#: An empty bucket is waited for until this part of it is full: not a wait for each message.
_PART: Final = 8


class Allowance:
    """What is left for one sender. Takers subtract from `left`, and ask `wait_s` when it is below 1."""

    __slots__ = ("_renewed_s", "_warned_s", "left")

    def __init__(self, rate: Rate, now_s: float) -> None:
        #: Messages that may be taken before the clock is asked.
        self.left: float = rate.limit or math.inf
        self._renewed_s = now_s
        self._warned_s = -_WARNED_S

    def wait_s(self, rate: Rate, now_s: float) -> float:
        """Adds what the time since the last look has earned; 0, or how long to wait for more."""
        a_second = rate.limit / rate.window_s
        self.left = min(rate.limit, self.left + (now_s - self._renewed_s) * a_second)
        self._renewed_s = now_s
        return 0.0 if self.left >= 1 else (max(1.0, rate.limit / _PART) - self.left) / a_second

    def warn(self, now_s: float) -> bool:
        """The sender has sent too much. False where it was told so a moment ago, and went on."""
        if now_s - self._warned_s < _WARNED_S:
            return False
        self._warned_s = now_s
        return True
