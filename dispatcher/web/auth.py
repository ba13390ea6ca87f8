"""Who is asking: bearer JWTs (RFC 7519, RFC 6750), verified once and remembered.

HTTP and WebSocket ask the same authenticator; counting the calls is not its business.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jwt
import structlog
from aiohttp import hdrs
from multidict import CIMultiDictProxy

from dispatcher.config import Settings
from dispatcher.core.actors import USER_ID, Actor, Role
from dispatcher.core.errors import Refusal
from dispatcher.web.jwt_keys import JwtKey, read_keys

#: Verified tokens that are remembered; verifying one costs more than the rest of a request.
_MAX_REMEMBERED: Final = 50_000
#: Longer tokens are verified each time, so that the memory they take is bounded.
_MAX_REMEMBERED_LENGTH: Final = 2_048
_ROLES: Final = {role.value: role for role in (Role.DRIVER, Role.CUSTOMER, Role.ADMIN)}
_BEARER: Final = "bearer "
#: Of a reason in the log, in characters: it may repeat what the token says.
_MAX_REASON: Final = 200

_log = structlog.get_logger("dispatcher.auth")


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
        self._remembered: OrderedDict[str, Identity] = OrderedDict()

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
        return self.verify(bearer_token(headers.get(hdrs.AUTHORIZATION)))

    def verify(self, token: str) -> Identity:
        """Who a token is for. Raises Refusal missing_token, invalid_token or token_expired."""
        remembered = self._remembered.get(token)
        if remembered is not None:
            if remembered.expires_at_s <= time.time() - self._leeway_s:
                del self._remembered[token]
                raise Refusal("token_expired")
            self._remembered.move_to_end(token)
            return remembered
        if not token:
            raise Refusal("missing_token")
        try:
            identity = self._verify(token)
        except Refusal as refusal:
            if refusal.code == "invalid_token":
                # The answer tells a stranger little; the log tells the operator what is wrong.
                reason = str(refusal.__cause__ or refusal.message)
                _log.info("Token refused", reason=reason[:_MAX_REASON])
            raise
        if len(token) <= _MAX_REMEMBERED_LENGTH:
            self._remembered[token] = identity
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return identity

    def _verify(self, token: str) -> Identity:
        try:
            claims = self._claims(token)
            expires_at_s = int(claims["exp"])
        except jwt.ExpiredSignatureError:
            raise Refusal("token_expired") from None
        except Refusal:
            raise
        except Exception as error:  # whatever a stranger's bytes do to the decoder, they are no token
            raise Refusal("invalid_token") from error
        subject, role_name = claims["sub"], claims["role"]
        if not isinstance(subject, str) or not USER_ID.fullmatch(subject):
            raise Refusal("invalid_token", "The token's sub is not a user id.")
        role = _ROLES.get(role_name) if isinstance(role_name, str) else None
        if role is None:
            raise Refusal("invalid_token", "The token's role must be driver, customer or admin.")
        return Identity(Actor(subject, role), expires_at_s)

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        failure: Exception = Refusal("invalid_token", "No key of this server fits the token.")
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
        raise Refusal("missing_token")
    return authorization[7:].strip()


def challenge(refusal: Refusal) -> str:
    """The `WWW-Authenticate` of a 401 (RFC 6750, 3)."""
    if refusal.code == "missing_token":
        return 'Bearer realm="dispatcher"'
    return f'Bearer realm="dispatcher", error="invalid_token", error_description="{refusal.message}"'
