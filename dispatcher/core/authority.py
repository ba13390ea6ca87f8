"""Who decides about a zone: its Redis, or Postgres alone while that is away."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Engine(StrEnum):
    """`zone_authorities.engine`."""

    REDIS = "redis"
    POSTGRES = "postgres"


class Authority(NamedTuple):
    """Who decides, and the fence that a commit compares: it is raised with each change of the engine."""

    engine: Engine
    fence: int

    @property
    def is_degraded(self) -> bool:
        """Whether the zone does without its Redis."""
        return self.engine is Engine.POSTGRES


#: Of a zone that Postgres has no row of, as one that is not configured any more.
BY_REDIS = Authority(Engine.REDIS, 0)
