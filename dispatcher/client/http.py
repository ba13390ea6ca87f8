"""Calls over HTTP, each sent once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import orjson

from dispatcher.client.replies import Intent, Reply
from dispatcher.core.times import wait_s

#: A bearer token, or what gives one that has not expired whenever it is asked.
Token = str | Callable[[], Awaitable[str]]

_JSON: Final = "application/json"
#: How long a server may take to answer a close frame, in s: there is nothing more to hear from it.
_CLOSE_S: Final = 1.0


class UnreadableAnswer(ConnectionError):
    """Something between here and the server answered for it, as a proxy does whose server is away.

    `retry_after_s` is when to ask again, in s; None where the answer does not say.
    """

    def __init__(self, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} is no answer of this API")
        self.retry_after_s = retry_after_s


class HttpCalls:
    """One user's calls. All raise CONNECTION_ERRORS."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: Token) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._token = token

    @property
    def renews_token(self) -> bool:
        """Whether another token can be had once this one has expired."""
        return callable(self._token)

    async def send(self, intent: Intent) -> Reply:
        """Sends a change once, with its key."""
        return await self.post(intent.path, intent.body, **{"Idempotency-Key": intent.key})

    async def post(self, path: str, body: Mapping[str, Any], **headers: str) -> Reply:
        """One POST."""
        headers |= {"Content-Type": _JSON}
        return await self._call("POST", path, headers, data=orjson.dumps(body))

    async def get(self, path: str, **parameters: Any) -> Reply:
        """One GET; parameters that are None are left out."""
        given = {name: str(value) for name, value in parameters.items() if value is not None}
        return await self._call("GET", path, {}, params=given)

    async def _call(self, method: str, path: str, headers: dict[str, str], **more: Any) -> Reply:
        reply = await self._call_once(method, path, headers, **more)
        if reply.code == "token_expired" and self.renews_token:
            reply = await self._call_once(method, path, headers, **more)
        if reply.ok and method == "POST" and not reply.code:  # each success of a change names itself
            raise UnreadableAnswer(reply.status, reply.retry_after_s)
        return reply

    async def _call_once(self, method: str, path: str, headers: Mapping[str, str], **more: Any) -> Reply:
        headers = {**headers, **await self.authorization()}
        async with self._session.request(
            method, self._url + path, headers=headers, allow_redirects=False, **more
        ) as response:
            return _reply(response, await response.read())

    async def authorization(self) -> dict[str, str]:
        """The header that says who calls."""
        token = self._token if isinstance(self._token, str) else await self._token()
        return {"Authorization": f"Bearer {token}"}

    async def open_websocket(self) -> aiohttp.ClientWebSocketResponse:
        """Opens a WebSocket, once."""
        return await self._session.ws_connect(
            self._url + "/ws",
            headers=await self.authorization(),
            compress=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
        )


def _reply(response: aiohttp.ClientResponse, raw: bytes) -> Reply:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    after_s = wait_s(response.headers.get("Retry-After", ""))
    if not isinstance(body, dict) or (response.status >= 500 and "response_code" not in body):
        if response.status >= 500 or response.status < 400:
            raise UnreadableAnswer(response.status, after_s)
        body = {}
    told = body.get("retry_after")
    return Reply(
        response.status,
        body,
        response.headers.get("X-Idempotent-Replay") == "true",
        raw,
        max(0.0, told) if isinstance(told, (int, float)) else after_s,
    )
