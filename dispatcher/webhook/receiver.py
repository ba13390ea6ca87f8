"""One receiver of a webhook: signed calls (Standard Webhooks), each sent once."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from standardwebhooks import Webhook

from dispatcher.core.times import wait_s

#: A receiver that asks for more time than this is asked all the same.
_LONGEST_WAIT_S: Final = 600.0


class Outcome(NamedTuple):
    """What came of a call: what went wrong (None: it was taken), and when to call again, if it says."""

    error: str | None = None
    retry_after_s: float | None = None


class Receiver:
    """Calls one URL. `name` tells receivers apart and holds nothing secret; `shown` is for people."""

    def __init__(self, url: str, secret: str, *, timeout_s: float, max_calls: int) -> None:
        parts = urlsplit(url)
        self.name = hashlib.sha256(url.encode()).hexdigest()[:8]
        # Without path, query and user: tokens stand there.
        self.shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self._url = url
        self._signer = Webhook(secret)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_calls = max_calls
        self._session: aiohttp.ClientSession | None = None

    async def call(self, message_id: str, body: str) -> Outcome:
        """Sends a message once; any 2xx says that it was taken. Redirects are not followed."""
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "dispatcher-webhook",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(message_id, now, body),
        }
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_calls),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
            )
        try:
            async with self._session.post(
                self._url, data=body.encode(), headers=headers, allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    return Outcome()
                asked_s = wait_s(response.headers.get("Retry-After", ""))
                return Outcome(
                    f"it answered {response.status}",
                    None if asked_s is None else min(asked_s, _LONGEST_WAIT_S),
                )
        except TimeoutError:
            return Outcome("it did not answer in time")
        except (aiohttp.ClientError, OSError) as error:
            # Their messages may repeat the URL.
            return Outcome(f"it could not be called: {type(error).__name__}")

    async def close(self) -> None:
        """Lets go of the connections."""
        if self._session is not None:
            await self._session.close()
