"""What riders and drivers do: ask for trips, race for them, drive, change their minds, move to the other zone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from tests.faults.client import Client
from tests.faults.history import Attempt
from tests.faults.stage import ZONES

ACTION = "/api/driver/ride/trip-action"
AVAILABILITY = "/api/driver/availability"
CREATE = "/api/customer/ride/create"
CANCEL = "/api/customer/ride/cancel"
PLACE = {"lat": 40.7549, "lng": -73.984}
_STEPS = ("arrive", "start", "complete")
#: How many of the newest trips a driver looks at: few, so that many race for each.
_LOOKED_AT = 4


class Board:
    """The trips that were asked for, by zone: drivers see those of others, and race for them."""

    def __init__(self) -> None:
        self.trips: dict[str, list[str]] = {zone: [] for zone in ZONES}


class Rider:
    """Asks for a trip, and for the next; cancels some."""

    def __init__(self, client: Client, board: Board) -> None:
        self.client = client
        self._board = board

    async def ask(self, zone: str) -> Attempt:
        return await self.client.intend(CREATE, {"pickup": PLACE, "zone": zone})

    async def run(self, stopped: asyncio.Event) -> None:
        random = self.client.random
        while not stopped.is_set():
            zone = random.choice(ZONES)
            created = await self.ask(zone)
            if created.is_success:
                trip = created.answer["trip"]["id"]
                self._board.trips[zone].append(trip)
                await _wait(stopped, random.uniform(0.1, 0.5))
                if random.random() < 0.2:
                    await self.client.intend(CANCEL, {"trip_request_id": trip})


class Driver:
    """Goes online, takes trips that are offered or seen, and brings them to an end."""

    def __init__(self, client: Client, board: Board, zone: str) -> None:
        self.client = client
        self.zone = zone
        self._board = board

    async def go_online(self, *, zone: str | None = None) -> Attempt:
        """Online and available; a move to another zone is taken for done once it is answered."""
        zone = zone or self.zone
        body = {"availability_status": "available", "is_online": True, "zone": zone, "location": PLACE}
        answer = await self.client.intend(AVAILABILITY, body)
        if answer.is_success:
            self.zone = zone
        return answer

    async def act(self, action: str, trip: str) -> Attempt:
        return await self.client.intend(ACTION, {"action": action, "trip_request_id": trip})

    async def run(self, stopped: asyncio.Event) -> None:
        random = self.client.random
        await self.client.welcomed.wait()
        await self.go_online()
        while not stopped.is_set():
            dice = random.random()
            if dice < 0.02:
                await self.go_online(zone=random.choice(ZONES))
            elif dice < 0.04:
                await self.client.intend(AVAILABILITY, {"is_online": False})
                await self.go_online()
            elif (trip := self._choose()) is not None:
                await self._take(trip, stopped)
            await self.client.say({"type": "location", **PLACE})
            await _wait(stopped, random.uniform(0.05, 0.3))

    def _choose(self) -> str | None:
        if self.client.offers:
            return self.client.offers.pop()
        seen = self._board.trips[self.zone][-_LOOKED_AT:]
        return self.client.random.choice(seen) if seen else None

    async def _take(self, trip: str, stopped: asyncio.Event) -> None:
        answer = await self.act("accept", trip)
        if answer.is_success:
            await self.drive(trip, stopped)
        elif answer.code in ("driver_not_online", "driver_not_available"):
            await self.recover(stopped)

    async def drive(self, trip: str, stopped: asyncio.Event) -> None:
        """Goes on with a trip to its end; where it is refused, the snapshot says what is so."""
        random = self.client.random
        for step in _STEPS:
            await _wait(stopped, random.uniform(0.0, 0.2))
            if step != "complete" and random.random() < 0.1:
                await self.act("cancel", trip)
                return
            answer = await self.act(step, trip)
            if not answer.is_success:
                await self.recover(stopped)
                return

    async def recover(self, stopped: asyncio.Event) -> None:
        """Does what an app does that no longer knows: asks for a snapshot, and goes on from there."""
        await self.client.look_again()
        trip = self.client.snapshot.get("trip")
        if not trip:
            await self.go_online()
            return
        steps = {"accepted": _STEPS, "arrived": _STEPS[1:], "ongoing": _STEPS[2:]}
        for step in steps.get(trip["current_status"], ()):
            if not (await self.act(step, trip["id"])).is_success:
                return


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    """Asks again and again whether something has come true, `within_s` at most."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not await condition():
        if loop.time() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


async def _wait(stopped: asyncio.Event, at_most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), at_most_s)
