"""How a trip looks for drivers: each next round reaches further, as the zone's waves say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from dispatcher.core.zones import Wave

#: Where nobody could be found, the next wave reaches further at once; the widest looks again after this.
LOOK_FURTHER_MS: Final = 10
LOOK_AGAIN_MS: Final = 1_000


class Look(NamedTuple):
    """One round: its wave, whether none reaches further, and when to look again if nobody is found."""

    wave: Wave
    is_widest: bool
    again_ms: int


def look(waves: Sequence[Wave], round_number: int) -> Look:
    """The look of a trip that has looked `round_number` times before."""
    last = len(waves) - 1
    is_widest = round_number >= last
    return Look(
        waves[min(round_number, last)], is_widest, LOOK_AGAIN_MS if is_widest else LOOK_FURTHER_MS
    )


def longest_wait_ms(waves: Sequence[Wave]) -> int:
    """How long a trip waits for a driver before it expires."""
    return int(sum(wave.deadline_s for wave in waves) * 1000)


def widest_reach_m(waves: Sequence[Wave]) -> float:
    """How far the wave that reaches furthest does. A round of matching looks so far from the first on:
    the trips it decides on together need not be protected from far drivers one by one."""
    return max(wave.radius_m for wave in waves)
