"""The HTTP side of an app: requests with idempotency keys, sent until they are answered.

A third of them is sent once more with the same key, on purpose, and the two answers are compared.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import jwt
import orjson

from dispatcher.core.errors import PROBLEMS
from dispatcher.demo.stats import Stats

#: Share of requests that are sent once more after their answer, and with a concurrent duplicate.
_REPEATED_SHARE: Final = 1 / 6
_DUPLICATED_SHARE: Final = 1 / 6
_MAX_ATTEMPTS: Final = 40
_ATTEMPT_TIMEOUT_S: Final = 10.0
#: Refusals that are only temporary: the same request is sent again.
_TRANSIENT_CODES: Final = frozenset(
    {"request_in_progress", "trip_busy", "service_unavailable", "outcome_unknown", "rate_limit_exceeded"}
)
#: Fields in which a frame and a replay may differ from the first answer.
_VARYING_FIELDS: Final = ("type", "id", "status", "replayed", "problem", "rate_limit")
#: Errors of a request or a connection that the network explains.
CONNECTION_ERRORS: Final = (aiohttp.ClientError, ConnectionError, TimeoutError)


class Unanswered(Exception):
    """A request got no definite answer, however often it was sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `raw` has its bytes if it came over HTTP."""

    status: int
    body: dict[str, Any]
    replayed: bool
    raw: bytes | None = None

    @property
    def code(self) -> str:
        """The `response_code`."""
        return str(self.body.get("response_code", ""))

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.status < 400

    def equals(self, other: Reply) -> bool:
        """Whether two answers to one key are the same answer."""
        if self.raw is not None and other.raw is not None and self.raw != other.raw:
            return False
        return self.status == other.status and _constant_fields(self.body) == _constant_fields(
            other.body
        )

    @property
    def kept(self) -> bool:
        """Whether the server stores it: only then must the next answer to its key be the same."""
        return self.ok or (self.code in PROBLEMS and PROBLEMS[self.code].kept)


#: Sends a request once. Raises CONNECTION_ERRORS.
Send = Callable[[], Awaitable[Reply]]


def _constant_fields(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _VARYING_FIELDS}


def issue_token(secret: str, audience: str, issuer: str | None, sub: str, role: str, ttl_s: int) -> str:
    """A signed token for a user of the demo."""
    now = int(time.time())
    claims: dict[str, Any] = {"sub": sub, "role": role, "aud": audience, "iat": now, "exp": now + ttl_s}
    return jwt.encode(claims | ({"iss": issuer} if issuer else {}), secret, algorithm="HS256")


class ApiClient:
    """Sends the requests of all apps over HTTP, repeats some of them, and compares the answers."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, stats: Stats, rng: random.Random
    ) -> None:
        self._session = session
        self._url = url
        self._stats = stats
        self._rng = rng
        self._background: set[asyncio.Task[Any]] = set()

    async def post(self, token: str, path: str, body: dict[str, Any], key: str) -> Reply:
        """One POST. Raises CONNECTION_ERRORS."""
        async with self._session.post(
            self._url + path,
            data=orjson.dumps(body),
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
                "Idempotency-Key": key,
            },
        ) as response:
            raw = await response.read()
            replayed = response.headers.get("X-Idempotent-Replay") == "true"
            return Reply(response.status, orjson.loads(raw), replayed, raw)

    async def get(self, token: str, path: str) -> Reply:
        """One GET. Raises CONNECTION_ERRORS."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.get(self._url + path, headers=headers) as response:
            raw = await response.read()
            return Reply(response.status, orjson.loads(raw), False, raw)

    async def open_websocket(self, token: str) -> aiohttp.ClientWebSocketResponse:
        """Opens a WebSocket for a user. Raises CONNECTION_ERRORS."""
        return await self._session.ws_connect(
            self._url + "/ws", headers={"Authorization": f"Bearer {token}"}, compress=0, max_msg_size=0
        )

    async def request(self, name: str, send: Send, resend: Send | None = None) -> Reply:
        """The first definite answer to a request; `resend` sends its repetitions, if not `send`.

        The latency of an answer that is no replay is a sample of `name`. Raises Unanswered.
        """
        resend = resend or send
        draw = self._rng.random()
        if draw < _DUPLICATED_SHARE:
            self._stats.counts["repeated"] += 1
            copies = [
                asyncio.create_task(self._send_until_answered(name, sender)) for sender in (send, resend)
            ]
            self._in_background(self._compare_duplicates(copies))
            done, _ = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            reply = await done.pop()
        else:
            reply = await self._send_until_answered(name, send)
            if draw < _DUPLICATED_SHARE + _REPEATED_SHARE:
                self._stats.counts["repeated"] += 1
                self._in_background(self._send_again(name, reply, resend))
        if reply.ok and (trip := reply.body.get("trip")):
            self._stats.answered.append((trip["id"], trip["version"]))
        return reply

    async def _send_until_answered(self, name: str, send: Send) -> Reply:
        for attempt in range(_MAX_ATTEMPTS):
            self._stats.counts["requests"] += 1
            start = time.monotonic()
            try:
                # Not wait_for: before Python 3.12, one that is cancelled as it is answered goes on.
                async with asyncio.timeout(_ATTEMPT_TIMEOUT_S):
                    reply = await send()
            except CONNECTION_ERRORS:
                self._stats.counts["unanswered"] += 1
                await asyncio.sleep(min(0.1 * 2**attempt, 2))
                continue
            self._stats.counts[f"answer {reply.code}"] += 1
            self._stats.counts["replayed"] += reply.replayed
            if reply.code not in _TRANSIENT_CODES:
                if not reply.replayed:
                    self._stats.add_latency(name, time.monotonic() - start)
                return reply
            self._stats.counts["passing"] += 1
            await asyncio.sleep(reply.body.get("retry_after", 1) * self._rng.uniform(1.0, 1.2))
        raise Unanswered

    async def _compare_duplicates(self, copies: list[asyncio.Task[Reply]]) -> None:
        first, second = await asyncio.gather(*copies, return_exceptions=True)
        if isinstance(first, Reply) and isinstance(second, Reply):
            self._compare_replies(first, second)

    async def _send_again(self, name: str, first: Reply, resend: Send) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        try:
            second = await self._send_until_answered(name, resend)
        except Unanswered:
            self._stats.counts["unanswered for good"] += 1
            return
        if first.kept and not second.replayed:
            self._stats.mismatches.append(f"not replayed: {first.code}, then {second.code}")
        self._compare_replies(first, second)

    def _compare_replies(self, first: Reply, second: Reply) -> None:
        if first.kept and second.kept and not first.equals(second):
            self._stats.mismatches.append(f"{first.body} then {second.body}")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(self._stats.keep_error)

    async def finish(self, timeout_s: float) -> None:
        """Waits up to `timeout_s` for repetitions that are still under way."""
        if self._background:
            await asyncio.wait(self._background, timeout=timeout_s)


def new_key() -> str:
    """A fresh Idempotency-Key."""
    return uuid.uuid4().hex
