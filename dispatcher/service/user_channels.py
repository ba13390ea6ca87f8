"""The channels of the users whose sockets are on this server.

A user's channel in a zone tells what happens to them there; their home channel tells in which zone
something is about to happen. Whatever is told before a subscription stands, a snapshot that is read
after it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import orjson
import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import ZONE
from dispatcher.live.announcements import Announcement
from dispatcher.live.keys import home_channel, keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.pubsub import Listener, Subscriber
from dispatcher.live.state import StateScripts
from dispatcher.service.hub import Hub

log = structlog.get_logger("dispatcher.pubsub")

#: A socket does not wait for its subscriptions any longer, and not at all for those of a node that is
#: away; once they stand, it gets its state anew.
_MAX_WAIT_S: Final = 2.0
_NO_MESSAGE: Final = (ValueError, TypeError, LookupError, AttributeError)


@dataclass(slots=True)
class _User:
    """A user with sockets here."""

    sockets: int = 0
    zones: set[str] = field(default_factory=set)
    #: Subscriptions that do not stand yet and are waited for, and what waits for the last of them.
    coming: set[str] = field(default_factory=set)
    stands: asyncio.Future[None] | None = None
    #: Versions of trips that were told by the home channel: the zone's channel may tell them again.
    told: dict[str, int] = field(default_factory=dict)


class UserChannels:
    """Listens for the users of the hub, and for nobody else."""

    def __init__(
        self, *, subscriber: Subscriber, hub: Hub, state: StateScripts, pipeline: Pipeline
    ) -> None:
        self._subscriber = subscriber
        self._hub = hub
        self._state = state
        self._pipeline = pipeline
        self._users: dict[str, _User] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: How many messages have come.
        self.heard = 0

    def messages(self) -> dict[str, float]:
        """How many messages have come from other servers, by what they are about."""
        return {"users": self.heard, "zones": self._subscriber.received - self.heard}

    async def open(self, address: str, zone: str) -> None:
        """A socket of a user is open, who is present in a zone. Returns once the subscriptions stand, or
        after some time, or at once where Redis is away: then the socket is told its state anew once they
        do."""
        user = self._users.get(address)
        if user is None:
            user = self._users[address] = _User()
            self._subscribe(address, home_channel(address), partial(self._announced, address))
        user.sockets += 1
        self._listen(address, user, {zone})
        await self._wait(user)

    def close(self, address: str) -> None:
        """A socket of a user is closed."""
        user = self._users[address]
        user.sockets -= 1
        if user.sockets:
            return
        del self._users[address]
        self._subscriber.unsubscribe(home_channel(address))
        for zone in user.zones:
            self._subscriber.unsubscribe(keys_of(zone).channel(address))

    async def follow(self, address: str, zones: Collection[str]) -> bool:
        """Listens to what happens to a user in these zones, too. Says whether some of them are new: then
        what was read of the user before may be out of date."""
        user = self._users.get(address)
        if user is None or not self._listen(address, user, zones):
            return False
        await self._wait(user)
        return True

    def moved(self, address: str, zone: str) -> None:
        """A user is present in another zone from now on."""
        user = self._users.get(address)
        if user is not None and zone not in user.zones:
            self._spawn(self._arrive(address, zone))

    async def stop(self) -> None:
        """Ends what goes on in the background."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _listen(self, address: str, user: _User, zones: Collection[str]) -> bool:
        new = set(zones) - user.zones
        for zone in new:
            user.zones.add(zone)
            self._subscribe(address, keys_of(zone).channel(address), partial(self._heard, address))
        return bool(new)

    def _subscribe(self, address: str, channel: str, heard: Any) -> None:
        self._users[address].coming.add(channel)
        stands = partial(self._stands, address, channel)
        self._subscriber.subscribe(channel, Listener(heard, stands))

    async def _wait(self, user: _User) -> None:
        # A node that is away is not waited for, as if the time were over.
        user.coming = {channel for channel in user.coming if not self._pipeline.is_left_alone(channel)}
        if not user.coming:
            return
        if user.stands is None or user.stands.done():
            user.stands = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_MAX_WAIT_S):
                await asyncio.shield(user.stands)
        except TimeoutError:
            user.coming.clear()

    def _stands(self, address: str, channel: str) -> None:
        user = self._users.get(address)
        if user is None:
            return
        if channel in user.coming:
            user.coming.discard(channel)
            if not user.coming and user.stands is not None and not user.stands.done():
                user.stands.set_result(None)
        else:
            # It was lost for a while, or has come too late for whoever waited for it.
            self._hub.resync(address)

    def _heard(self, address: str, payload: bytes) -> None:
        self.heard += 1
        user = self._users.get(address)
        try:
            if user is None or (user.told and _is_told(user, payload)):
                return
            self._hub.hand_on(address, payload)
        except _NO_MESSAGE:
            log.warning("push message is not understood", size=len(payload))

    def _announced(self, address: str, payload: bytes) -> None:
        self.heard += 1
        user = self._users.get(address)
        try:
            zone, frame = Announcement.read(payload)
            trip = orjson.loads(frame)["trip"] if frame else None
            if user is None or zone in user.zones:
                return
            if not ZONE.fullmatch(zone):
                raise ValueError(zone)
            if trip is not None:
                user.told[trip["id"]] = trip["version"]
                self._hub.hand_on(address, frame)
        except _NO_MESSAGE:
            log.warning("push message is not understood", size=len(payload))
            return
        self._spawn(self._arrive(address, zone, trip))

    async def _arrive(self, address: str, zone: str, trip: dict[str, Any] | None = None) -> None:
        """Listens to a zone, and tells the user what may have happened there before that."""
        await self.follow(address, {zone})
        if trip is not None:
            try:
                version = await self._state.version_of(keys_of(zone), trip["id"])
            except StoreUnavailable:
                pass  # the snapshot is read as soon as it can be
            else:
                if version is not None and version <= trip["version"]:
                    return  # what comes after it is heard
        self._hub.resync(address)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_told(user: _User, payload: bytes) -> bool:
    """Whether a message tells of a trip what was told already."""
    frame = orjson.loads(payload)
    if frame.get("type") != "trip":
        return False
    trip = frame["trip"]
    version = user.told.get(trip["id"])
    if version is None:
        return False
    if trip["version"] > version:
        del user.told[trip["id"]]
        return False
    return True
