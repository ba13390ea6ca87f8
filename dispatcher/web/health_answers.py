"""What the checks of a balancer say: one model a success body, as in `answers`."""

from __future__ import annotations

from typing import Literal

from dispatcher.web.answers import Body, example


class Alive(Body):
    """The process lives."""

    model_config = example({"status": "ok"})

    status: Literal["ok"]


class Ready(Body):
    """The server can decide; `degraded`: without the Redis of the zones that are named, 100 at most."""

    model_config = example(
        {"status": "ready", "redis": "ok", "postgres": "ok", "stopping": False, "degraded_zones": []}
    )

    status: Literal["ready", "degraded"]
    redis: str
    postgres: str
    stopping: bool
    degraded_zones: list[str]
