"""Who may open a WebSocket: origins, and a token in the header or in the first frame."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import structlog
from aiohttp import WSMsgType, hdrs, web

from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.limits import LimitClass
from dispatcher.observe.crowd_lines import CROWD_LINES
from dispatcher.observe.series import ACTIONS, SOCKETS_CLOSED
from dispatcher.service.rate_limits import RateLimits
from dispatcher.web.action_counts import WS
from dispatcher.web.auth import Authenticator, Identity
from dispatcher.web.problems import counted_answer, refusal_of
from dispatcher.web.protocol import CloseCode, encode_error, read_first_token, read_frame

log = structlog.get_logger("dispatcher.ws")

#: A client that has not said who it is after this long is closed.
_AUTH_S: Final = 10.0
#: Why an opening failed, by the status that HTTP would have answered; else the frame was wrong.
_CLOSE_CODES: Final = {
    401: CloseCode.UNAUTHORIZED,
    429: CloseCode.UNAUTHORIZED,
    500: CloseCode.INTERNAL_ERROR,
    503: CloseCode.TRY_AGAIN_LATER,
}


class WebSocketAdmission:
    """Admits a client before the upgrade, or by its first frame.

    A refusal before the upgrade is raised, and the boundary answers it; one after it is sent as a frame,
    and becomes a close code.
    """

    def __init__(
        self, authenticator: Authenticator, limits: RateLimits, allowed_origins: Sequence[str]
    ) -> None:
        self._authenticator = authenticator
        self._limits = limits
        self._origins = frozenset(allowed_origins)

    def check_origin(self, request: web.Request) -> None:
        """Raises Refusal origin_not_allowed."""
        # Apps send no Origin; a browser's page must be from here or from a listed place.
        origin = request.headers.get(hdrs.ORIGIN)
        if origin and origin not in self._origins and _host_of(origin) != request.host:
            raise Refusal("origin_not_allowed")

    async def identify_by_header(self, request: web.Request, ip: str | None) -> Identity | None:
        """Who the `Authorization` header says it is; None where there is none.

        Raises Refusal missing_token, invalid_token, token_expired, RateLimited, and StoreUnavailable.
        """
        if not request.headers.get(hdrs.AUTHORIZATION):
            return None
        return await self._admit(self._authenticator.identify(request.headers), ip)

    async def _admit(self, identity: Identity, ip: str | None) -> Identity:
        """Counts the opening of a known user."""
        await self._limits.count(LimitClass.GENERAL, identity.actor, ip)
        return identity

    async def identify_by_first_frame(
        self, websocket: web.WebSocketResponse, ip: str | None
    ) -> Identity | None:
        """Who the first frame says it is; None where the socket was closed for that."""
        try:
            async with asyncio.timeout(_AUTH_S):
                message = await websocket.receive()
        except TimeoutError:
            await self.turn_away(websocket, Refusal("missing_token"), ip)
            return None
        if message.type is not WSMsgType.TEXT:
            if message.type is WSMsgType.BINARY:
                await self.turn_away(websocket, Refusal("binary_frame"), ip, CloseCode.UNSUPPORTED)
            return None
        try:
            token = read_first_token(read_frame(message.data))
            return await self._admit(self._authenticator.verify(token), ip)
        except (Refusal, StoreUnavailable) as error:
            await self.turn_away(websocket, error, ip)
        return None

    async def turn_away(
        self,
        websocket: web.WebSocketResponse,
        error: Exception,
        ip: str | None,
        close_code: CloseCode | None = None,
    ) -> None:
        """Tells a client by a frame why its socket is not served, and closes it with a code.

        HTTP has ended with the upgrade: its answers would be noise in the stream of frames.
        """
        refusal = refusal_of(error)
        if refusal.code == "internal_error":
            log.error("socket failed", ip=ip, exc_info=error)
        answer = await counted_answer(refusal, self._limits, None, ip)
        if close_code is None:
            close_code = _CLOSE_CODES.get(answer.status, CloseCode.BAD_FIRST_FRAME)
        reason = answer.code
        SOCKETS_CLOSED.add(close_code.name.lower())
        ACTIONS.add(WS, "auth", reason)
        told = {"code": int(close_code), "reason": reason, "ip": ip}
        CROWD_LINES.add(("socket", reason), logging.WARNING, "dispatcher.ws", "socket refused", told)
        try:
            await websocket.send_frame(encode_error(None, answer), WSMsgType.TEXT)
            await websocket.close(code=close_code, message=reason.encode())
        except ConnectionError:
            pass


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None where it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
