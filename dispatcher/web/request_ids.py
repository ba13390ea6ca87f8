"""The ids that log lines carry: that of a call or frame, and that of the trip it names."""

from __future__ import annotations

import os
import re
from itertools import count
from typing import Final

from multidict import CIMultiDictProxy, istr

from dispatcher.core import trips
from dispatcher.observe.call_ids import TRIP_ID

REQUEST_ID_HEADER: Final = istr("X-Request-Id")
_VALID: Final = re.compile(r"[A-Za-z0-9._:@=+/-]{1,128}")
_PREFIX: Final = os.urandom(5).hex()  # so that ids of other processes differ
_NUMBERS: Final = count(1)
#: A frame's id is told as far as it fits.
_MAX_FRAME_ID: Final = 64


def request_id_of(headers: CIMultiDictProxy[str]) -> str:
    """The id of a call with these headers: the client's own where it is sane, or one that is made."""
    request_id = headers.get(REQUEST_ID_HEADER)
    if request_id is None or not _VALID.fullmatch(request_id):
        return f"{_PREFIX}-{next(_NUMBERS):x}"
    return request_id


def frame_request_id(socket_id: str, frame_id: str | int | None) -> str:
    """The id of a frame: that of the call which opened its socket, and what the client numbers it."""
    if frame_id is None:
        return socket_id
    text = str(frame_id)
    if len(text) > _MAX_FRAME_ID or not _VALID.fullmatch(text):
        return socket_id
    return f"{socket_id}/{text}"


def name_trip(trip_id: object) -> None:
    """From now on the lines of this call or frame name the trip it names, if that is the id of one."""
    if isinstance(trip_id, str) and trips.TRIP_ID.fullmatch(trip_id):
        TRIP_ID.set(trip_id)
