"""`GET /ws`: the channel that driver and customer apps live on, from its opening to its end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Final

import structlog
from aiohttp import WebSocketError, WSMsgType, hdrs, web

from dispatcher.core.actors import Role
from dispatcher.core.errors import Refusal
from dispatcher.observe.call_ids import REQUEST_ID, TRIP_ID
from dispatcher.observe.series import SOCKETS_OPENED
from dispatcher.service.answers import Answer
from dispatcher.service.hub import Hub
from dispatcher.service.presence import Presence
from dispatcher.service.rate_limits import RateLimits
from dispatcher.service.snapshots import Snapshots, zones_of
from dispatcher.service.user_channels import UserChannels
from dispatcher.service.zone_views import ZoneViews
from dispatcher.web.action_counts import UNKNOWN, WS, count_action, word_or
from dispatcher.web.auth import Authenticator, Identity
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.frame_handlers import FrameHandlers
from dispatcher.web.problems import RETRY_AFTER_S, refusal_of, uncounted_answer
from dispatcher.web.protocol import (
    MAX_FRAME,
    UNANSWERED,
    ClientFrameType,
    CloseCode,
    Frame,
    encode_ack,
    encode_error,
    encode_welcome,
    frame_id,
    read_frame,
    read_token,
    read_watched_zone,
)
from dispatcher.web.request_ids import REQUEST_ID_HEADER, frame_request_id
from dispatcher.web.responses import SERVER
from dispatcher.web.upgraded_connection import release_request, release_socket
from dispatcher.web.websocket_admission import WebSocketAdmission
from dispatcher.web.websocket_connection import WebSocketConnection

log = structlog.get_logger("dispatcher.ws")

#: How long aiohttp waits for the client's answer to a close frame.
_CLOSE_S: Final = 2.0
_FRAME_TYPES: Final = frozenset(ClientFrameType)
_HEARTBEAT: Final = Answer(200, b'{"response_code":"heartbeat"}')
_WATCHING: Final = Answer(200, b'{"response_code":"watching"}')
_NOT_WATCHING: Final = Answer(200, b'{"response_code":"not_watching"}')
_TOKEN_RENEWED: Final = Answer(200, b'{"response_code":"token_renewed"}')


class WebSocketEndpoint:
    """All sockets of this server."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        client_ip: ClientIp,
        frames: FrameHandlers,
        hub: Hub,
        channels: UserChannels,
        presence: Presence,
        snapshots: Snapshots,
        zone_views: ZoneViews,
        limits: RateLimits,
        allowed_origins: Sequence[str],
        heartbeat_timeout_s: int,
    ) -> None:
        self._authenticator = authenticator
        self._client_ip = client_ip
        self._frames = frames
        self._hub = hub
        self._channels = channels
        self._presence = presence
        self._snapshots = snapshots
        self._zone_views = zone_views
        self._admission = WebSocketAdmission(authenticator, limits, allowed_origins)
        self._timeout_s = heartbeat_timeout_s
        self._connections: set[WebSocketConnection] = set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._connections)

    def roles(self) -> Iterator[Role]:
        """The role of each open socket."""
        return (connection.actor.role for connection in self._connections)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Opens a socket, and stays until it is closed. Raises Refusal where it may not be opened."""
        if self._draining:
            raise Refusal("service_unavailable", retry_after=RETRY_AFTER_S)
        self._admission.check_origin(request)
        websocket = web.WebSocketResponse(
            compress=False, max_msg_size=MAX_FRAME, autoping=True, heartbeat=None, timeout=_CLOSE_S
        )
        if request.method != hdrs.METH_GET or not websocket.can_prepare(request):
            raise Refusal("upgrade_required")
        ip = self._client_ip(request)
        identity = await self._admission.identify_by_header(request, ip)
        user_agent = request.headers.get(hdrs.USER_AGENT, "")
        websocket.headers[REQUEST_ID_HEADER] = REQUEST_ID.get()
        websocket.headers[hdrs.SERVER] = SERVER
        await websocket.prepare(request)
        release_request(request, websocket)
        try:
            identity = identity or await self._admission.identify_by_first_frame(websocket, ip)
            if identity is not None:
                await self._serve(request, websocket, identity, ip, user_agent)
        except Exception as error:
            if request.transport is not None and not request.transport.is_closing():
                await self._admission.turn_away(websocket, error, ip)
        finally:
            release_socket(websocket)
        return websocket

    async def _serve(
        self,
        request: web.Request,
        websocket: web.WebSocketResponse,
        identity: Identity,
        ip: str | None,
        user_agent: str,
    ) -> None:
        actor = identity.actor
        presence = await self._presence.register(secrets.token_hex(8), actor, ip, user_agent)
        if self._draining:  # it came too late for the closing of all sockets
            raise Refusal("service_unavailable", retry_after=RETRY_AFTER_S)
        connection = WebSocketConnection(
            websocket, request, presence,
            expires_at_s=identity.expires_at_s, request_id=REQUEST_ID.get(), on_resync=self._welcome,
        )  # fmt: skip
        SOCKETS_OPENED.add(actor.role)
        self._connections.add(connection)
        # Listening comes first: what happens while the snapshot is read is told after it.
        self._hub.add(actor.address, connection)
        try:
            await self._channels.open(actor.address, presence.zone)
            await self._welcome(connection)
            await self._receive(websocket, connection, ip)
        finally:
            connection.end()
            self._zone_views.unwatch(connection)
            self._channels.close(actor.address)
            self._hub.discard(actor.address, connection)
            self._connections.discard(connection)
            if not self._draining:
                await self._presence.remove(presence)

    async def _welcome(self, connection: WebSocketConnection) -> None:
        snapshot = await self._snapshots.of(connection.actor)
        if await self._channels.follow(connection.actor.address, zones_of(snapshot)):
            # Something may have happened there before this server listened.
            snapshot = await self._snapshots.of(connection.actor)
        connection.send(encode_welcome(connection.presence.id, self._timeout_s, snapshot))

    async def _receive(
        self, websocket: web.WebSocketResponse, connection: WebSocketConnection, ip: str | None
    ) -> None:
        async for message in websocket:
            self._presence.seen(connection.presence)
            if message.type is WSMsgType.TEXT:
                if connection.expires_at_s <= time.time():
                    await connection.close(CloseCode.UNAUTHORIZED, "token expired")
                    return
                await self._take(connection, message.data, ip)
            elif message.type is WSMsgType.BINARY:
                await connection.close(CloseCode.UNSUPPORTED, "binary frames are not understood")
                return
            elif isinstance(message.data, WebSocketError):  # aiohttp has closed the socket
                code = CloseCode(message.data.code)
                connection.note_closed(code, code.name.lower())
                message.data.__traceback__ = None  # from Python 3.12 on, it leads back to here

    async def _take(self, connection: WebSocketConnection, text: str, ip: str | None) -> None:
        """Takes one frame. What is no frame at all is refused without asking any store."""
        began_s = time.perf_counter()
        try:
            frame = read_frame(text)
            id_ = frame_id(frame)
        except Refusal as refusal:
            connection.send(encode_error(None, uncounted_answer(refusal)))
            count_action(WS, UNKNOWN, refusal.code, time.perf_counter() - began_s)
            return
        answering = self._answer(connection, frame, id_, ip)
        if id_ is None and frame.get("type") == ClientFrameType.LOCATION:
            # Nobody waits for it, so the next frame does not either.
            await connection.in_background(answering)
        else:
            await answering

    async def _answer(
        self, connection: WebSocketConnection, frame: Frame, id_: str | int | None, ip: str | None
    ) -> None:
        began_s = time.perf_counter()
        REQUEST_ID.set(frame_request_id(connection.request_id, id_))
        try:
            answer = await self._dispatch(connection, frame, ip)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code == "internal_error":
                log.exception("frame failed", user=connection.actor.user_id)
            answer = uncounted_answer(refusal)
        count_action(WS, _action_of(frame), answer.code, time.perf_counter() - began_s)
        if answer.status >= 400:
            connection.send(encode_error(id_, answer))
        elif id_ is not None or frame["type"] not in UNANSWERED:
            connection.send(encode_ack(id_, answer))
        # What the socket's task does next is about no frame.
        REQUEST_ID.set(connection.request_id)
        TRIP_ID.set("")

    async def _dispatch(self, connection: WebSocketConnection, frame: Frame, ip: str | None) -> Answer:
        match frame.get("type"):
            case ClientFrameType.HEARTBEAT:
                return _HEARTBEAT
            case ClientFrameType.LOCATION:
                return await self._frames.location(connection.actor, frame, ip)
            case ClientFrameType.TRIP_ACTION:
                return await self._frames.trip_action(connection.actor, frame, ip)
            case ClientFrameType.AVAILABILITY:
                return await self._frames.availability(connection.actor, frame, ip)
            case ClientFrameType.WATCH | ClientFrameType.UNWATCH:
                return self._watch(connection, frame)
            case ClientFrameType.AUTH:
                return self._renew_token(connection, frame)
            case _:
                raise Refusal("unknown_frame_type")

    def _watch(self, connection: WebSocketConnection, frame: Frame) -> Answer:
        if frame["type"] == ClientFrameType.WATCH:
            self._zone_views.watch(read_watched_zone(connection.actor, frame), connection)
            return _WATCHING
        self._zone_views.unwatch(connection)
        return _NOT_WATCHING

    def _renew_token(self, connection: WebSocketConnection, frame: Frame) -> Answer:
        identity = self._authenticator.verify(read_token(frame))
        if identity.actor != connection.actor:
            raise Refusal("invalid_token", "The token is another user's.")
        connection.expires_at_s = identity.expires_at_s
        return _TOKEN_RENEWED

    # --- ends that the server chooses

    async def close_stale(self) -> None:
        """Closes sockets that gave no sign of life in time, or whose token has expired."""
        now_s, clock_s = time.time(), time.monotonic()
        for connection in list(self._connections):
            if connection.expires_at_s <= now_s:
                await connection.close(CloseCode.UNAUTHORIZED, "token expired")
            elif clock_s - connection.presence.seen > self._timeout_s:
                await connection.close(CloseCode.NO_HEARTBEAT, "no sign of life")

    async def drain(self, window_s: float) -> None:
        """Closes every socket, spread over a window, so that clients do not all come back at once."""
        self._draining = True
        connections = list(self._connections)
        pause_s = window_s / max(1, len(connections))
        closing = []
        for connection in connections:
            closing.append(asyncio.create_task(connection.close(CloseCode.RESTART, "server restarts")))
            await asyncio.sleep(pause_s)
        await asyncio.gather(*closing)


def _action_of(frame: Frame) -> str:
    kind = frame.get("type")
    if not isinstance(kind, str) or kind not in _FRAME_TYPES:
        return UNKNOWN
    return word_or(kind, frame.get("action")) if kind == ClientFrameType.TRIP_ACTION else str(kind)
