"""One exception for each problem that the API can answer; all are an ApiError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dispatcher.core.errors import PROBLEMS

if TYPE_CHECKING:
    from dispatcher.client.replies import Intent


class NoAnswer(Exception):
    """No definite answer came before the deadline: a change may have happened, or not.

    `intent` is what was wanted (None: a question was asked). Sent again by `change`, it has its key
    still, and learns the outcome. `__cause__` is what the last attempt failed with, and `retry_after`
    when to ask again, in s, where that says so.
    """

    intent: Intent | None = None
    retry_after: float | None = None


class ApiError(Exception):
    """A problem that the API answered. Those that its client does not know yet are this very class."""

    #: The `response_code`; empty where the answer was no problem of the API's own, as of a proxy.
    code: str = ""
    _by_code: ClassVar[dict[str, type[ApiError]]] = {}

    def __init_subclass__(cls, *, code: str) -> None:
        super().__init_subclass__()
        cls.code = code
        cls.__doc__ = PROBLEMS[code].message
        ApiError._by_code[code] = cls

    def __init__(self, status: int, problem: dict[str, Any], retry_after_s: float | None) -> None:
        super().__init__(problem.get("message") or f"the answer was {status}")
        self.status = status
        #: When to ask again, in s; None where the answer does not say.
        self.retry_after = retry_after_s
        #: All fields of the problem, such as `version`, `current_status` or `field`.
        self.fields = problem
        self.code = str(problem.get("response_code", self.code))

    @classmethod
    def of(cls, status: int, problem: dict[str, Any], retry_after_s: float | None) -> ApiError:
        """The exception for a problem."""
        kind = cls._by_code.get(str(problem.get("response_code")), ApiError)
        return kind(status, problem, retry_after_s)


class MalformedRequest(ApiError, code="malformed_request"): ...


class MalformedJson(ApiError, code="malformed_json"): ...


class InvalidBody(ApiError, code="invalid_body"): ...


class InvalidLocation(ApiError, code="invalid_location"): ...


class UnknownAction(ApiError, code="unknown_action"): ...


class InvalidVersion(ApiError, code="invalid_version"): ...


class InvalidTripId(ApiError, code="invalid_trip_id"): ...


class InvalidDriverId(ApiError, code="invalid_driver_id"): ...


class InvalidZone(ApiError, code="invalid_zone"): ...


class InvalidVehicleType(ApiError, code="invalid_vehicle_type"): ...


class InvalidIdempotencyKey(ApiError, code="invalid_idempotency_key"): ...


class DuplicateIdempotencyKey(ApiError, code="duplicate_idempotency_key"): ...


class MissingIdempotencyKey(ApiError, code="missing_idempotency_key"): ...


class BodyTooLarge(ApiError, code="body_too_large"): ...


class UnsupportedMediaType(ApiError, code="unsupported_media_type"): ...


class InvalidFrame(ApiError, code="invalid_frame"): ...


class UnknownFrameType(ApiError, code="unknown_frame_type"): ...


class BinaryFrame(ApiError, code="binary_frame"): ...


class TooManyFrames(ApiError, code="too_many_frames"): ...


class TooManyCalls(ApiError, code="too_many_calls"): ...


class TooManyConnections(ApiError, code="too_many_connections"): ...


class RequestTimeout(ApiError, code="request_timeout"): ...


class NotFound(ApiError, code="not_found"): ...


class MethodNotAllowed(ApiError, code="method_not_allowed"): ...


class UpgradeRequired(ApiError, code="upgrade_required"): ...


class MissingToken(ApiError, code="missing_token"): ...


class InvalidToken(ApiError, code="invalid_token"): ...


class TokenExpired(ApiError, code="token_expired"): ...


class WrongRole(ApiError, code="wrong_role"): ...


class OriginNotAllowed(ApiError, code="origin_not_allowed"): ...


class TripNotFound(ApiError, code="trip_not_found"): ...


class DriverNotFound(ApiError, code="driver_not_found"): ...


class TripExists(ApiError, code="trip_exists"): ...


class TripAlreadyAssigned(ApiError, code="trip_already_assigned"): ...


class TripNotPending(ApiError, code="trip_not_pending"): ...


class InvalidTripStatus(ApiError, code="invalid_trip_status"): ...


class VersionConflict(ApiError, code="version_conflict"): ...


class DriverNotOnline(ApiError, code="driver_not_online"): ...


class DriverNotAvailable(ApiError, code="driver_not_available"): ...


class DriverNotEligible(ApiError, code="driver_not_eligible"): ...


class DriverHasActiveTrip(ApiError, code="driver_has_active_trip"): ...


class DriverNotAbsent(ApiError, code="driver_not_absent"): ...


class NotOffered(ApiError, code="not_offered"): ...


class RequestInProgress(ApiError, code="request_in_progress"): ...


class TripBusy(ApiError, code="trip_busy"): ...


class IdempotencyKeyReused(ApiError, code="idempotency_key_reused"): ...


class RateLimitExceeded(ApiError, code="rate_limit_exceeded"): ...


class OutcomeUnknown(ApiError, code="outcome_unknown"): ...


class ServiceUnavailable(ApiError, code="service_unavailable"): ...


class InternalError(ApiError, code="internal_error"): ...
