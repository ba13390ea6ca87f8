"""The keys that tokens are verified with: a shared secret, a PEM file, a JSON Web Key Set (RFC 7517)."""

from __future__ import annotations

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

_MIN_RSA_BITS: Final = 2_048  # RFC 7518, 3.3


@dataclass(frozen=True, slots=True)
class JwtKey:
    """A key, and the one algorithm it may be used with: a token does not choose (RFC 8725, 3.1)."""

    algorithm: str
    key: Any
    kid: str | None = None


def read_keys(settings: Settings) -> list[JwtKey]:
    """All keys that are set, at least one. Raises SettingsError, naming the setting."""
    keys = []
    if settings.jwt_secret is not None:
        keys.append(JwtKey("HS256", settings.jwt_secret.get_secret_value().encode()))
    if settings.jwt_public_key_file is not None:
        keys.append(_read_pem(settings.jwt_public_key_file))
    if settings.jwt_jwks_file is not None:
        keys += _read_jwks(settings.jwt_jwks_file)
    if not keys:
        raise SettingsError(
            f"{ENV_PREFIX}JWT_SECRET: must be set, or {ENV_PREFIX}JWT_PUBLIC_KEY_FILE, "
            f"or {ENV_PREFIX}JWT_JWKS_FILE"
        )
    return keys


def _read_pem(path: Path) -> JwtKey:
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
    return JwtKey(algorithm, key)


def _read_jwks(path: Path) -> list[JwtKey]:
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


def _from_jwk(described: dict[str, Any]) -> JwtKey | None:
    """The key, or None where it is meant for something else (RFC 7517, 5: ignore those)."""
    if described["kty"] not in ("RSA", "EC") or described.get("use", "sig") != "sig":
        return None
    jwk = jwt.PyJWK(described)
    key = jwk.key.public_key() if hasattr(jwk.key, "public_key") else jwk.key
    algorithm = _algorithm_of(key)
    if algorithm is None or jwk.algorithm_name != algorithm:
        return None
    return JwtKey(algorithm, key, jwk.key_id)


def _algorithm_of(key: Any) -> str | None:
    if isinstance(key, RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    return None
