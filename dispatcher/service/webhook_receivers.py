"""The webhook of a server process: a queue of deliveries for each receiver of the settings."""

from __future__ import annotations

from dispatcher.config import Settings
from dispatcher.live.deliveries import DeliveryScripts
from dispatcher.service.webhook import MAX_CALLS, Deliveries, Webhook
from dispatcher.webhook.receiver import Receiver


def make_webhook(settings: Settings, scripts: DeliveryScripts) -> Webhook:
    """The webhook of the settings, of no receiver where they name none."""
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
    return Webhook(
        scripts,
        [
            Deliveries(
                Receiver(url, secret, timeout_s=settings.webhook_timeout_s, max_calls=MAX_CALLS),
                scripts,
                timeout_s=settings.webhook_timeout_s,
                first_rest_s=settings.webhook_retry_s,
                max_attempts=settings.webhook_attempts,
            )
            for url in dict.fromkeys(settings.webhook_url)
        ],
    )
