"""Delivers what happened in a zone to one receiver of the webhook."""

from __future__ import annotations

from typing import Final

from dispatcher.service.webhook import Deliveries

#: How soon an event is told. An offer from here, and room for more, end the rest.
_INTERVAL_S: Final = 1.0


class WebhookDelivery:
    """One job a zone and receiver, so that none holds up another."""

    interval_s = _INTERVAL_S

    def __init__(self, deliveries: Deliveries, zone: str) -> None:
        self.name = f"webhook-{zone}-{deliveries.receiver.name}"
        self._deliveries = deliveries
        self._zone = zone

    async def run(self) -> None:
        await self._deliveries.deliver_due(self._zone)
