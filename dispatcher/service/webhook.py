"""Tells receivers outside what happened: every committed event, and offers that no socket hears.

An entry of a zone's streams goes to one server at a time. It is acknowledged once the receiver has taken
it; else any server tries it again, after a rest that doubles, and keeps it with the dead letters in
the end. A receiver that fails again and again is only tried now and then, and what happens meanwhile
stays in the stream.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.trips import Trip
from dispatcher.live.deliveries import Claimed, DeliveryScripts, NoGroup, Rests
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.offers import WaveResult
from dispatcher.service.connections import HTTP
from dispatcher.service.webhook_messages import (
    Late,
    Message,
    Misunderstood,
    offer_entries,
    read_message,
)
from dispatcher.webhook.receiver import Outcome, Receiver

log = structlog.get_logger("dispatcher.webhook")

#: Calls of one receiver at once, by one server.
MAX_CALLS: Final = 16
#: Entries of a stream that may wait for their next attempt; later ones stay in the stream.
_MAX_PENDING: Final = 500
_LONGEST_REST_MS: Final = 600_000
#: What an attempt takes beside the call itself, in ms.
_MARGIN_MS: Final = 500
#: After so many failures in a row a receiver is left alone, for longer each time (s).
_FAILURES_TO_PAUSE: Final = 5
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
#: How often a zone is looked at for what is due again.
_OVERDUE_S: Final = 1.0

OUTCOMES: Final = ("delivered", "failed", "late", "dead")


class Deliveries:
    """What is told to one receiver. `counts` are of entries, by what came of an attempt."""

    def __init__(
        self,
        receiver: Receiver,
        scripts: DeliveryScripts,
        *,
        timeout_s: float,
        first_rest_s: float,
        max_attempts: int,
    ) -> None:
        self.receiver = receiver
        self.counts = Counter(dict.fromkeys(OUTCOMES, 0))
        self._scripts = scripts
        self._group = f"webhook-{receiver.name}"
        attempt_ms = int(timeout_s * 1000) + _MARGIN_MS
        self._rests = Rests(attempt_ms, int(first_rest_s * 1000), _LONGEST_REST_MS)
        self._max_attempts = max_attempts
        self._calls: set[asyncio.Task[None]] = set()
        self._reserved = 0
        self._begun: set[str] = set()
        self._wakes: dict[str, Callable[[], None]] = {}
        #: Zones that had more than there was room for.
        self._wanting: set[str] = set()
        #: Of each zone: when it was last looked at for what is due again, and how much waits there.
        self._looked: dict[str, float] = {}
        self._pending: dict[str, int] = {}
        self._failures = 0
        self._paused_until = 0.0

    def subscribe(self, zone: str, wake: Callable[[], None]) -> None:
        """`wake` is called when there is something to deliver in a zone, or room for it again."""
        self._wakes[zone] = wake

    def notify(self, zone: str) -> None:
        """There is something to deliver in a zone."""
        if (wake := self._wakes.get(zone)) is not None:
            wake()

    async def begin(self, zone: str) -> None:
        """What happens in a zone from now on is told, unless an earlier server has begun. Raises
        StoreUnavailable."""
        # Redis that was emptied since this server has begun holds nothing but what is new.
        from_now_on = zone not in self._begun
        for stream in _streams(keys_of(zone)):
            await self._scripts.create_group(stream, self._group, from_now_on=from_now_on)
        self._begun.add(zone)

    async def deliver_due(self, zone: str) -> None:
        """Begins to deliver what is due in a zone, as far as there is room. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        if self._paused_until > loop.time():
            return
        room = self._room()
        if room <= 0:
            self._wanting.add(zone)
            return
        keys = keys_of(zone)
        self._reserved += room  # other zones look at the same time
        try:
            claimed = await self._claim(keys, room)
        except NoGroup:
            await self.begin(zone)
            self._wanting.add(zone)
            claimed = []
        finally:
            self._reserved -= room
        if claimed:
            self._wanting.add(zone)  # there may be more
        for entry in claimed:
            task = loop.create_task(self._deliver(keys, entry))
            self._calls.add(task)
            task.add_done_callback(self._ended)

    async def _claim(self, keys: Keys, room: int) -> list[Claimed]:
        """What is due again, now and then, and what is new."""
        claimed: list[Claimed] = []
        now = asyncio.get_running_loop().time()
        if now - self._looked.get(keys.zone, 0.0) >= _OVERDUE_S:
            self._looked[keys.zone] = now
            pending = 0
            for stream in _streams(keys):
                waiting, overdue = await self._scripts.claim_deliveries(
                    stream, self._group, max_entries=room - len(claimed), rests=self._rests,
                    max_pending=_MAX_PENDING,
                )  # fmt: skip
                pending += waiting
                claimed += overdue
                if len(claimed) >= room:
                    break
            self._pending[keys.zone] = pending
        room = min(room - len(claimed), _MAX_PENDING - self._pending.get(keys.zone, 0))
        if room > 0:
            claimed += await self._scripts.next_deliveries(_streams(keys), self._group, room)
        return claimed

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if self._wanting and len(self._calls) <= MAX_CALLS // 2:
            wanting, self._wanting = self._wanting, set()
            for zone in wanting:
                self.notify(zone)

    def _room(self) -> int:
        # Whether a receiver is back is tried by one call.
        at_once = 1 if self._failures >= _FAILURES_TO_PAUSE else MAX_CALLS
        return at_once - len(self._calls) - self._reserved

    async def _deliver(self, keys: Keys, entry: Claimed) -> None:
        try:
            outcome = await self._attempt(keys, entry.stream, entry)
            self.counts[outcome] += 1
        except StoreUnavailable as error:
            # It was not acknowledged, so it is tried again: the receiver knows it by its id.
            log.warning("delivery is not noted", entry=entry.entry, reason=str(error))
        except Exception:
            log.exception("delivery failed", entry=entry.entry, receiver=self.receiver.shown)

    async def _attempt(self, keys: Keys, stream: str, entry: Claimed) -> str:
        try:
            message = read_message(entry.text)
        except Late:
            await self._scripts.delivered(stream, self._group, entry.entry)
            return "late"
        except Misunderstood:
            await self._bury(keys, stream, entry, Message("", "", entry.text), "it is no event")
            return "dead"
        outcome = await self.receiver.call(message.id, message.body)
        self._note(outcome)
        if outcome.error is None:
            await self._scripts.delivered(stream, self._group, entry.entry)
            return "delivered"
        if entry.attempt >= self._max_attempts:
            await self._bury(keys, stream, entry, message, outcome.error)
            return "dead"
        await self._scripts.failed(stream, self._group, entry.entry, attempt_ms=self._rests.attempt_ms)
        return "failed"

    def _note(self, outcome: Outcome) -> None:
        """Leaves a receiver alone that fails again and again, or asks for it."""
        now = asyncio.get_running_loop().time()
        if now < self._paused_until:  # it was under way when the pause began, and says nothing new
            return
        if outcome.error is None:
            if self._paused_until:
                log.info("webhook is back", receiver=self.receiver.shown)
            self._failures, self._paused_until = 0, 0.0
            return
        self._failures += 1
        over = self._failures - _FAILURES_TO_PAUSE
        own_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(over, 9)) if over >= 0 else 0.0
        pause_s = outcome.retry_after_s or own_s
        if pause_s > 0:
            self._paused_until = now + pause_s
            log.warning(
                "webhook is paused",
                receiver=self.receiver.shown, reason=outcome.error, pause_s=round(pause_s, 3),
                failures=self._failures,
            )  # fmt: skip

    def pause_s(self) -> float:
        """How long the receiver is still left alone; 0 where it is not."""
        return max(0.0, self._paused_until - asyncio.get_running_loop().time())

    async def _bury(self, keys: Keys, stream: str, entry: Claimed, message: Message, error: str) -> None:
        about: dict[str, str | int] = {
            "receiver": self.receiver.shown, "message_id": message.id, "type": message.type,
            "attempts": entry.attempt, "error": error, "body": message.body,
        }  # fmt: skip
        await self._scripts.bury(keys, stream, self._group, entry.entry, about)
        trip = {"trip_id": message.trip_id} if message.trip_id else {}
        log.warning(
            "webhook message is given up",
            message_id=message.id, receiver=self.receiver.shown, attempts=entry.attempt, reason=error,
            **trip,
        )  # fmt: skip

    async def close(self) -> None:
        """Breaks calls off that are under way: they are made again, here or elsewhere."""
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self.receiver.close()


def _streams(keys: Keys) -> tuple[str, str]:
    """Where the entries are. An offer is over soon, so offers come first."""
    return keys.unheard, keys.events


class Webhook:
    """All receivers, and the offers that are queued for them."""

    def __init__(self, scripts: DeliveryScripts, deliveries: Iterable[Deliveries]) -> None:
        self._scripts = scripts
        self.deliveries = list(deliveries)

    async def begin(self, zones: Iterable[str]) -> None:
        """Lets every receiver begin; a zone in trouble begins once it is out of it."""
        names = list(zones)
        tries = (self._begin(zone) for zone in names)
        for zone, error in zip(names, await asyncio.gather(*tries, return_exceptions=True), strict=True):
            if error is not None:  # whatever it is, it is this zone's
                log.warning("webhook begins later", zone=zone, reason=str(error))

    async def _begin(self, zone: str) -> None:
        for each in self.deliveries:
            await each.begin(zone)

    def counts(self) -> dict[str, float]:
        """Attempts of all receivers by what came of them."""
        total: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        for each in self.deliveries:
            total.update(each.counts)
        return {outcome: float(number) for outcome, number in total.items()}

    def pause_s(self) -> float:
        """How long the receiver that is left alone longest still is; 0 where none is."""
        return max((each.pause_s() for each in self.deliveries), default=0.0)

    async def offered(self, trip: Trip, wave: WaveResult, distances: dict[str, float]) -> None:
        """Queues the offers of a wave to drivers who have no socket; the offers stand all the same."""
        if not self.deliveries or not wave.offered:
            return
        try:
            entries = offer_entries(trip, wave, distances)
            if await self._scripts.queue_offers(keys_of(trip.zone), entries, HTTP):
                for each in self.deliveries:
                    each.notify(trip.zone)
        except StoreUnavailable as error:
            log.warning("offers are not queued", trip_id=trip.id, reason=str(error))

    async def close(self) -> None:
        """Breaks off what is under way."""
        for each in self.deliveries:
            await each.close()
