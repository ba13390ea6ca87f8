"""Every refusal of the product: a stable code, a status and one sentence that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the table of refusals.

    `kept` says whether the answer is remembered for its `Idempotency-Key`: business refusals are,
    anything that a corrected or later request would change is not.
    """

    code: str
    status: int
    title: str
    message: str
    kept: bool = False


_ROWS: Final = (
    # --- the request itself
    Problem("malformed_request", 400, "Bad Request", "The request is not valid HTTP."),
    Problem("malformed_json", 400, "Bad Request", "The body must be one JSON object."),
    Problem("invalid_body", 400, "Bad Request", "A field of the body is missing or wrong."),
    Problem("invalid_location", 400, "Bad Request",
            "A position takes lat within ±85.0511 and lng within ±180, in degrees."),
    Problem("unknown_action", 400, "Bad Request",
            "The action must be accept, decline, arrive, start, complete or cancel."),
    Problem("invalid_version", 400, "Bad Request", "The version must be a whole number, 0 or more."),
    Problem("invalid_trip_id", 400, "Bad Request",
            "A trip id is its zone's name, '_', and then letters, digits, '-' and '_': 97 at most."),
    Problem("invalid_driver_id", 400, "Bad Request",
            "A driver id takes letters, digits and ._:@|-: 64 at most, the first a letter or digit."),
    Problem("invalid_zone", 400, "Bad Request", "There is no zone of that name."),
    Problem("invalid_vehicle_type", 400, "Bad Request",
            "The vehicle type must be one that this service has."),
    Problem("invalid_idempotency_key", 400, "Bad Request",
            "An Idempotency-Key takes 1 to 255 printable ASCII characters."),
    Problem("duplicate_idempotency_key", 400, "Bad Request",
            "Send the Idempotency-Key header once."),
    Problem("missing_idempotency_key", 400, "Bad Request",
            "This server asks for an Idempotency-Key on every change."),
    Problem("body_too_large", 413, "Content Too Large", "A body may have at most 64 KiB."),
    Problem("unsupported_media_type", 415, "Unsupported Media Type",
            "Send the body as application/json, without a content encoding."),
    Problem("invalid_frame", 400, "Bad Request", "A field of the frame is missing or wrong."),
    Problem("unknown_frame_type", 400, "Bad Request",
            "A frame's type must be auth, heartbeat, location, trip_action, availability, watch or"
            " unwatch."),
    Problem("binary_frame", 400, "Bad Request", "Frames are JSON text."),
    Problem("too_many_frames", 429, "Too Many Requests", "Send fewer frames; batch positions."),
    Problem("too_many_calls", 429, "Too Many Requests",
            "Send fewer calls a second, and wait for their answers."),
    Problem("too_many_connections", 429, "Too Many Requests",
            "Your address has too many connections; close some, or come back later."),
    Problem("request_timeout", 408, "Request Timeout", "The body did not arrive in time."),
    Problem("not_found", 404, "Not Found", "There is nothing at this address."),
    Problem("method_not_allowed", 405, "Method Not Allowed",
            "This address does not answer that method."),
    Problem("upgrade_required", 426, "Upgrade Required",
            "This address opens WebSockets: ask with GET for an upgrade to one."),
    # --- who is asking
    Problem("missing_token", 401, "Unauthorized", "Send a bearer token in Authorization."),
    Problem("invalid_token", 401, "Unauthorized", "The bearer token is not valid."),
    Problem("token_expired", 401, "Unauthorized", "The bearer token has expired; get a new one."),
    Problem("wrong_role", 403, "Forbidden", "Your role may not do this."),
    Problem("origin_not_allowed", 403, "Forbidden", "This origin may not open a WebSocket."),
    # --- the change
    Problem("trip_not_found", 404, "Not Found", "There is no such trip for you."),
    Problem("driver_not_found", 404, "Not Found", "There is no such driver: they were never online."),
    Problem("trip_exists", 409, "Conflict", "There is a trip with this id already.", kept=True),
    Problem("trip_already_assigned", 409, "Conflict",
            "Another driver has this trip already.", kept=True),
    Problem("trip_not_pending", 409, "Conflict",
            "This trip is not waiting for a driver any more.", kept=True),
    Problem("invalid_trip_status", 409, "Conflict",
            "The trip's state does not allow this action.", kept=True),
    Problem("version_conflict", 409, "Conflict",
            "The trip has changed; look at its current version.", kept=True),
    Problem("driver_not_online", 409, "Conflict",
            "Go online in the trip's zone first.", kept=True),
    Problem("driver_not_available", 409, "Conflict",
            "You are unavailable or have an active trip.", kept=True),
    Problem("driver_not_eligible", 409, "Conflict",
            "This driver cannot be offered this trip now."),
    Problem("driver_has_active_trip", 409, "Conflict",
            "Finish your active trip before you change zone or vehicle.", kept=True),
    Problem("driver_not_absent", 409, "Conflict",
            "The trip's driver is online, or has not been offline for long enough."),
    Problem("not_offered", 403, "Forbidden", "This trip was not offered to you."),
    Problem("request_in_progress", 409, "Conflict",
            "A request with this Idempotency-Key is being worked on; try again."),
    Problem("trip_busy", 409, "Conflict", "The trip is being changed by someone else; try again."),
    Problem("idempotency_key_reused", 422, "Unprocessable Content",
            "This Idempotency-Key was used with another request."),
    # --- limits and outages
    Problem("rate_limit_exceeded", 429, "Too Many Requests",
            "Too many requests. Please try again later."),
    Problem("outcome_unknown", 503, "Service Unavailable",
            "The outcome is not known yet; try again with the same Idempotency-Key."),
    Problem("service_unavailable", 503, "Service Unavailable",
            "The service cannot decide right now; try again."),
    Problem("internal_error", 500, "Internal Server Error",
            "Something went wrong on our side; the logs name this request's id."),
)  # fmt: skip

PROBLEMS: Final[dict[str, Problem]] = {row.code: row for row in _ROWS}


class Refusal(Exception):
    """A request that is refused: `code` names a row of PROBLEMS, `fields` go into the answer.

    `message` replaces the row's sentence where the request allows a more precise one.
    """

    def __init__(self, code: str, message: str | None = None, **fields: Any) -> None:
        super().__init__(code)
        self.problem = PROBLEMS[code]
        self.message = message or self.problem.message
        self.fields = fields

    @property
    def code(self) -> str:
        """The stable code that apps switch on."""
        return self.problem.code


class StoreUnavailable(Exception):
    """Redis or Postgres did not answer; nothing is known to have happened."""


class ReplyLost(StoreUnavailable):
    """A call was sent to Redis and its reply was lost: it may have run."""


class CorruptState(ReplyLost):
    """Redis holds something at a key that does not belong there: the call came to nothing, or to half of
    what it was to do. The key is looked into; a repeated call finds it mended."""


class OutcomeUnknown(Exception):
    """A commit was sent and its answer was lost: it may have happened."""
