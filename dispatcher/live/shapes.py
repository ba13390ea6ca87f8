"""What each key of a zone holds: its type, whether it ends by itself, and what its text looks like.

Redis' own rights keep others out, and a restore or a typing error may all the same leave anything at a
key. `live/mending.py` drops what is not of its key's shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.trips import MAX_LATITUDE, VEHICLE_TYPE, Trip
from dispatcher.core.zones import ZONE
from dispatcher.live.hashes import driver_from_hash, flat_to_dict, trip_from_flat
from dispatcher.live.idempotency import decode_record
from dispatcher.live.shown_heat import heat_from_text

_NAME: Final = re.compile(
    r"dsp:\{([a-z0-9-]{1,32})\}:(claim:trip|claim:driver|[a-z-]+)(?::(.*))?", re.DOTALL
)
_EPOCH: Final = re.compile(r"\d{1,15} \d{1,15} \w+")
_RECORD: Final = re.compile(r"[LDN] [0-9a-f]{64} ")
_LEASE: Final = re.compile(r"\d{1,15} .+", re.DOTALL)
_TIME: Final = re.compile(r"\d{1,15}")
_TOLD: Final = re.compile(r"(\d{1,15} ){4}\S{1,64}")
#: Beside the trip's columns: what waves keep there.
_WAVE_FIELDS: Final = ("round", "wave", "waiting_since")
#: Of a driver: what their place in a queue is made of, empty where they hold none.
_QUEUE_FIELDS: Final = ("queued_at", "queue_until", "queue_number")
_MAX_LONGITUDE: Final = 180.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What a key of one kind holds. `check` takes the content, and what the key's name has beside the
    kind; it raises one of UNREADABLE for content that is none. `loads_zone`: without the key, the zone's
    live state is not whole, and is to be loaded anew."""

    type: str
    ends: bool = False
    check: Callable[[Any, str], object] | None = None
    loads_zone: bool = False


class KeyName(NamedTuple):
    """A key's zone, its kind, and the rest of its name."""

    zone: str
    kind: str
    rest: str


def parse_name(name: str) -> KeyName | None:
    """The parts of a key of ours that a shape is known of, else None."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in SHAPES:
        return None
    return KeyName(match[1], match[2], match[3] or "")


def check_trip(flat: Any, trip_id: str) -> Trip:
    """The trip of a hash. Raises one of UNREADABLE where it is not this one, or not a whole one."""
    hash_ = _as_dict(flat)
    for name in _WAVE_FIELDS:
        int(hash_.get(name, "0"))
    trip = trip_from_flat([part for pair in hash_.items() for part in pair])
    if trip.id != trip_id:
        raise ValueError("is another trip")
    _check_place(trip.pickup_lat, trip.pickup_lng)
    if not VEHICLE_TYPE.fullmatch(trip.vehicle_type):
        raise ValueError("no vehicle type")
    return trip


def _check_place(lat: float, lng: float) -> None:
    if not (abs(lat) <= MAX_LATITUDE and abs(lng) <= _MAX_LONGITUDE):  # also where it is no number
        raise ValueError("no place")


def _check_driver(flat: Any, _: str) -> None:
    hash_ = _as_dict(flat)
    driver_from_hash("", "", hash_)
    if hash_.get("is_online") not in ("0", "1"):
        raise ValueError("is_online is neither 0 nor 1")
    if not ZONE.fullmatch(hash_.get("zone", "")):
        raise ValueError("no zone")
    int(hash_.get("free_since", "0"))
    int(hash_.get("fix_ms", "0"))
    if not ZONE.fullmatch(hash_.get("queue") or "none"):
        raise ValueError("no queue")
    for name in _QUEUE_FIELDS:
        int(hash_.get(name) or "0")
    _check_place(float(hash_.get("lat", "0")), float(hash_.get("lng", "0")))
    if ("lat" in hash_) + ("lng" in hash_) + ("fix_ms" in hash_) not in (0, 3):
        raise ValueError("half a position")


def _check_numbers(flat: Any, _: str) -> None:
    for text in _as_dict(flat).values():
        int(text)


def _check_epoch(text: str, _: str) -> None:
    if not _EPOCH.fullmatch(text):
        raise ValueError("no epoch")


def _check_time(text: str, _: str) -> None:
    if not _TIME.fullmatch(text):
        raise ValueError("no time")


def _check_told(text: str, _: str) -> None:
    if not _TOLD.fullmatch(text):
        raise ValueError("no fence, time, id and horizon with a run id")


def _check_record(text: str, _: str) -> None:
    if not _RECORD.match(text):
        raise ValueError("no record")
    kind, rest = text[0], text[67:]
    if kind != "L":
        decode_record(f"{kind} {rest}")
    elif not _LEASE.fullmatch(rest):
        raise ValueError("no lease")


def _check_json(text: str, _: str) -> None:
    if not isinstance(orjson.loads(text), dict):
        raise TypeError("no object")


def _check_heat(text: str, _: str) -> None:
    heat_from_text(text)


def _check_times(times: list[str], _: str) -> None:
    for text in times:
        int(text)


def _as_dict(flat: Any) -> dict[str, str]:
    return flat if isinstance(flat, dict) else flat_to_dict(flat)


#: By kind, which is the first word of a key's name after the zone's prefix; of claims, the first two.
SHAPES: Final[dict[str, Shape]] = {
    "epoch": Shape("string", check=_check_epoch, loads_zone=True),
    "loading": Shape("string", ends=True),
    "unheard-since": Shape("string", ends=True, check=_check_time),
    "catching-up": Shape("string", ends=True),
    "caught-up": Shape("string", ends=True, check=_check_told),
    "filled": Shape("string"),
    "ready": Shape("string", ends=True),
    "presence-look": Shape("string", ends=True),
    "drift-look": Shape("string", ends=True),
    "queue-look": Shape("string", ends=True),
    "heat-look": Shape("string", ends=True),
    "heat": Shape("string", ends=True, check=_check_heat),
    "queue": Shape("zset"),
    "claims": Shape("zset", loads_zone=True),
    "seen": Shape("zset", loads_zone=True),
    "waves": Shape("zset", loads_zone=True),
    "geo": Shape("zset", loads_zone=True),
    "events": Shape("stream", loads_zone=True),
    "present": Shape("zset"),
    "vehicles": Shape("set"),
    "matching": Shape("hash", check=_check_numbers),
    "turned-down": Shape("hash", check=_check_numbers),
    "trip": Shape("hash", check=check_trip),
    "driver": Shape("hash", check=_check_driver),
    "claim:trip": Shape("string", ends=True),
    "claim:driver": Shape("string", ends=True),
    "offers": Shape("zset"),
    "inbox": Shape("zset"),
    "barred": Shape("set"),
    "passed": Shape("set"),
    "limit": Shape("list", ends=True, check=_check_times),
    "idem": Shape("string", ends=True, check=_check_record),
    "presence": Shape("string", ends=True, check=_check_json),
    "connections": Shape("zset"),
}
