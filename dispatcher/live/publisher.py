"""Messages to users, for the servers that have their sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.settlement import Message


class Publisher:
    """Sends messages to the servers that have a socket of their addressee."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def publish(self, zone: str, messages: Sequence[Message]) -> None:
        """Sends frames to users, who know of the zone. Raises StoreUnavailable."""
        keys = keys_of(zone)
        await asyncio.gather(
            *(
                self._pipeline.command("SPUBLISH", keys.channel(address), message.frame)
                for message in messages
                for address in message.to
            )
        )
