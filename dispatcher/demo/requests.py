"""The requests of all apps, sent until they are answered.

A third of them is sent once more with the same key, on purpose, and the two answers are compared.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from typing import Any, Final

import jwt

from dispatcher.client import CONNECTION_ERRORS, NoAnswer, Reply, Retries
from dispatcher.client.retries import Send
from dispatcher.core.errors import PROBLEMS
from dispatcher.demo.stats import Stats

#: Share of requests that are sent once more after their answer, and with a concurrent duplicate.
_REPEATED_SHARE: Final = 1 / 6
_DUPLICATED_SHARE: Final = 1 / 6
#: A phone is away for longer than an app of its user would wait.
_RETRIES: Final = Retries(deadline_s=90.0, attempt_s=10.0, first_rest_s=0.1, max_rest_s=2.0)
#: Fields in which a frame and a replay may differ from the first answer.
_VARYING_FIELDS: Final = ("type", "id", "status", "replayed", "problem", "rate_limit")


def is_same_answer(first: Reply, second: Reply) -> bool:
    """Whether two answers to one key are the same answer, byte for byte where both have their bytes."""
    if first.raw is not None and second.raw is not None and first.raw != second.raw:
        return False
    return first.status == second.status and _constant_fields(first.body) == _constant_fields(
        second.body
    )


def is_kept(reply: Reply) -> bool:
    """Whether the server stores it: only then must the next answer to its key be the same."""
    return reply.ok or (reply.code in PROBLEMS and PROBLEMS[reply.code].kept)


def _constant_fields(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _VARYING_FIELDS}


def issue_token(secret: str, audience: str, issuer: str | None, sub: str, role: str, ttl_s: int) -> str:
    """A signed token for a user of the demo."""
    now = int(time.time())
    claims: dict[str, Any] = {"sub": sub, "role": role, "aud": audience, "iat": now, "exp": now + ttl_s}
    return jwt.encode(claims | ({"iss": issuer} if issuer else {}), secret, algorithm="HS256")


class Requests:
    """Sends the requests of all apps, repeats some of them, and compares the answers."""

    def __init__(self, stats: Stats, rng: random.Random) -> None:
        self._stats = stats
        self._rng = rng
        self._background: set[asyncio.Task[Any]] = set()

    async def request(self, name: str, send: Send, resend: Send | None = None) -> Reply:
        """The first definite answer to a request; `resend` sends its repetitions, if not `send`.

        The latency of an answer that is no replay is a sample of `name`. Raises NoAnswer.
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
        reply = await _RETRIES.until_answered(lambda: self._send_once(name, send))
        if reply.is_passing:
            raise NoAnswer(reply.code)
        return reply

    async def _send_once(self, name: str, send: Send) -> Reply:
        counts = self._stats.counts
        counts["requests"] += 1
        start = time.monotonic()
        try:
            reply = await send()
        except CONNECTION_ERRORS:
            counts["unanswered"] += 1
            raise
        counts[f"answer {reply.code}"] += 1
        counts["replayed"] += reply.replayed
        counts["passing"] += reply.is_passing
        if not reply.is_passing and not reply.replayed:
            self._stats.add_latency(name, time.monotonic() - start)
        return reply

    async def _compare_duplicates(self, copies: list[asyncio.Task[Reply]]) -> None:
        first, second = await asyncio.gather(*copies, return_exceptions=True)
        if isinstance(first, Reply) and isinstance(second, Reply):
            self._compare_replies(first, second)

    async def _send_again(self, name: str, first: Reply, resend: Send) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        try:
            second = await self._send_until_answered(name, resend)
        except NoAnswer:
            self._stats.counts["unanswered for good"] += 1
            return
        if is_kept(first) and not second.replayed:
            self._stats.mismatches.append(f"not replayed: {first.code}, then {second.code}")
        self._compare_replies(first, second)

    def _compare_replies(self, first: Reply, second: Reply) -> None:
        if is_kept(first) and is_kept(second) and not is_same_answer(first, second):
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
