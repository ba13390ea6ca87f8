"""How simulated drivers behave: what they do with offers, and how often they interrupt their work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: In simulated seconds: how long a customer takes to board, and how long a break is.
BOARDING_S: Final = 60.0
BREAK_S: Final = 600.0
#: Share of accepted trips that the driver gives back at the pickup, and of completed trips that a
#: break follows.
GIVE_BACK_SHARE: Final = 0.015
BREAK_SHARE: Final = 0.04


@dataclass(frozen=True, slots=True)
class DriverHabits:
    """What drivers do with offers: shares of all, and the simulated seconds they think about one.

    An offer that is neither accepted nor declined is ignored until its deadline.
    """

    accepts: float = 0.80
    declines: float = 0.12
    think_time_s: tuple[float, float] = (2.0, 8.0)


DEFAULT_HABITS: Final = DriverHabits()
