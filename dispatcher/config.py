"""Settings: the environment is read once, checked at start, and a bad value is refused by name."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dispatcher.core.limits import Rate
from dispatcher.core.trips import DEFAULT_VEHICLE_TYPE
from dispatcher.setting_types import (
    DatabaseUrl,
    HostPort,
    Networks,
    Origins,
    Page,
    Pages,
    RateSetting,
    RedisUrl,
    TileUrl,
    VehicleTypes,
    WebhookUrls,
    is_webhook_secret,
)

ENV_PREFIX = "DISPATCHER_"
#: The password of a URL, before its hosts (of which some have several), and those in its query.
_PASSWORD_BEFORE_HOSTS = re.compile(r"(?<=://)([^/?#:@]*:)([^/?#]+)(?=@[^/?#@]*(?:[/?#]|$))")
_PASSWORD_PARAMETER = re.compile(r"([?&]\w*password=)([^&#]+)")


class SettingsError(Exception):
    """A setting is wrong; the message names it and says what it takes."""


class EngineAway(SettingsError):
    """What a URL leads to cannot be reached."""


def url_refused(
    name: str, url: str, reason: str, error: type[SettingsError] = SettingsError
) -> SettingsError:
    """The error for a URL that cannot be used; `name` is the field of Settings that holds it.

    Libraries repeat the URL in their messages, so its passwords are taken out of `reason`.
    """
    for _, password in _PASSWORD_BEFORE_HOSTS.findall(url) + _PASSWORD_PARAMETER.findall(url):
        for secret in {password, unquote(password)}:
            reason = reason.replace(secret, "***")
    return error(f"{ENV_PREFIX}{name.upper()}: {reason}")


def shown_url(url: str) -> str:
    """A URL without its passwords."""
    return _PASSWORD_PARAMETER.sub(r"\1***", _PASSWORD_BEFORE_HOSTS.sub(r"\1***", url))


class Settings(BaseSettings):
    """Everything that can be set, as `DISPATCHER_<NAME>` in the environment.

    docs/settings.md has a row for each field, with the field's description; a test compares the two.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    redis_url: RedisUrl | None = Field(
        None,
        description="Redis 7.2+ or Valkey 8+, one, by Sentinel or a cluster (docs/redis.md); "
        "unset: an embedded Valkey below the data directory",
    )
    redis_timeout_s: float = Field(
        0.75, ge=0.05, le=30,
        description="a Redis that is silent for so long is away: Postgres decides until it is back",
    )  # fmt: skip
    database_url: DatabaseUrl | None = Field(
        None,
        description="Postgres 14+; of several hosts, by commas, the one that takes writes; "
        "unset: an embedded one below the data directory",
    )
    data_dir: Path = Field(
        Path(".dispatcher"), description="where embedded engines and the development secret live"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_pages: Pages = Field(
        default_factory=lambda: list[Page](get_args(Page)),
        description="which of `metrics`, `openapi` and `docs` that port shows, separated by commas",
    )
    metrics_address: HostPort | None = Field(
        None,
        description="`HOST:PORT` for `/metrics`, which the public port then refuses; unset: it is there",
    )  # fmt: skip
    workers: int = Field(1, ge=1, le=64, description="server processes that share the port")
    zones_file: Path | None = Field(None, description="TOML file of zones; unset: one zone, `default`")

    vehicle_types: VehicleTypes = Field(
        default_factory=lambda: ["car", "bike", "van", "taxi", "suv", "scooter", "rickshaw", "wav"],
        description="vehicle types that trips and drivers may have, separated by commas; `car` is one",
    )

    jwt_secret: SecretStr | None = Field(
        None, description="HS256 secret, at least 32 bytes; unset with embedded engines: made once"
    )
    jwt_public_key_file: Path | None = Field(
        None, description="PEM file of an RS256 or ES256 public key"
    )
    jwt_jwks_file: Path | None = Field(None, description="JWKS file of RS256 and ES256 public keys")
    jwt_audience: str = Field("dispatcher", description="the `aud` a token must carry")
    jwt_issuer: str | None = Field(None, description="the `iss` a token must carry, if set")
    jwt_leeway_s: int = Field(5, ge=0, le=300, description="clock difference allowed in `exp`")

    idempotency_ttl_s: int = Field(
        86_400, ge=1, le=2_592_000, description="how long an answer is replayed"
    )
    idempotency_required: bool = Field(False, description="refuse changes without an `Idempotency-Key`")
    limit_trip_accept: RateSetting = Field(Rate(10, 60), description="accepts per driver")
    limit_trip_cancel: RateSetting = Field(Rate(5, 60), description="cancellations and endings per user")
    limit_location_update: RateSetting = Field(Rate(100, 60), description="location calls per driver")
    limit_general: RateSetting = Field(Rate(60, 60), description="every other call per user")
    limit_operator: RateSetting = Field(Rate(600, 60), description="all calls of an admin")
    limit_anonymous: RateSetting = Field(
        Rate(60, 60), description="calls without a valid identity, per client IP"
    )
    limit_ip: RateSetting = Field(Rate(0, 1), description="all calls of a client IP")
    limit_connection: RateSetting = Field(
        Rate(200, 1),
        description="calls, frames and pings of one connection, or of one client IP of a trusted proxy",
    )
    trusted_proxies: Networks = Field(
        default_factory=list,
        description="networks whose `X-Forwarded-For` is believed, separated by commas",
    )
    allowed_origins: Origins = Field(
        default_factory=list,
        description="browser origins that may open a WebSocket, separated by commas",
    )

    max_connections: int = Field(
        20_000, ge=1, le=1_000_000,
        description="connections of a server process; fewer where it may not open as many files",
    )  # fmt: skip
    max_connections_per_ip: int = Field(
        1_000, ge=1, le=1_000_000, description="connections of one client IP to a server process"
    )
    head_timeout_s: float = Field(10.0, ge=0.1, le=300, description="time for the head of a call")
    body_timeout_s: float = Field(
        15.0, ge=0.1, le=300, description="time for the body of a call, and for taking the answer"
    )
    idle_timeout_s: float = Field(
        75.0, ge=0.1, le=3_600, description="how long a connection may wait for its next call"
    )
    ban_s: float = Field(
        60.0, ge=0, le=86_400,
        description="how long an IP whose connections kept on flooding is refused; 0: it is not",
    )  # fmt: skip

    claim_lease_ms: int = Field(
        10_000, ge=200, le=60_000, description="life of a claim; longer than the commit's timeout"
    )
    commit_timeout_s: float = Field(
        5.0, ge=0.1, le=30, description="how long a commit may take before its outcome is unknown"
    )
    request_deadline_s: float = Field(
        8.0, ge=0.1, le=60, description="how long a call may take in all before it is answered `503`"
    )
    commit_batch: int = Field(64, ge=1, le=2_000, description="changes in one commit at most")
    database_pool: int = Field(
        4, ge=1, le=64, description="connections for reads, for each server process"
    )
    cleanup_interval_s: float = Field(300.0, ge=1, description="time between clean-ups of expired rows")
    sweep_interval_s: float = Field(
        1.0, ge=0.05, le=60, description="time between looks for overdue claims and stale drivers"
    )
    drift_interval_s: float = Field(
        300.0, ge=1, le=86_400, description="time between two comparisons of a zone with Postgres"
    )

    presence_ttl_s: int = Field(
        120, ge=1, le=3_600, description="life of a connection without a sign of life"
    )
    presence_grace_s: float = Field(
        30.0, ge=0, le=3_600, description="time from a driver's last connection to offline"
    )
    customer_may_end_after_s: int = Field(
        300, ge=0, le=86_400,
        description="how long the driver of a started trip is offline when its customer may end it",
    )  # fmt: skip
    fix_max_age_s: int = Field(60, ge=1, le=3_600, description="a position older than this is stale")
    position_flush_s: float = Field(
        2.0, ge=0.05, le=60, description="time between batches of positions to Postgres"
    )
    worker_timeout_s: float = Field(
        5.0, ge=2, le=3_600,
        description="how long one of several workers may be silent before it is replaced",
    )  # fmt: skip
    drain_s: float = Field(
        5.0, ge=0, le=300,
        description="window over which sockets are closed at a stop; the server is gone 5 s later",
    )  # fmt: skip

    webhook_url: WebhookUrls = Field(
        default_factory=list,
        description="where committed events go, and offers that no socket hears; several with commas",
    )
    webhook_secret: SecretStr | None = Field(
        None, description="what signs them: `whsec_` and the base64 of 24 to 64 bytes"
    )
    webhook_timeout_s: float = Field(
        5.0, ge=0.1, le=60, description="how long a receiver may take to answer"
    )
    webhook_retry_s: float = Field(
        5.0, ge=0.1, le=600,
        description="rest after the first attempt, which doubles with each, up to 10 minutes",
    )  # fmt: skip
    webhook_attempts: int = Field(
        12, ge=1, le=50, description="attempts after which a message becomes a dead letter"
    )

    console_tile_url: TileUrl | None = Field(
        None,
        description="address of map tiles for the console, with `{z}`, `{x}` and `{y}`; unset: none",
    )
    console_tile_attribution: str = Field("", description="whose tiles they are, as the map shows it")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is logged"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="form of the log lines; `auto`: for people on a terminal, else JSON"
    )
    halt_at: Literal[
        "", "after_claim", "before_commit", "after_commit", "before_settle", "after_settle"
    ] = Field("", description="test switch: a change stops for good at this point, to be killed there")

    @property
    def has_redis_cluster(self) -> bool:
        """Whether zones are spread over the nodes of a cluster, so that a script sees those of one."""
        return "+cluster://" in (self.redis_url or "")

    @model_validator(mode="after")
    def _check_consistency(self) -> Settings:
        if self.claim_lease_ms <= self.commit_timeout_s * 1000:
            raise ValueError(
                "DISPATCHER_CLAIM_LEASE_MS must be longer than DISPATCHER_COMMIT_TIMEOUT_S: "
                "a claim may not end while its commit can still succeed"
            )
        if self.jwt_secret is not None and len(self.jwt_secret.get_secret_value().encode()) < 32:
            raise ValueError("DISPATCHER_JWT_SECRET must have at least 32 bytes (RFC 7518, 3.2)")
        if self.webhook_url and not is_webhook_secret(self.webhook_secret):
            raise ValueError(
                "DISPATCHER_WEBHOOK_SECRET must be whsec_ and the base64 of 24 to 64 bytes "
                "where DISPATCHER_WEBHOOK_URL is set: receivers know our messages by it"
            )
        if DEFAULT_VEHICLE_TYPE not in self.vehicle_types:
            raise ValueError(
                f"DISPATCHER_VEHICLE_TYPES must have {DEFAULT_VEHICLE_TYPE}, "
                "which is meant where a call names none"
            )
        return self


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment; `overrides` (command-line options) win over it.

    Raises SettingsError with one line for each wrong setting, and for each that does not exist.
    """
    lines = [_unknown_variable(name) for name in sorted(os.environ) if not _is_known(name)]
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors():
            name = ENV_PREFIX + str(item["loc"][0]).upper() if item["loc"] else ""
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
    if lines:
        raise SettingsError("\n".join(lines))
    return settings


def _is_known(variable: str) -> bool:
    """Whether a variable of the environment is a setting, or none of our business."""
    name = variable.upper()
    if not name.startswith(ENV_PREFIX):
        return True
    return name.removeprefix(ENV_PREFIX).lower() in Settings.model_fields


def _unknown_variable(variable: str) -> str:
    """One line that refuses a variable which is no setting: a misspelled one would not be heeded."""
    name = variable.upper().removeprefix(ENV_PREFIX).lower()
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"; is {ENV_PREFIX}{near[0].upper()} meant?" if near else ""
    return f"{variable}: there is no such setting{hint}"
