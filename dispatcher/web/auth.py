"""Who is asking: bearer JWTs (RFC 7519, RFC 6750), verified once and remembered."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from dispatcher.config import ENV_PREFIX, Settings, SettingsError
from dispatcher.core.actors import USER_ID, Actor, Role
from dispatcher.core.errors import Refusal

#: Verified tokens that are remembered; verifying one costs more than the rest of a request.
_REMEMBERED: Final = 50_000
#: Longer tokens are verified each time, so that the memory they take is bounded.
_LONGEST: Final = 2_048
_ROLES: Final = {role.value: role for role in (Role.DRIVER, Role.CUSTOMER, Role.ADMIN)}
_MIN_RSA_BITS: Final = 2_048  # RFC 7518, 3.3
_BEARER: Final = "bearer "


@dataclass(frozen=True, slots=True)
class _Key:
    """A key, and the one algorithm it may be used with: a token does not choose (RFC 8725, 3.1)."""

    algorithm: str
    key: Any
    kid: str | None = None


class Verifier:
    """Verifies tokens against the keys of the settings."""

    def __init__(
        self, keys: list[_Key], *, audience: str, issuer: str | None = None, leeway_s: int = 0
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._leeway_s = leeway_s
        self._known: OrderedDict[str, tuple[Actor, int]] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: Settings) -> Verifier:
        """A verifier for all keys that are set. Raises SettingsError, naming the setting."""
        keys = []
        if settings.jwt_secret is not None:
            keys.append(_Key("HS256", settings.jwt_secret.get_secret_value().encode()))
        if settings.jwt_public_key_file is not None:
            keys.append(_read_pem(settings.jwt_public_key_file))
        if settings.jwt_jwks_file is not None:
            keys += _read_jwks(settings.jwt_jwks_file)
        if not keys:
            raise SettingsError(
                f"{ENV_PREFIX}JWT_SECRET: must be set, or {ENV_PREFIX}JWT_PUBLIC_KEY_FILE, "
                f"or {ENV_PREFIX}JWT_JWKS_FILE"
            )
        return cls(
            keys,
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            leeway_s=settings.jwt_leeway_s,
        )

    def verify(self, token: str) -> tuple[Actor, int]:
        """Who the token is for, and when it ends (s since the epoch).

        Raises Refusal missing_token, invalid_token or token_expired.
        """
        known = self._known.get(token)
        if known is not None:
            if known[1] <= time.time() - self._leeway_s:
                del self._known[token]
                raise Refusal("token_expired")
            self._known.move_to_end(token)
            return known
        if not token:
            raise Refusal("missing_token")
        verified = self._verify(token)
        if len(token) <= _LONGEST:
            self._known[token] = verified
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return verified

    def _verify(self, token: str) -> tuple[Actor, int]:
        try:
            claims = self._claims(token)
            exp = int(claims["exp"])
        except jwt.ExpiredSignatureError:
            raise Refusal("token_expired") from None
        except Refusal:
            raise
        except Exception:  # whatever a stranger's bytes do to the decoder, they are no token
            raise Refusal("invalid_token") from None
        sub, role = claims["sub"], claims["role"]
        if not isinstance(sub, str) or not USER_ID.fullmatch(sub):
            raise Refusal("invalid_token", "The token's sub is not a user id.")
        known_role = _ROLES.get(role) if isinstance(role, str) else None
        if known_role is None:
            raise Refusal("invalid_token", "The token's role must be driver, customer or admin.")
        return Actor(sub, known_role), exp

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


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header. Raises Refusal missing_token."""
    if authorization is None or authorization[:7].lower() != _BEARER:
        raise Refusal("missing_token")
    return authorization[7:].strip()


def challenge(refusal: Refusal) -> str:
    """The `WWW-Authenticate` of a 401 (RFC 6750, 3)."""
    if refusal.code == "missing_token":
        return 'Bearer realm="dispatcher"'
    return f'Bearer realm="dispatcher", error="invalid_token", error_description="{refusal.message}"'


def _read_pem(path: Path) -> _Key:
    name = f"{ENV_PREFIX}JWT_PUBLIC_KEY_FILE"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{name}: cannot read {path}: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{name}: {path} is not a PEM file of a public key") from None
    algorithm = _algorithm_of(key)
    if algorithm is None:
        raise SettingsError(
            f"{name}: {path} must hold an RSA key of {_MIN_RSA_BITS} bits or more, or a P-256 key"
        )
    return _Key(algorithm, key)


def _read_jwks(path: Path) -> list[_Key]:
    name = f"{ENV_PREFIX}JWT_JWKS_FILE"
    try:
        described = orjson.loads(path.read_bytes())["keys"]
        keys = [_from_jwk(jwk) for jwk in described]
    except OSError as error:
        raise SettingsError(f"{name}: cannot read {path}: {error.strerror}") from None
    except (orjson.JSONDecodeError, jwt.PyJWTError, KeyError, TypeError, ValueError):
        raise SettingsError(f"{name}: {path} is not a JSON Web Key Set of public keys") from None
    usable = [key for key in keys if key is not None]
    if not usable:
        raise SettingsError(f"{name}: {path} has no key for RS256 or ES256")
    return usable


def _from_jwk(described: dict[str, Any]) -> _Key | None:
    """The key, or None where it is meant for something else (RFC 7517, 5: ignore those)."""
    if described["kty"] not in ("RSA", "EC") or described.get("use", "sig") != "sig":
        return None
    jwk = jwt.PyJWK(described)
    key = jwk.key.public_key() if hasattr(jwk.key, "public_key") else jwk.key
    algorithm = _algorithm_of(key)
    if algorithm is None or jwk.algorithm_name != algorithm:
        return None
    return _Key(algorithm, key, jwk.key_id)


def _algorithm_of(key: Any) -> str | None:
    if isinstance(key, RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    return None
