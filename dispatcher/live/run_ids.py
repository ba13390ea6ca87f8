"""The run ids of the nodes: asked for once a node, however many zones want to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import NamedTuple

from dispatcher.live.pipeline import Pipeline


class _Asked(NamedTuple):
    """A question, and when it was asked by the monotonic clock, in s."""

    at_s: float
    answer: asyncio.Task[str]


class RunIds:
    """What each node said last. A node that was replaced says something else."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._asked: dict[Hashable, _Asked] = {}

    async def of(self, key: str, *, max_age_s: float) -> str:
        """The run id of the node that holds `key`, as it was `max_age_s` ago at most.

        Raises StoreUnavailable.
        """
        node, now_s = self._pipeline.node_of(key), time.monotonic()
        asked = self._asked.get(node)
        if asked is None or now_s - asked.at_s > max_age_s or _has_failed(asked.answer):
            answer = asyncio.get_running_loop().create_task(self._ask(key))
            answer.add_done_callback(_has_failed)
            asked = self._asked[node] = _Asked(now_s, answer)
        # Whoever is cancelled leaves the question to the others.
        return await asyncio.shield(asked.answer)

    async def _ask(self, key: str) -> str:
        return await self._pipeline.run_id(key)


def _has_failed(answer: asyncio.Task[str]) -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)
