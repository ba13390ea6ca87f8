"""What answers say of places: outlines, queues and heat; models as in `answers`."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from dispatcher.web.answers import Body, Moment, example

_CELL: Final[dict[str, Any]] = {
    "cell": "872a100d2ffffff",
    "boundary": [
        [40.75427, -73.98804], [40.7477, -74.00276], [40.73538, -74.00227], [40.72962, -73.98707],
        [40.73619, -73.97235], [40.74851, -73.97283],
    ],
    "asked": 9, "waiting": 6, "free_drivers": 6,
}  # fmt: skip


class Outline(Body):
    """A GeoJSON geometry, in degrees, longitude first."""

    type: Literal["Polygon", "MultiPolygon"]
    coordinates: list[Any]


class QueueOutline(Body):
    """A place where drivers wait in the order in which they arrived."""

    name: str
    outline: Outline


class QueueTurn(Body):
    """Whom a queue asked: their number in it."""

    model_config = example({"queue": "airport", "position": 1})

    queue: str
    position: int = Field(ge=1)


class HeatCell(Body):
    """An H3 cell. To drivers all counts are told with noise, `asked` and `waiting` of customers, and
    none below six."""

    cell: str = Field(description="Its index")
    boundary: list[tuple[float, float]] = Field(description="Its corners: lat and lng in degrees")
    asked: int = Field(ge=0, description="Trips asked for in the window")
    waiting: int = Field(ge=0, description="Trips that look for a driver; to drivers, of the window")
    free_drivers: int = Field(ge=0)


class Heat(Body):
    """Where work is waiting, sampled: every ten seconds for operators, or five minutes for drivers."""

    model_config = example(
        {
            "zone": "default", "sampled_at": "2026-03-01T08:30:00.000Z", "window_s": 300,
            "resolution": 7, "cells": [_CELL],
        }
    )  # fmt: skip

    zone: str
    sampled_at: Moment
    window_s: int = Field(
        description="The time in which trips count as asked for: before `sampled_at`; to drivers, the"
        " last whole one, counted from the full hour"
    )
    resolution: int = Field(ge=0, le=15, description="Of the cells: coarser for drivers")
    cells: list[HeatCell]
