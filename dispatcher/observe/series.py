"""What this process counts as it works: one for each process, like the loggers of the standard library.

What another part knows anyway, like how many sockets are open, is read from there when the metrics
are rendered (dispatcher/gauges.py). docs/metrics.md has all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dispatcher.core.limits import LimitClass
from dispatcher.core.transitions import Event
from dispatcher.observe.instruments import (
    BATCH_SIZES,
    WAIT_SECONDS,
    Counter,
    Histogram,
    Instrument,
)

ENGINES: Final = ("redis", "postgres")
JOB_OUTCOMES: Final = ("done", "put_off", "failed")
WAVE_RESULTS: Final = ("offered", "nobody", "exhausted", "moved")
OFFER_OUTCOMES: Final = ("accepted", "declined", "expired", "withdrawn")
#: What is put right behind others: see "Recovery" in docs/architecture.md.
REPAIRS: Final = (
    "absent_driver", "missed_event", "overdue_claim", "presence_expected", "reloaded_driver",
    "reloaded_trip", "stale_fix", "zone_loaded",
)  # fmt: skip
#: Why a token was refused; the answer says less.
TOKEN_REASONS: Final = (
    "malformed", "missing", "no_such_key", "not_yet_valid", "wrong_audience", "wrong_claims",
    "wrong_issuer", "wrong_role", "wrong_secret", "expired", "other",
)  # fmt: skip

# --- calls and frames

ACTIONS: Final = Counter(
    "dispatcher_actions", "Calls and frames that were answered, by action and response code.",
    ("transport", "action", "code"),
)  # fmt: skip
ACTION_SECONDS: Final = Histogram(
    "dispatcher_action_seconds", "Time from a call or frame to its answer.", ("transport", "action")
)
REFUSALS: Final = Counter("dispatcher_refusals", "Refused changes and limited calls.", ("code",))
LIMITED: Final = Counter(
    "dispatcher_limited", "Calls that a limit refused.", ("limit_class",),
    ((limit_class.value,) for limit_class in LimitClass),
)  # fmt: skip
IDEMPOTENCY_HITS: Final = Counter(
    "dispatcher_idempotency_hits", "Calls that got the answer again which their key got before.",
    ("source",), ((engine,) for engine in ENGINES),
)  # fmt: skip
TOKEN_REFUSALS: Final = Counter(
    "dispatcher_token_refusals", "Tokens that were refused.", ("reason",),
    ((reason,) for reason in TOKEN_REASONS),
)  # fmt: skip

# --- claim, commit, settle

CLAIM_SECONDS: Final = Histogram("dispatcher_claim_seconds", "Time that Redis took for a claim.")
CLAIMS_UNRESOLVED: Final = Counter(
    "dispatcher_claims_unresolved", "Claims that were asked again, since something was missing.",
    ("code",),
)  # fmt: skip
COMMIT_SECONDS: Final = Histogram(
    "dispatcher_commit_seconds", "Time of a change from its claim to its commit."
)
SETTLE_SECONDS: Final = Histogram(
    "dispatcher_settle_seconds", "Time that Redis took to be told of a committed change."
)
COMMIT_BATCH_CHANGES: Final = Histogram(
    "dispatcher_commit_batch_changes", "Changes of one commit.", bounds=BATCH_SIZES
)
COMMIT_BATCH_SECONDS: Final = Histogram(
    "dispatcher_commit_batch_seconds", "Time that Postgres took for one commit."
)
SETTLE_BATCH_CHANGES: Final = Histogram(
    "dispatcher_settle_batch_changes", "Changes of one call that settles.", bounds=BATCH_SIZES
)
REDIS_BATCH_CALLS: Final = Histogram(
    "dispatcher_redis_batch_calls", "Calls of one write to Redis.", bounds=BATCH_SIZES
)
REDIS_BATCH_SECONDS: Final = Histogram(
    "dispatcher_redis_batch_seconds", "Time from a write to Redis to the last of its replies."
)
POSTGRES_QUERY_SECONDS: Final = Histogram(
    "dispatcher_postgres_query_seconds", "Time of everything at Postgres that is no commit."
)

# --- trips and offers

TRIP_EVENTS: Final = Counter(
    "dispatcher_trip_events", "Changes of trips that were committed.", ("zone", "event")
)
OFFERS: Final = Counter("dispatcher_offers", "Offers that went out to drivers.", ("zone",))
OFFER_OUTCOMES_SEEN: Final = Counter(
    "dispatcher_offer_outcomes", "What became of offers.", ("outcome",),
    ((outcome,) for outcome in OFFER_OUTCOMES),
)  # fmt: skip
WAVES: Final = Counter("dispatcher_waves", "Waves, by what they came to.", ("zone", "result"))
TIME_TO_FIRST_OFFER: Final = Histogram(
    "dispatcher_time_to_first_offer_seconds", "Time from a trip's creation to its first offer.",
    ("zone",), bounds=WAIT_SECONDS,
)  # fmt: skip
TIME_TO_ASSIGNMENT: Final = Histogram(
    "dispatcher_time_to_assignment_seconds",
    "Time that a trip has waited, since it was created or released, when a driver took it.",
    ("zone",), bounds=WAIT_SECONDS,
)  # fmt: skip

# --- sockets and presence

SOCKETS_OPENED: Final = Counter(
    "dispatcher_sockets_opened", "WebSockets that were opened.", ("role",),
    (("driver",), ("customer",), ("admin",)),
)  # fmt: skip
SOCKETS_CLOSED: Final = Counter(
    "dispatcher_sockets_closed", "WebSockets that the server closed, by close code.", ("code",)
)
SOCKET_RESYNCS: Final = Counter(
    "dispatcher_socket_resyncs", "Snapshots that were sent anew, since frames may have been lost."
)
PRESENCE_FAILURES: Final = Counter(
    "dispatcher_presence_failures", "Times that a zone could not be told of its connections.", ("zone",)
)

# --- upkeep

REPAIRED: Final = Counter(
    "dispatcher_repairs", "What was put right.", ("kind",), ((kind,) for kind in REPAIRS)
)
JOB_RUNS: Final = Counter("dispatcher_job_runs", "Runs of background jobs.", ("name", "outcome"))
ENGINE_ERRORS: Final = Counter(
    "dispatcher_engine_errors", "Times that an engine did not answer.", ("engine",),
    ((engine,) for engine in ENGINES),
)  # fmt: skip
ENGINE_PROBE_SECONDS: Final = Histogram(
    "dispatcher_engine_probe_seconds", "Time that an engine took to say that it can write.",
    ("engine",), ((engine,) for engine in ENGINES),
)  # fmt: skip
LOOP_LAG_SECONDS: Final = Histogram(
    "dispatcher_event_loop_lag_seconds", "How late the event loop came to what was due."
)

ALL: Final[tuple[Instrument, ...]] = tuple(
    value for value in globals().values() if isinstance(value, Counter | Histogram)
)


def know_zones(zones: Iterable[str]) -> None:
    """These zones' series are there from now on."""
    for zone in zones:
        TRIP_EVENTS.know((zone, event.value) for event in Event)
        WAVES.know((zone, result) for result in WAVE_RESULTS)
        OFFERS.know([(zone,)])
        PRESENCE_FAILURES.know([(zone,)])
        TIME_TO_FIRST_OFFER.know([(zone,)])
        TIME_TO_ASSIGNMENT.know([(zone,)])
