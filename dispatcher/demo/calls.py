"""How an app asks: with a key, again until there is an answer, and now and then twice on purpose."""

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
from dispatcher.demo.tally import Tally

#: Share of requests that are sent once more after their answer, and as a concurrent duplicate.
_AGAIN: Final = 1 / 6
_TWICE: Final = 1 / 6
_TRIES: Final = 40
_PATIENCE_S: Final = 10.0
#: Refusals that pass by themselves: the same request is sent again.
_PASSING: Final = frozenset(
    {"request_in_progress", "trip_busy", "service_unavailable", "outcome_unknown", "rate_limit_exceeded"}
)
#: Fields in which a frame and a replay differ from the first answer.
_ENVELOPE: Final = ("type", "id", "status", "replayed", "problem", "rate_limit")
#: What may happen to a request on its way.
LOST: Final = (aiohttp.ClientError, ConnectionError, TimeoutError)


class Unanswered(Exception):
    """No definite answer, however often it was asked."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `raw` are its bytes where it came over HTTP."""

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
        """Whether it is a success."""
        return self.status < 400

    def same_as(self, other: Reply) -> bool:
        """Whether two answers of one key are one answer."""
        if self.raw is not None and other.raw is not None and self.raw != other.raw:
            return False
        return self.status == other.status and _core(self.body) == _core(other.body)

    @property
    def kept(self) -> bool:
        """Whether the server remembers it: only then must the next answer be the same."""
        return self.ok or (self.code in PROBLEMS and PROBLEMS[self.code].kept)


Send = Callable[[], Awaitable[Reply]]


def _core(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _ENVELOPE}


def mint(secret: str, audience: str, issuer: str | None, sub: str, role: str, ttl_s: int) -> str:
    """A token for a user of the demo."""
    now = int(time.time())
    claims: dict[str, Any] = {"sub": sub, "role": role, "aud": audience, "iat": now, "exp": now + ttl_s}
    return jwt.encode(claims | ({"iss": issuer} if issuer else {}), secret, algorithm="HS256")


class Caller:
    """Sends requests over HTTP, repeats a third of all keyed ones, and compares their answers."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, tally: Tally, rng: random.Random
    ) -> None:
        self._session = session
        self._url = url
        self._tally = tally
        self._rng = rng
        self._background: set[asyncio.Task[Any]] = set()

    async def post(self, token: str, path: str, body: dict[str, Any], key: str) -> Reply:
        """One POST. Raises LOST."""
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
        """One GET. Raises LOST."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.get(self._url + path, headers=headers) as response:
            raw = await response.read()
            return Reply(response.status, orjson.loads(raw), False, raw)

    async def open_socket(self, token: str) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket of a user. Raises LOST."""
        return await self._session.ws_connect(
            self._url + "/ws", headers={"Authorization": f"Bearer {token}"}, compress=0, max_msg_size=0
        )

    async def ask(self, name: str, send: Send, again: Send | None = None) -> Reply:
        """The first definite answer of a request; `again` is the way of its repetitions.

        Latencies of answers that are no replays are counted under `name`. Raises Unanswered.
        """
        again = again or send
        draw = self._rng.random()
        if draw < _TWICE:
            self._tally.counts["repeated"] += 1
            copies = [asyncio.create_task(self._persist(name, way)) for way in (send, again)]
            self._later(self._compare(copies))
            done, _ = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            reply = await done.pop()
        else:
            reply = await self._persist(name, send)
            if draw < _TWICE + _AGAIN:
                self._tally.counts["repeated"] += 1
                self._later(self._send_once_more(name, reply, again))
        if reply.ok and (trip := reply.body.get("trip")):
            self._tally.answered.append((trip["id"], trip["version"]))
        return reply

    async def _persist(self, name: str, send: Send) -> Reply:
        for tries in range(_TRIES):
            self._tally.counts["requests"] += 1
            start = time.monotonic()
            try:
                # Not wait_for: before Python 3.12, one that is cancelled as it is answered goes on.
                async with asyncio.timeout(_PATIENCE_S):
                    reply = await send()
            except LOST:
                self._tally.counts["unanswered"] += 1
                await asyncio.sleep(min(0.1 * 2**tries, 2))
                continue
            self._tally.counts[f"answer {reply.code}"] += 1
            self._tally.counts["replayed"] += reply.replayed
            if reply.code not in _PASSING:
                if not reply.replayed:
                    self._tally.took(name, time.monotonic() - start)
                return reply
            self._tally.counts["passing"] += 1
            await asyncio.sleep(reply.body.get("retry_after", 1) * self._rng.uniform(1.0, 1.2))
        raise Unanswered

    async def _compare(self, copies: list[asyncio.Task[Reply]]) -> None:
        first, second = await asyncio.gather(*copies, return_exceptions=True)
        if isinstance(first, Reply) and isinstance(second, Reply):
            self._judge(first, second)

    async def _send_once_more(self, name: str, first: Reply, again: Send) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        try:
            second = await self._persist(name, again)
        except Unanswered:
            self._tally.counts["unanswered for good"] += 1
            return
        if first.kept and not second.replayed:
            self._tally.mismatches.append(f"not replayed: {first.code}, then {second.code}")
        self._judge(first, second)

    def _judge(self, first: Reply, second: Reply) -> None:
        if first.kept and second.kept and not first.same_as(second):
            self._tally.mismatches.append(f"{first.body} then {second.body}")

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(self._tally.ended)

    async def finish(self, timeout_s: float) -> None:
        """Waits for the repetitions that are still under way."""
        if self._background:
            await asyncio.wait(self._background, timeout=timeout_s)


def new_key() -> str:
    """A fresh Idempotency-Key."""
    return uuid.uuid4().hex
