"""Who is asking: bearer JWTs (RFC 7519, RFC 6750), verified once and remembered.

HTTP and WebSocket ask the same authenticator; counting the calls is not its business.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jwt
from aiohttp import hdrs
from multidict import CIMultiDictProxy

from dispatcher.config import Settings
from dispatcher.core.actors import USER_ID, Actor, Role
from dispatcher.core.errors import Refusal
from dispatcher.observe.crowd_lines import CROWD_LINES
from dispatcher.observe.series import TOKEN_REFUSALS
from dispatcher.web.jwt_keys import JwtKey, read_keys

#: Verified tokens that are remembered; verifying one costs more than the rest of a request.
_MAX_REMEMBERED: Final = 50_000
#: Longer tokens are verified each time, so that the memory they take is bounded.
_MAX_REMEMBERED_LENGTH: Final = 2_048
_ROLES: Final = {role.value: role for role in (Role.DRIVER, Role.CUSTOMER, Role.ADMIN)}
_BEARER: Final = "bearer "
#: How apps write it.
_HEADER: Final = "Bearer "
#: Of a reason in the log, in characters: it may repeat what the token says.
_MAX_DETAIL: Final = 200

#: What jwt finds wrong, in the words of the metrics and the log; the first that fits counts.
_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not_yet_valid"),
    (jwt.InvalidAudienceError, "wrong_audience"),
    (jwt.InvalidIssuerError, "wrong_issuer"),
    (jwt.InvalidSignatureError, "wrong_secret"),
    (jwt.MissingRequiredClaimError, "wrong_claims"),
    (jwt.DecodeError, "malformed"),
)


class _NoSuchKey(Exception):
    """No key of this server fits a token."""


class Identity(NamedTuple):
    """Who a token is for, and when it ends (s since the epoch)."""

    actor: Actor
    expires_at_s: int


class Authenticator:
    """Verifies tokens against the keys of the settings."""

    def __init__(
        self, keys: Sequence[JwtKey], *, audience: str, issuer: str | None = None, leeway_s: int = 0
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._leeway_s = leeway_s
        #: By the header that brings a token.
        self._remembered: OrderedDict[str | None, Identity] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: Settings) -> Authenticator:
        """An authenticator for all keys that are set. Raises SettingsError, naming the setting."""
        return cls(
            read_keys(settings),
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            leeway_s=settings.jwt_leeway_s,
        )

    def identify(self, headers: CIMultiDictProxy[str]) -> Identity:
        """Who sends a request with these headers.

        Raises Refusal missing_token, invalid_token or token_expired.
        """
        authorization = headers.get(hdrs.AUTHORIZATION)
        remembered = self._remembered.get(authorization)
        if remembered is not None and remembered.expires_at_s > time.time() - self._leeway_s:
            self._remembered.move_to_end(authorization)
            return remembered
        return self.verify(bearer_token(authorization))

    def verify(self, token: str) -> Identity:
        """Who a token is for. Raises Refusal missing_token, invalid_token or token_expired."""
        header = _HEADER + token
        remembered = self._remembered.get(header)
        if remembered is not None:
            if remembered.expires_at_s <= time.time() - self._leeway_s:
                del self._remembered[header]
                _log_refused("expired", user=remembered.actor.user_id)
                raise Refusal("token_expired")
            self._remembered.move_to_end(header)
            return remembered
        if not token:
            TOKEN_REFUSALS.add("missing")
            raise Refusal("missing_token")
        identity = self._verify(token)
        if len(token) <= _MAX_REMEMBERED_LENGTH:
            self._remembered[header] = identity
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return identity

    def _verify(self, token: str) -> Identity:
        try:
            claims = self._claims(token)
            expires_at_s = int(claims["exp"])
        except jwt.ExpiredSignatureError as error:
            _log_refused("expired", detail=str(error), user=_subject_of(token))
            raise Refusal("token_expired") from None
        except _NoSuchKey as error:
            _log_refused("no_such_key", detail=str(error))
            raise Refusal("invalid_token") from error
        except Exception as error:  # whatever a stranger's bytes do to the decoder, they are no token
            reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), "other")
            _log_refused(reason, detail=str(error))
            raise Refusal("invalid_token") from error
        subject, role_name = claims["sub"], claims["role"]
        if not isinstance(subject, str) or not USER_ID.fullmatch(subject):
            _log_refused("wrong_claims", detail="the sub is not a user id")
            raise Refusal("invalid_token", "The token's sub is not a user id.")
        role = _ROLES.get(role_name) if isinstance(role_name, str) else None
        if role is None:
            _log_refused("wrong_role", user=subject)
            raise Refusal("invalid_token", "The token's role must be driver, customer or admin.")
        return Identity(Actor(subject, role), expires_at_s)

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        failure: Exception = _NoSuchKey(f"no key of this server is for {algorithm!r}, {kid!r}")
        for key in self._keys:
            if key.algorithm != algorithm or (kid and key.kid and kid != key.kid):
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.key,
                    algorithms=[key.algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=self._leeway_s,
                    options={"require": ["exp", "sub", "role", "aud"]},
                )
            except jwt.InvalidSignatureError as error:
                failure = error
            else:
                return claims
        raise failure


def require_role(actor: Actor, role: Role, also: Role | None = None) -> None:
    """Raises Refusal wrong_role where the actor has another role."""
    if actor.role is not role and actor.role is not also:
        raise Refusal("wrong_role", f"Only a {f'{role} or {also}' if also else role} may do this.")


def bearer_token(authorization: str | None) -> str:
    """The token of an Authorization header. Raises Refusal missing_token."""
    if authorization is None or authorization[:7].lower() != _BEARER:
        TOKEN_REFUSALS.add("missing")
        raise Refusal("missing_token")
    return authorization[7:].strip()


def challenge(refusal: Refusal) -> str:
    """The `WWW-Authenticate` of a 401 (RFC 6750, 3)."""
    if refusal.code == "missing_token":
        return 'Bearer realm="dispatcher"'
    return f'Bearer realm="dispatcher", error="invalid_token", error_description="{refusal.message}"'


def _log_refused(reason: str, *, detail: str = "", user: str | None = None) -> None:
    """Tells the operator what is wrong with a token; the answer tells a stranger little.

    One line for all that are refused for the same reason within a second. `user` is whom a token names
    that this server's issuer has signed.
    """
    TOKEN_REFUSALS.add(reason)
    fields = {"reason": reason, "detail": detail[:_MAX_DETAIL], "user": user}
    told = {name: value for name, value in fields.items() if value}
    CROWD_LINES.add(("token", reason, user), logging.INFO, "dispatcher.auth", "Token refused", told)


def _subject_of(token: str) -> str | None:
    """Whom a token names whose signature was found right before."""
    subject = jwt.decode(token, options={"verify_signature": False}).get("sub")
    return subject if isinstance(subject, str) and USER_ID.fullmatch(subject) else None
