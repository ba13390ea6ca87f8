"""Who may come in: caps on connections, bans of addresses, and the one clock of all deadlines.

One door stands before all connections of a server process. What a single connection may do is held by
`guarded_connection`, which asks the door.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from dispatcher.config import Settings
from dispatcher.core.limits import Rate
from dispatcher.web.allowance import Allowance
from dispatcher.web.bans import Bans
from dispatcher.web.client_ip import ClientIp

_log = structlog.get_logger("dispatcher.door")

_USUAL_RATE: Final = Rate(200, 1)
#: Connections beyond the cap, which may ask for the health of the server, and for nothing else.
_ROOM_FOR_HEALTH: Final = 16
#: A reason for refusals is logged once in this time, with their number.
_LOG_INTERVAL_S: Final = 10.0
#: Why connections are refused, or ended before their time: what `TimedConnection` waits for is last.
REFUSAL_REASONS: Final = ("banned", "cap", "cap of an IP", "flood", "head", "body", "answer", "idle")
#: Addresses behind proxies whose allowance is remembered.
_MAX_ALLOWANCES: Final = 10_000
#: A deadline is noticed after this part of the shortest allowed time, and after a second, at most.
_TICKS: Final = 8


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """The limits of a server process; the settings of these names say more."""

    rate: Rate = _USUAL_RATE
    max_connections: int = 20_000
    max_connections_per_ip: int = 1_000
    head_timeout_s: float = 10.0
    body_timeout_s: float = 15.0
    idle_timeout_s: float = 75.0
    ban_s: float = 60.0

    @classmethod
    def of(cls, settings: Settings, max_connections: int) -> DoorLimits:
        """Those of the settings; `max_connections` is what the process can hold."""
        return cls(
            rate=settings.limit_connection,
            max_connections=max_connections,
            max_connections_per_ip=settings.max_connections_per_ip,
            head_timeout_s=settings.head_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            ban_s=settings.ban_s,
        )


class Visitor(Protocol):
    """A connection, as the door sees it."""

    #: The client's address; None where there is none.
    address: str | None
    #: It came beyond a cap, and is only told the health of the server.
    is_for_health: bool

    def is_answering(self) -> bool:
        """Whether a call of it is being answered."""

    def look_at_clock(self, now_s: float) -> None:
        """Ends what has taken too long."""

    def force_close(self) -> None:
        """Ends it."""


@dataclass(slots=True)
class _Refusals:
    """What is counted and logged of refusals."""

    counts: Counter[str] = field(default_factory=Counter)
    logged: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, reason: str, address: str | None) -> None:
        self.counts[reason] += 1
        at_s, number = self.logged.get(reason, (-_LOG_INTERVAL_S, 0))
        now_s = time.monotonic()
        if now_s - at_s >= _LOG_INTERVAL_S:
            _log.warning(
                "Connections refused", reason=reason, ip=address, number=self.counts[reason] - number
            )
            self.logged[reason] = (now_s, self.counts[reason])


class Door:
    """Admits connections, counts them by address, and lets time end those that say nothing."""

    def __init__(self, limits: DoorLimits | None = None, client_ip: ClientIp | None = None) -> None:
        self.limits = limits or DoorLimits()
        self.client_ip = client_ip or ClientIp([])
        self._bans = Bans(self.limits.ban_s)
        self._refusals = _Refusals()
        self._allowances: dict[str, Allowance] = {}
        self._by_address: Counter[str] = Counter()
        #: All that were admitted, but for those that are told of the health alone.
        self._admitted = 0
        self._for_health: dict[Visitor, None] = {}
        #: Connections that speak HTTP: WebSockets have clocks of their own.
        self._http: dict[Visitor, None] = {}
        shortest_s = min(
            self.limits.head_timeout_s, self.limits.body_timeout_s, self.limits.idle_timeout_s
        )
        self._tick_s = min(1.0, shortest_s / _TICKS)
        self._is_ticking = False

    def __len__(self) -> int:
        return self._admitted + len(self._for_health)

    @property
    def refused(self) -> Mapping[str, int]:
        """Connections that were refused or ended, by reason."""
        return self._refusals.counts

    def admit(self, visitor: Visitor, *, via_proxy: bool) -> bool:
        """Whether a new connection may stay; it is taken note of then.

        `via_proxy` says that its address is a trusted proxy's, and not the client's.
        """
        address = None if via_proxy else visitor.address
        if address is not None and self.banned_s(address):
            self._refusals.add("banned", address)
            return False
        if self._admitted >= self.limits.max_connections:
            visitor.is_for_health = True
            self._refusals.add("cap", address)
        elif address is not None and not self.has_room(address):
            visitor.is_for_health = True
            # These may not drive the others out.
            if len(self._for_health) >= _ROOM_FOR_HEALTH // 2:
                return False
        if visitor.is_for_health:
            if not self._make_room_for_health():
                return False
            self._for_health[visitor] = None
        else:
            self._admitted += 1
            if address is not None:
                self._by_address[address] += 1
        self._http[visitor] = None
        self._keep_ticking()
        return True

    def has_room(self, address: str) -> bool:
        """Whether the address may have one more connection; a refusal is counted."""
        if self._by_address[address] < self.limits.max_connections_per_ip:
            return True
        self._refusals.add("cap of an IP", address)
        return False

    def upgraded(self, visitor: Visitor, *, via_proxy: bool) -> None:
        """The connection has become a WebSocket, so that it is one client's, also behind a proxy."""
        self._http.pop(visitor, None)
        if via_proxy and visitor.address is not None:
            self._by_address[visitor.address] += 1

    def leave(self, visitor: Visitor, *, via_proxy: bool, was_upgraded: bool) -> None:
        """The connection has ended. Must not be told of one that was not admitted."""
        self._http.pop(visitor, None)
        if visitor.is_for_health:
            self._for_health.pop(visitor, None)
            return
        self._admitted -= 1
        address = visitor.address
        if address is not None and (was_upgraded or not via_proxy):
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    def count_ended(self, reason: str, address: str | None) -> None:
        """A connection was ended before its time."""
        self._refusals.add(reason, address)

    def strike(self, address: str | None) -> None:
        """A client went on after a warning, and is disconnected."""
        self._refusals.add("flood", address)
        if address is not None and self._bans.strike(address, time.monotonic()):
            _log.warning("Address refused for a while", ip=address, ban_s=self.limits.ban_s)

    def banned_s(self, address: str) -> float:
        """How long the address is refused from now on."""
        return self._bans.remaining_s(address, time.monotonic())

    def allowance_of(self, address: str, now_s: float) -> Allowance:
        """What an address behind a trusted proxy may still send."""
        allowance = self._allowances.pop(address, None)
        if allowance is None:
            allowance = Allowance(self.limits.rate, now_s)
            if len(self._allowances) >= _MAX_ALLOWANCES:
                del self._allowances[next(iter(self._allowances))]
        self._allowances[address] = allowance
        return allowance

    def _make_room_for_health(self) -> bool:
        if len(self._for_health) < _ROOM_FOR_HEALTH:
            return True
        for other in self._for_health:
            if not other.is_answering():
                del self._for_health[other]
                other.force_close()
                return True
        return False

    # --- one timer for all

    def _keep_ticking(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._is_ticking = False
        now_s = asyncio.get_running_loop().time()
        for visitor in list(self._http):
            visitor.look_at_clock(now_s)
        if self._http:
            self._keep_ticking()
