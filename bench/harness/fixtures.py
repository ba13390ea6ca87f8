"""The drivers and trips that a load needs, created over the public API before the clock starts."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

from dispatcher.live.keys import keys_of
from harness import engines
from harness.encoding import request, token
from harness.http_generator import HttpGenerator
from harness.servers import Server

ACTION = "/api/driver/ride/trip-action"
# Trips and drivers are far apart (Staten Island, the Bronx), so that a load of accepts causes no offers.
# Scripts that measure offers place their drivers themselves.
PICKUP = {"lat": 40.58, "lng": -74.15}
TIMEOUT_S = 15.0
DRIVERS_AT = {"lat": 40.85, "lng": -73.87}


@dataclass(slots=True)
class Fixtures:
    """Creates drivers and trips in one zone, under names that are new in each run."""

    server: Server
    generator: HttpGenerator
    zone: str = "default"
    timeout_s: float = TIMEOUT_S  # how long `start_clean` waits for presence in Redis
    prefix: str = field(default_factory=lambda: uuid4().hex[:8])
    _numbers: count[int] = field(default_factory=count)
    _online: int = 0

    def names(self, kind: str, amount: int) -> list[str]:
        """Names that nobody had before."""
        return [f"{kind}-{self.prefix}-{next(self._numbers)}" for _ in range(amount)]

    def bearer(self, role: str, subject: str) -> str:
        """A token of one of the users."""
        return token(self.server.secret, role, subject)

    def drivers(self, amount: int, *, at: dict[str, float] | None = None) -> list[str]:
        """New drivers, online and available at one place."""
        names = self.names("d", amount)
        self.online(names, at=at)
        return names

    def online(self, names: list[str], *, at: dict[str, float] | None = None) -> None:
        """Bring drivers online, or move them to another place."""
        body = {
            "availability_status": "available",
            "is_online": True,
            "zone": self.zone,
            "vehicle_type": "car",
            "location": at or DRIVERS_AT,
        }
        path = "/api/driver/availability"
        calls = [request("POST", path, body, bearer=self.bearer("driver", name)) for name in names]
        self.generator.send_all(self.server, calls, expect="200")
        self._online += len(names)

    def trips(self, amount: int, *, pickup: dict[str, float] | None = None) -> list[str]:
        """New pending trips; a customer has a hundred of them."""
        names = [f"{self.zone}_{name}" for name in self.names("t", amount)]
        calls = [
            self.create_call(name, self.customer(number), pickup or PICKUP)
            for number, name in enumerate(names)
        ]
        self.generator.send_all(self.server, calls, expect="201")
        return names

    def customer(self, number: int) -> str:
        """Who asks for the trip of this place among those that `trips` made together."""
        return f"c-{self.prefix}-{number // 100}"

    def create_call(self, trip: str, customer: str, pickup: dict[str, float]) -> bytes:
        body = {
            "pickup": pickup,
            "dropoff": {"lat": 40.64, "lng": -73.78},
            "vehicle_type": "car",
            "zone": self.zone,
            "trip_request_id": trip,
        }
        bearer = self.bearer("customer", customer)
        return request("POST", "/api/customer/ride/create", body, bearer=bearer)

    def start_clean(self) -> None:
        """Finishes the server's work on the fixtures, so that the run is not charged for it.

        Deletes the queue of waves, since tens of thousands of trips that wait for drivers are no load of
        accepts. Waits until Redis has the presence of all drivers, which the server writes every ten
        seconds at most. Flushes Postgres with a checkpoint.
        """
        if self.server.redis_url:
            keys = keys_of(self.zone)
            with engines.redis_client(self.server.redis_url) as client:
                client.delete(keys.waves)
                deadline = time.monotonic() + self.timeout_s
                while client.zcard(keys.present) < self._online and time.monotonic() < deadline:
                    time.sleep(0.1)
        if self.server.database_url:
            engines.execute(self.server.database_url, "CHECKPOINT")

    def accept_call(self, driver: str, trip: str, *, key: str | None = None) -> bytes:
        body = {"action": "accept", "trip_request_id": trip}
        key = key or self.names("k", 1)[0]
        return request("POST", ACTION, body, bearer=self.bearer("driver", driver), key=key)

    def act(self, driver: str, trip: str, *actions: str) -> None:
        """A driver's actions one after the other, each of which must succeed."""
        for action in actions:
            status, body = self.call(
                "POST", ACTION, {"action": action, "trip_request_id": trip}, "driver", driver
            )
            if status != 200:
                raise RuntimeError(f"{action}: {status} {body}")

    def call(
        self, method: str, path: str, body: Any, role: str, subject: str
    ) -> tuple[int, dict[str, Any]]:
        """One call, not measured: its status and its answer."""
        status, raw = self.call_raw(method, path, body, role, subject)
        return status, json.loads(raw)

    def call_raw(self, method: str, path: str, body: Any, role: str, subject: str) -> tuple[int, bytes]:
        """One call, not measured: its status and the bytes of its answer."""
        outgoing = urllib.request.Request(
            self.server.url.rstrip("/") + path,
            None if body is None else json.dumps(body).encode(),
            {
                "Authorization": f"Bearer {self.bearer(role, subject)}",
                "Content-Type": "application/json",
            },
            method=method,
        )
        try:
            with urllib.request.urlopen(outgoing, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
