"""A circuit breaker for a node of Redis: while it is away, nobody waits for it.

Nygard, "Release It!": closed, calls go through; open, they fail at once; half-open, one tries. Here the
one who tries is a task of its own, so no request ever is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final

import structlog

log = structlog.get_logger("dispatcher.redis")

#: Rests between tries; they double.
_FIRST_REST_S: Final = 0.1
_MAX_REST_S: Final = 1.0


class Breaker:
    """Open from the first sign that a node is no help until a write to it has gone through.

    `probe` connects anew and writes; it raises where that fails.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[None]], *, timeout_s: float, node: str = ""
    ) -> None:
        self._probe = probe
        self._timeout_s = timeout_s
        self._node = node
        self._probing: asyncio.Task[None] | None = None
        self._is_closed = False
        #: Why it is open; empty while it is closed.
        self.reason = ""
        #: How often it has opened, for the metrics.
        self.opened = 0

    @property
    def is_open(self) -> bool:
        """Whether the node is not to be asked."""
        return bool(self.reason)

    def trip(self, reason: str) -> None:
        """The node is no help: it is left alone from now on, until a probe succeeds."""
        if self.is_open or self._is_closed:
            return
        self.reason = reason
        self.opened += 1
        log.warning("redis is left alone", node=self._node, reason=reason)
        # Not in the context of this call: its lines are about the node.
        probing = self._probe_until_closed()
        self._probing = asyncio.get_running_loop().create_task(probing, context=Context())

    async def _probe_until_closed(self) -> None:
        rest_s = _FIRST_REST_S
        while True:
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, _MAX_REST_S)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._probe()
            except Exception as error:
                self.reason = str(error) or type(error).__name__
                continue
            log.info("redis is asked again", node=self._node, was=self.reason)
            self.reason = ""
            return

    async def close(self) -> None:
        """Gives up probing, for good: what is still on its way may fail."""
        self._is_closed = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)


class LeftAlone:
    """What has a node that may be left alone."""

    breaker: Breaker | None

    def leave_alone(self, reason: str) -> None:
        """The node is away or no help."""
        if self.breaker is not None:
            self.breaker.trip(reason)

    def times_left_alone(self) -> int:
        """How often a node was left alone."""
        return self.breaker.opened if self.breaker is not None else 0

    def is_left_alone(self, key: str) -> bool:
        """Whether the node that holds `key` is away or no help, so that it is not asked."""
        return self.breaker is not None and self.breaker.is_open
