"""What claims say: one named tuple a kind of answer, decoded strictly from the scripts' replies."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from dispatcher.core.drivers import Driver
from dispatcher.core.limits import Limits, LimitState
from dispatcher.core.trips import Status, Trip
from dispatcher.live.hashes import driver_from_hash, flat_to_dict, trip_from_flat
from dispatcher.live.idempotency import KeptAnswer, KeptRefusal, decode_record, decode_version
from dispatcher.live.limits import limit_state


class ClaimCode(StrEnum):
    """What a claim says."""

    CLAIMED = "claimed"
    # Something is missing, and nothing was written: the caller provides it and asks again.
    COLD = "cold"
    KEY_UNRESOLVED = "key_unresolved"
    TRIP_UNKNOWN = "trip_unknown"
    DRIVER_UNKNOWN = "driver_unknown"
    DRIVER_MOVED = "driver_moved"
    CAME_BACK = "came_back"
    DRIVER_ELSEWHERE = "driver_elsewhere"
    TRIP_BUSY = "trip_busy"
    # The key or the limits decide.
    REPLAY = "replay"
    KEY_REUSED = "key_reused"
    REQUEST_IN_PROGRESS = "request_in_progress"
    RATE_LIMITED = "rate_limited"
    # The trip or the driver decides.
    TRIP_NOT_FOUND = "trip_not_found"
    TRIP_EXISTS = "trip_exists"
    TRIP_ALREADY_ASSIGNED = "trip_already_assigned"
    TRIP_NOT_PENDING = "trip_not_pending"
    INVALID_TRIP_STATUS = "invalid_trip_status"
    VERSION_CONFLICT = "version_conflict"
    DRIVER_NOT_ONLINE = "driver_not_online"
    DRIVER_NOT_AVAILABLE = "driver_not_available"
    DRIVER_HAS_ACTIVE_TRIP = "driver_has_active_trip"
    NOT_OFFERED = "not_offered"


UNRESOLVED: Final = frozenset(
    {
        ClaimCode.COLD,
        ClaimCode.KEY_UNRESOLVED,
        ClaimCode.TRIP_UNKNOWN,
        ClaimCode.DRIVER_UNKNOWN,
        ClaimCode.DRIVER_MOVED,
        ClaimCode.CAME_BACK,
        ClaimCode.DRIVER_ELSEWHERE,
        ClaimCode.TRIP_BUSY,
    }
)
# An enum's own look-up takes three times as long.
_CODES: Final = {code.value: code for code in ClaimCode}
#: The limits have counted what is refused by these; what they add is the trip's version and state.
BY_THE_TRIP_OR_DRIVER: Final = frozenset(
    {
        ClaimCode.TRIP_NOT_FOUND,
        ClaimCode.TRIP_EXISTS,
        ClaimCode.TRIP_ALREADY_ASSIGNED,
        ClaimCode.TRIP_NOT_PENDING,
        ClaimCode.INVALID_TRIP_STATUS,
        ClaimCode.VERSION_CONFLICT,
        ClaimCode.DRIVER_NOT_ONLINE,
        ClaimCode.DRIVER_NOT_AVAILABLE,
        ClaimCode.DRIVER_HAS_ACTIVE_TRIP,
        ClaimCode.NOT_OFFERED,
    }
)
#: The problem that a refusal's code stands for (core.errors); most have the same name.
PROBLEM_CODES: Final[dict[ClaimCode, str]] = {
    **{code: code.value for code in ClaimCode if code not in UNRESOLVED},
    ClaimCode.TRIP_BUSY: "trip_busy",
    ClaimCode.KEY_REUSED: "idempotency_key_reused",
    ClaimCode.RATE_LIMITED: "rate_limit_exceeded",
}
del PROBLEM_CODES[ClaimCode.CLAIMED], PROBLEM_CODES[ClaimCode.REPLAY]


class AcceptClaimed(NamedTuple):
    """Trip and driver are claimed. `offered` are the drivers who hold an offer of the trip."""

    now_ms: int
    limit: LimitState | None
    trip: Trip
    vehicle_type: str
    offered: list[str]


class TransitionClaimed(NamedTuple):
    """The trip is claimed. `offered` are the drivers who hold an offer of it."""

    now_ms: int
    limit: LimitState | None
    trip: Trip
    offered: list[str]


class CreationClaimed(NamedTuple):
    """The trip's id is claimed."""

    now_ms: int
    limit: LimitState | None


class AvailabilityClaimed(NamedTuple):
    """The driver is claimed, and with them the trip that is to be released, if any. `fix_ms` is the time
    of the driver's last fix, None where none is known."""

    now_ms: int
    limit: LimitState | None
    driver: Driver
    released: Trip | None
    fix_ms: int | None


class DeclineClaimed(NamedTuple):
    """The trip is pending, so the driver may decline it."""

    now_ms: int
    limit: LimitState | None
    trip: Trip


class Unresolved(NamedTuple):
    """Nothing was decided. `trip_id` is the driver's trip where the code is DRIVER_MOVED."""

    code: ClaimCode
    limit: LimitState | None
    trip_id: str = ""


class Replayed(NamedTuple):
    """The request has been answered before."""

    limit: LimitState | None
    record: KeptAnswer | KeptRefusal


class Refused(NamedTuple):
    """The request is refused, with the trip's version and state where they are told; `now_ms` is when,
    where the trip or the driver decided."""

    code: ClaimCode
    limit: LimitState | None
    version: int | None = None
    status: Status | None = None
    now_ms: int = 0


NotClaimed = Unresolved | Replayed | Refused
_ClaimedT = TypeVar("_ClaimedT")


def decode_claim(
    reply: list[Any], limits: Limits, claimed: Callable[..., _ClaimedT]
) -> _ClaimedT | NotClaimed:
    """The reply of a claim's script; `claimed` makes the result of one that was granted.

    It gets the time (ms), the limit, and what the script adds. Raises ValueError or TypeError where the
    script says anything else than its header.
    """
    text, now_ms, limit_index, remaining, reset_ms, *rest = reply
    limit = limit_state(limits, limit_index, remaining, reset_ms, now_ms)
    code = _CODES.get(text) or ClaimCode(text)
    if code in BY_THE_TRIP_OR_DRIVER:
        version, status = rest
        return Refused(code, limit, *decode_version(version, status), now_ms)
    if code is ClaimCode.CLAIMED:
        return claimed(now_ms, limit, *rest)
    if code is ClaimCode.REPLAY:
        (record,) = rest
        return Replayed(limit, decode_record(record))
    if code is ClaimCode.DRIVER_MOVED:
        (trip_id,) = rest
        return Unresolved(code, limit, trip_id)
    if rest:
        raise ValueError(f"{code} comes with {rest!r}")
    return Unresolved(code, limit) if code in UNRESOLVED else Refused(code, limit)


def accept_claimed(
    now_ms: int, limit: LimitState | None, trip: list[str], vehicle_type: str, offered: list[str]
) -> AcceptClaimed:
    """What `claim_accept` grants: the trip's flat hash, the vehicle type, the drivers with an offer."""
    return AcceptClaimed(now_ms, limit, trip_from_flat(trip), vehicle_type, offered)


def transition_claimed(
    now_ms: int, limit: LimitState | None, trip: list[str], offered: list[str]
) -> TransitionClaimed:
    """What `claim_transition` grants: the trip's flat hash, the drivers with an offer."""
    return TransitionClaimed(now_ms, limit, trip_from_flat(trip), offered)


def decline_claimed(now_ms: int, limit: LimitState | None, trip: list[str]) -> DeclineClaimed:
    """What `claim_decline` grants: the trip's flat hash."""
    return DeclineClaimed(now_ms, limit, trip_from_flat(trip))


def availability_claimed(
    user_id: str, zone: str
) -> Callable[[int, LimitState | None, list[str], list[str]], AvailabilityClaimed]:
    """What `claim_availability` grants: the driver's flat hash, and that of a trip to release."""

    def claimed(
        now_ms: int, limit: LimitState | None, driver: list[str], released: list[str]
    ) -> AvailabilityClaimed:
        hash_ = flat_to_dict(driver)
        return AvailabilityClaimed(
            now_ms,
            limit,
            driver_from_hash(user_id, zone, hash_),
            trip_from_flat(released) if released else None,
            int(hash_["fix_ms"]) if hash_.get("fix_ms") else None,
        )

    return claimed
