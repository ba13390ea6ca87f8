"""What an answer says to drivers of themselves: models as in `answers`."""

from __future__ import annotations

from pydantic import Field

from dispatcher.core.obstacles import Obstacle
from dispatcher.web.answers import DRIVER, Body, Driver, Moment, OpenOffer, Trip, example


class PlaceInQueue(Body):
    """A driver's place in the queue of an airport, for instance; the first there has number 1."""

    queue: str
    position: int = Field(ge=1)
    queued_at: Moment


class DriverSnapshot(Body):
    """A driver as they are; `driver` is null for one who was never online."""

    driver: Driver | None
    trip: Trip | None
    offers: list[OpenOffer]
    queue: PlaceInQueue | None


class DriverState(DriverSnapshot):
    """The same, and `keeps_offers_away`: what does, of what they can see and change."""

    model_config = example(
        {
            "driver": DRIVER, "trip": None, "offers": [],
            "queue": {"queue": "airport", "position": 4, "queued_at": "2026-03-01T08:12:00.310Z"},
            "keeps_offers_away": ["stale_position"],
        }
    )  # fmt: skip

    keeps_offers_away: list[Obstacle]
