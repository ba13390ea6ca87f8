"""What the clients of all roles share: a session, a socket, and one way to send an intent."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
from pydantic import ValidationError

from dispatcher.client.channel import Channel
from dispatcher.client.http import HttpCalls, Token, UnreadableAnswer
from dispatcher.client.models import Trip
from dispatcher.client.problems import NoAnswer
from dispatcher.client.replies import Intent, Reply
from dispatcher.client.retries import CONNECTION_ERRORS, Retries, Send

#: How long to wait for a server that does not take the connection, in s; `Retries` has the other bounds.
_CONNECT_S: Final = 10.0

_T = TypeVar("_T")


class AppClient:
    """One user's client, to be used with `async with`.

    `url` is the server's, `token` a bearer token or what gives one (see `Token`). A session that is
    given is not closed. `http` sends calls once.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        session: aiohttp.ClientSession | None = None,
        retries: Retries | None = None,
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._own_session = None if session else aiohttp.ClientSession(timeout=timeout)
        used = session or self._own_session
        assert used is not None
        self.http = HttpCalls(used, url, token)
        self._channel = Channel(self.http)
        self._retries = retries or Retries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and the events."""
        await self._channel.close()
        if self._own_session is not None:
            await self._own_session.close()

    async def connected(self) -> None:
        """Returns once there is a socket: from then on events arrive, and changes go over it."""
        await self._channel.welcomed()

    async def change(self, intent: Intent) -> dict[str, Any]:
        """Has a change made: over the socket if there is one, else over HTTP, until it is answered.

        Returns the body of the success, which may be that of an earlier attempt. Raises ApiError; and
        NoAnswer, after which the same intent may be sent again.
        """
        return await self.changed(intent, dict)

    async def changed(self, intent: Intent, read: Callable[[dict[str, Any]], _T]) -> _T:
        """The same; `read` makes of the body what is returned."""
        by_socket = intent.frame is not None

        async def send() -> Reply:
            nonlocal by_socket
            socket = self._channel.socket
            if not by_socket or socket is None:
                return await self.http.send(intent)
            try:
                return await socket.ask(intent)
            except CONNECTION_ERRORS:
                by_socket = False  # the next attempt does not wait for the same silence
                raise

        try:
            return await self._until_read(send, read)
        except NoAnswer as unanswered:
            unanswered.intent = intent
            raise

    async def ask(self, path: str, read: Callable[[dict[str, Any]], _T], **parameters: Any) -> _T:
        """Asks a question over HTTP until it is answered; `read` makes of the body what is returned.

        Raises ApiError, NoAnswer.
        """
        return await self._until_read(lambda: self.http.get(path, **parameters), read)

    async def _until_read(self, send: Send, read: Callable[[dict[str, Any]], _T]) -> _T:
        async def readable() -> Reply:
            reply = await send()
            if reply.ok:
                try:
                    read(reply.body)
                except (KeyError, TypeError, ValidationError) as error:
                    raise UnreadableAnswer(reply.status, reply.retry_after_s) from error
            return reply

        return read((await self._retries.until_answered(readable)).result())


def given(**fields: Any) -> dict[str, Any]:
    """A body: the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def place(lat_lng: tuple[float, float] | None) -> dict[str, float] | None:
    """A position as bodies have it, from (lat, lng) in degrees."""
    return None if lat_lng is None else {"lat": lat_lng[0], "lng": lat_lng[1]}


def trip_of(body: dict[str, Any]) -> Trip:
    """The trip of an answer."""
    return Trip.model_validate(body["trip"])
