"""What a webhook says: a message each committed event, and each offer that no socket hears."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.actors import Role, address_of
from dispatcher.core.times import iso, now_ms
from dispatcher.core.trips import Trip
from dispatcher.live.offers import WaveResult

OFFER_MADE: Final = "offer.made"
#: Less is no time to wake an app and answer.
_LEAST_LEFT_MS: Final = 500


class Message(NamedTuple):
    """A message to a receiver. The id is the same whenever the same thing is told again."""

    id: str
    type: str
    body: str
    trip_id: str = ""


class Late(Exception):
    """The offer has ended: nobody needs to know of it any more."""


class Misunderstood(Exception):
    """The entry is none of ours."""


def offer_entries(trip: Trip, wave: WaveResult, distances: dict[str, float]) -> list[tuple[str, str]]:
    """The offers of a wave as `queue_offers` takes them: (address, JSON)."""
    common = {"trip": orjson.Fragment(orjson.dumps(trip.to_json())), "wave": wave.wave}
    return [
        (
            address_of(Role.DRIVER, driver),
            orjson.dumps(
                {
                    "event": OFFER_MADE, "at": iso(wave.now_ms), "driver_id": driver, **common,
                    "distance_m": distances[driver], "deadline_ms": wave.deadline_ms,
                }
            ).decode(),
        )
        for driver in wave.offered
    ]  # fmt: skip


def read_message(text: str) -> Message:
    """The message that an entry of a stream stands for. Raises Late, Misunderstood."""
    try:
        entry = orjson.loads(text)
        return _offer(entry) if entry["event"] == OFFER_MADE else _event(entry)
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        raise Misunderstood(str(error)) from None


def _event(entry: dict[str, Any]) -> Message:
    trip = entry["trip"]
    kind = f"trip.{entry['event']}"
    return Message(f"evt_{trip['id']}_{trip['version']}", kind, _body(kind, entry, ("at",)), trip["id"])


def _offer(entry: dict[str, Any]) -> Message:
    left_ms = entry["deadline_ms"] - now_ms()
    if left_ms < _LEAST_LEFT_MS:
        raise Late
    driver = hashlib.sha256(entry["driver_id"].encode()).hexdigest()[:12]
    id_ = f"ofr_{entry['trip']['id']}_{entry['deadline_ms']}_{driver}"
    told = {**entry, "expires_in_ms": left_ms}
    return Message(id_, OFFER_MADE, _body(OFFER_MADE, told, ("at", "event")), entry["trip"]["id"])


def _body(kind: str, entry: dict[str, Any], left_out: Iterable[str]) -> str:
    data = {name: value for name, value in entry.items() if name not in left_out}
    return orjson.dumps({"type": kind, "timestamp": entry["at"], "data": data}).decode()
