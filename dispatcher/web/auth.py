"""Who is asking: bearer tokens (JWT, RFC 7519), verified once and remembered until they end."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import jwt

from dispatcher.config import Settings, SettingsError
from dispatcher.core.errors import Refusal
from dispatcher.core.model import USER_ID, Actor, Role

#: Verifying costs more than the rest of a request, and an app sends one token for hours.
_REMEMBERED: Final = 50_000
_ROLES: Final = {role.value: role for role in (Role.DRIVER, Role.CUSTOMER, Role.ADMIN)}
_ASYMMETRIC: Final = ("RS256", "ES256")

#: (key, the algorithms it may be used with): a public key is never taken for a secret.
_Key = tuple[Any, list[str]]


class Verifier:
    """Verifies tokens. Keys by `kid` come from a JWKS file; None is the key without one."""

    def __init__(
        self, keys: Mapping[str | None, _Key], *, audience: str, issuer: str | None, leeway_s: int
    ) -> None:
        self._keys = dict(keys)
        self._audience = audience
        self._issuer = issuer
        self._leeway_s = leeway_s
        self._known: OrderedDict[str, tuple[Actor, int]] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: Settings) -> Verifier:
        """Raises SettingsError where a key file cannot be used."""
        keys: dict[str | None, _Key] = {}
        if settings.jwt_secret is not None:
            keys[None] = (settings.jwt_secret.get_secret_value(), ["HS256"])
        if settings.jwt_public_key_file is not None:
            if keys:
                raise SettingsError("DISPATCHER_JWT_PUBLIC_KEY_FILE: set it, or DISPATCHER_JWT_SECRET")
            keys[None] = _read_pem(settings)
        if settings.jwt_jwks_file is not None:
            keys |= _read_jwks(settings)
        if not keys:
            raise SettingsError("DISPATCHER_JWT_SECRET: must be set, or a key file")
        return cls(
            keys,
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            leeway_s=settings.jwt_leeway_s,
        )

    def verify(self, token: str) -> tuple[Actor, int]:
        """Who the token is of, and when it ends (s since the epoch).

        Raises Refusal missing_token, invalid_token or token_expired.
        """
        known = self._known.get(token)
        if known is not None:
            if known[1] + self._leeway_s > time.time():
                return known
            del self._known[token]
            raise Refusal("token_expired")
        found = self._verify(token)
        self._known[token] = found
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _verify(self, token: str) -> tuple[Actor, int]:
        if not token:
            raise Refusal("missing_token")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key, algorithms = self._keys.get(kid) or self._keys[None]
            claims = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "sub", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Refusal("token_expired") from None
        except (jwt.PyJWTError, KeyError, ValueError, TypeError):
            raise Refusal("invalid_token") from None
        role, sub = claims.get("role"), claims["sub"]
        if not isinstance(role, str) or role not in _ROLES or not USER_ID.fullmatch(sub):
            raise Refusal("invalid_token", "The token's sub or role is not one of ours.")
        return Actor(sub, _ROLES[role]), int(claims["exp"])


def _read_pem(settings: Settings) -> _Key:
    path = settings.jwt_public_key_file
    assert path is not None
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"DISPATCHER_JWT_PUBLIC_KEY_FILE: {error.strerror}") from None
    for algorithm in _ASYMMETRIC:
        try:
            return jwt.get_algorithm_by_name(algorithm).prepare_key(text), [algorithm]
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
    raise SettingsError("DISPATCHER_JWT_PUBLIC_KEY_FILE: is no PEM file of an RSA or EC public key")


def _read_jwks(settings: Settings) -> dict[str | None, _Key]:
    path = settings.jwt_jwks_file
    assert path is not None
    try:
        found = jwt.PyJWKSet.from_json(path.read_text()).keys
    except (OSError, ValueError, jwt.PyJWTError) as error:
        raise SettingsError(f"DISPATCHER_JWT_JWKS_FILE: {error}") from None
    usable = [key for key in found if key.algorithm_name in _ASYMMETRIC]
    if not usable:
        raise SettingsError("DISPATCHER_JWT_JWKS_FILE: holds no RS256 or ES256 key")
    keys: dict[str | None, _Key] = {key.key_id: (key.key, [key.algorithm_name]) for key in usable}
    if len(usable) == 1:
        keys.setdefault(None, (usable[0].key, [usable[0].algorithm_name]))
    return keys
