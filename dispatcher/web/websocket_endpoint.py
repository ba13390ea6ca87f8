"""`GET /ws`: the channel that driver and customer apps live on."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
import structlog
from aiohttp import WSMsgType, web

from dispatcher.core.actors import Actor
from dispatcher.core.errors import OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.service.hub import Hub
from dispatcher.service.messages import address
from dispatcher.service.presence import Presence
from dispatcher.service.rate_limits import Limits
from dispatcher.service.snapshots import Snapshots
from dispatcher.web.websocket_connection import Close, Socket

log = structlog.get_logger("dispatcher.ws")

#: A client that has not said who it is after this long is closed.
AUTH_S: Final = 10.0
#: Like a body over HTTP.
MAX_FRAME: Final = 64 * 1024

#: These come often, and an app that does not number them does not wait for an answer.
_UNANSWERED: Final = frozenset({"heartbeat", "location"})
_HEARD: Final = Answer(200, b'{"response_code":"heartbeat"}')
_RENEWED: Final = Answer(200, b'{"response_code":"token_renewed"}')

Frame = dict[str, Any]
Verify = Callable[[str], tuple[Actor, int]]
#: (actor, frame, ip) -> the answer to an action or to positions.
Act = Callable[[Actor, Frame, str | None], Awaitable[Answer]]


class WebSockets:
    """All sockets of this server."""

    def __init__(
        self,
        *,
        verify: Verify,
        client_ip: Callable[[web.BaseRequest], str | None],
        act: Act,
        locate: Act,
        hub: Hub,
        presence: Presence,
        snapshots: Snapshots,
        limits: Limits,
        allowed_origins: list[str],
        heartbeat_timeout_s: int,
    ) -> None:
        self._verify = verify
        self._client_ip = client_ip
        self._act = act
        self._locate = locate
        self._hub = hub
        self._presence = presence
        self._snapshots = snapshots
        self._limits = limits
        self._origins = frozenset(allowed_origins)
        self._timeout_s = heartbeat_timeout_s
        self._sockets: set[Socket] = set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._sockets)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Opens a socket, and stays until it is closed."""
        if self._draining:
            raise Refusal("service_unavailable", retry_after=1)
        self._check_origin(request)
        ip = self._client_ip(request)
        header = request.headers.get("Authorization")
        known = await self._admit(header.removeprefix("Bearer ").strip(), ip) if header else None
        websocket = web.WebSocketResponse(
            compress=False, max_msg_size=MAX_FRAME, autoping=True, heartbeat=None, timeout=2.0
        )
        await websocket.prepare(request)
        known = known or await self._first_frame(websocket, ip)
        if known is not None:
            actor, exp = known
            await self._serve(websocket, actor, exp, ip, request.headers.get("User-Agent", ""))
        return websocket

    def _check_origin(self, request: web.Request) -> None:
        # Apps send no Origin; a browser's page must be from here or from a listed place.
        origin = request.headers.get("Origin")
        if origin and origin not in self._origins and urlsplit(origin).netloc != request.host:
            raise Refusal("origin_not_allowed")

    async def _admit(self, token: str, ip: str | None) -> tuple[Actor, int]:
        try:
            actor, exp = self._verify(token)
        except Refusal:
            await self._limits.check("anonymous", None, ip)
            raise
        await self._limits.check("general", actor, ip)
        return actor, exp

    async def _first_frame(
        self, websocket: web.WebSocketResponse, ip: str | None
    ) -> tuple[Actor, int] | None:
        try:
            async with asyncio.timeout(AUTH_S):
                message = await websocket.receive()
        except TimeoutError:
            await self._turn_away(websocket, Close.UNAUTHORIZED, Refusal("missing_token"), ip)
            return None
        if message.type is not WSMsgType.TEXT:
            if message.type is WSMsgType.BINARY:
                await self._turn_away(websocket, Close.UNSUPPORTED, Refusal("binary_frame"), ip)
            return None
        try:
            frame = _parse(message.data)
            if frame.get("type") != "auth" or not isinstance(frame.get("token"), str):
                raise Refusal("invalid_frame", "The first frame must be auth, with a token.")
            return await self._admit(frame["token"], ip)
        except Refusal as refusal:
            code = Close.BAD_FIRST_FRAME
            if refusal.problem.status in (401, 429):
                code = Close.UNAUTHORIZED
            await self._turn_away(websocket, code, refusal, ip)
        except StoreUnavailable:
            await self._turn_away(websocket, Close.RESTART, Refusal("service_unavailable"), ip)
        return None

    async def _turn_away(
        self, websocket: web.WebSocketResponse, code: Close, refusal: Refusal, ip: str | None
    ) -> None:
        log.warning("socket refused", code=int(code), reason=refusal.code, ip=ip)
        try:
            await websocket.send_frame(_error(None, refusal_answer(refusal)), WSMsgType.TEXT)
            await websocket.close(code=code, message=refusal.code.encode())
        except ConnectionError:
            pass

    async def _serve(
        self,
        websocket: web.WebSocketResponse,
        actor: Actor,
        exp: int,
        ip: str | None,
        user_agent: str,
    ) -> None:
        connection = await self._presence.register(secrets.token_hex(8), actor, ip, user_agent)
        socket = Socket(websocket, actor, connection, exp)
        socket.on_resync = self._welcome
        own = address(actor.role, actor.user_id)
        self._sockets.add(socket)
        # Listening comes first: what happens while the snapshot is read is told after it.
        self._hub.add(own, socket)
        try:
            await self._welcome(socket)
            await self._receive(websocket, socket, ip)
        finally:
            socket.closing = True
            self._hub.discard(own, socket)
            self._sockets.discard(socket)
            if not self._draining:
                await self._presence.remove(connection)

    async def _welcome(self, socket: Socket) -> None:
        frame = {
            "type": "welcome",
            "connection_id": socket.connection.id,
            "heartbeat_s": max(1, self._timeout_s // 3),
            "timeout_s": self._timeout_s,
            "snapshot": await self._snapshots.of(socket.actor),
        }
        socket.send(orjson.dumps(frame))

    async def _receive(self, websocket: web.WebSocketResponse, socket: Socket, ip: str | None) -> None:
        async for message in websocket:
            self._presence.seen(socket.connection)
            if not socket.counts_frame():
                socket.send(_error(None, refusal_answer(Refusal("too_many_frames"))))
                await asyncio.sleep(0)
                await socket.close(Close.TOO_MANY_FRAMES, "too many frames")
                return
            if message.type is WSMsgType.TEXT:
                if await self._take(socket, message.data, ip):
                    continue
                await socket.close(Close.UNAUTHORIZED, "token expired")
                return
            if message.type is WSMsgType.BINARY:
                await socket.close(Close.UNSUPPORTED, "binary frames are not understood")
                return
        if websocket.close_code == Close.TOO_BIG:
            log.warning("socket closed", code=1009, reason="frame too big", user=socket.actor.user_id)

    async def _take(self, socket: Socket, text: str, ip: str | None) -> bool:
        """Takes one frame. False where the token has expired."""
        if socket.expires_at <= time.time():
            return False
        try:
            frame = _parse(text)
            id_ = _id_of(frame)
        except Refusal as refusal:
            socket.send(_error(None, refusal_answer(refusal)))
            return True
        answering = self._answer(socket, frame, id_, ip)
        if id_ is None and frame.get("type") == "location":
            # Nobody waits for it, so the next frame does not either.
            await socket.in_background(answering)
        else:
            await answering
        return True

    async def _answer(self, socket: Socket, frame: Frame, id_: str | int | None, ip: str | None) -> None:
        try:
            answer = await self._do(socket, frame, ip)
        except Refusal as refusal:
            answer = refusal_answer(refusal)
        except OutcomeUnknown:
            answer = refusal_answer(Refusal("outcome_unknown", retry_after=1))
        except StoreUnavailable:
            answer = refusal_answer(Refusal("service_unavailable", retry_after=1))
        except Exception:
            log.exception("frame failed", user=socket.actor.user_id)
            answer = refusal_answer(Refusal("internal_error"))
        if answer.status >= 400:
            socket.send(_error(id_, answer))
        elif id_ is not None or frame["type"] not in _UNANSWERED:
            socket.send(_ack(id_, answer))

    async def _do(self, socket: Socket, frame: Frame, ip: str | None) -> Answer:
        match frame.get("type"):
            case "heartbeat":
                return _HEARD
            case "location":
                return await self._locate(socket.actor, frame, ip)
            case "trip_action":
                return await self._act(socket.actor, frame, ip)
            case "auth":
                self._renew(socket, frame)
                return _RENEWED
            case _:
                raise Refusal("unknown_frame_type")

    def _renew(self, socket: Socket, frame: Frame) -> None:
        token = frame.get("token")
        actor, exp = self._verify(token if isinstance(token, str) else "")
        if actor != socket.actor:
            raise Refusal("invalid_token", "The token is another user's.")
        socket.expires_at = exp

    async def look_after(self) -> None:
        """Closes sockets that gave no sign of life in time, or whose token has expired."""
        now, clock = time.time(), time.monotonic()
        for socket in list(self._sockets):
            if socket.expires_at <= now:
                await socket.close(Close.UNAUTHORIZED, "token expired")
            elif clock - socket.connection.seen > self._timeout_s:
                await socket.close(Close.NO_HEARTBEAT, "no sign of life")

    async def drain(self, window_s: float) -> None:
        """Closes every socket, spread over a window, so that clients do not all come back at once."""
        self._draining = True
        sockets = list(self._sockets)
        pause = window_s / max(1, len(sockets))
        closing = []
        for socket in sockets:
            closing.append(asyncio.create_task(socket.close(Close.RESTART, "server restarts")))
            await asyncio.sleep(pause)
        await asyncio.gather(*closing)


def _parse(text: str) -> Frame:
    try:
        frame = orjson.loads(text)
    except orjson.JSONDecodeError:
        frame = None
    if not isinstance(frame, dict):
        raise Refusal("malformed_json")
    return frame


def _id_of(frame: Frame) -> str | int | None:
    id_ = frame.get("id")
    if not isinstance(id_, str | int | None):
        raise Refusal("invalid_frame", "The id of a frame is text or a whole number.")
    return id_


def _ack(id_: Any, answer: Answer) -> bytes:
    head = {"type": "ack", "id": id_, "status": answer.status, "replayed": answer.replayed}
    return orjson.dumps(head)[:-1] + b"," + answer.body[1:]


def _error(id_: Any, answer: Answer) -> bytes:
    problem = orjson.loads(answer.body)
    head = {"type": "error", "id": id_, "replayed": answer.replayed, "problem": problem.pop("type")}
    if answer.limit is not None:
        head["rate_limit"] = {
            "limit": answer.limit.rate.limit,
            "remaining": answer.limit.remaining,
            "reset": -(-answer.limit.reset_ms // 1000),
        }
    return orjson.dumps(head | problem)
