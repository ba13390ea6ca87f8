"""The plan of a simulated city, and its form on the way into the city's process."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson


@dataclass(frozen=True, slots=True)
class CityPlan:
    """What a city is made of.

    `pickups` are (seconds after the first, lat, lng); `run` is part of every user's and trip's name;
    `speed` is in simulated seconds a second; `minutes` is real time, None until the last pickup.
    """

    url: str
    server_pid: int
    secret: str
    audience: str
    issuer: str | None
    run: str
    pickups: list[tuple[float, float, float]]
    drivers: int
    speed: float
    minutes: float | None
    #: Radius of the widest wave: a driver within it may be offered the trip.
    max_radius_m: float

    def encode(self) -> bytes:
        """One line of JSON, for the standard input of the city's process."""
        return orjson.dumps(asdict(self)) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> CityPlan:
        """The plan in such a line."""
        return cls(**orjson.loads(line))
