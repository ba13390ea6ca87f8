"""Tokens: which are believed, and which never are."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from multidict import CIMultiDict, CIMultiDictProxy

from dispatcher.config import Settings, SettingsError
from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import PROBLEMS, Refusal
from dispatcher.observe.series import TOKEN_REFUSALS
from dispatcher.web import auth
from dispatcher.web.auth import Authenticator, bearer_token, challenge

SECRET = "a-secret-for-tests-with-more-than-32-bytes"
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def claims(**more: Any) -> dict[str, Any]:
    """The usual claims; None takes one away."""
    usual = {"sub": "d1", "role": "driver", "aud": "dispatcher", "exp": int(time.time()) + 3_600, **more}
    return {name: value for name, value in usual.items() if value is not None}


def hs(**more: Any) -> str:
    return jwt.encode(claims(**more), SECRET, "HS256")


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name(
        "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
    )
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **more}  # type: ignore[attr-defined]


def authenticator(**settings: Any) -> Authenticator:
    return Authenticator.from_settings(Settings(**settings))


def code(tokens: Authenticator, token: str) -> str:
    with pytest.raises(Refusal) as refused:
        tokens.verify(token)
    return refused.value.code


@pytest.fixture
def by_secret() -> Authenticator:
    return authenticator(jwt_secret=SECRET)


def test_a_good_token_and_who_it_is_of(by_secret: Authenticator) -> None:
    exp = int(time.time()) + 60
    for role in (Role.DRIVER, Role.CUSTOMER, Role.ADMIN):
        assert by_secret.verify(hs(role=role, exp=exp)) == (Actor("d1", role), exp)
    assert by_secret.verify(hs(aud=["dispatcher", "other"]))[0] == Actor("d1", Role.DRIVER)


@pytest.mark.parametrize("claim", ["exp", "sub", "role", "aud"])
def test_every_claim_is_required(by_secret: Authenticator, claim: str) -> None:
    assert code(by_secret, hs(**{claim: None})) == "invalid_token"


@pytest.mark.parametrize(
    "wrong",
    [
        {"aud": "another"}, {"role": "system"}, {"role": "root"}, {"role": ["driver"]}, {"role": 1},
        {"sub": "a b"}, {"sub": "{x}"}, {"sub": "x" * 65}, {"sub": ""}, {"sub": "d1\n"}, {"sub": 5},
        {"nbf": time.time() + 600}, {"iat": time.time() + 600}, {"exp": "soon"},
    ],
)  # fmt: skip
def test_wrong_claims(by_secret: Authenticator, wrong: dict[str, Any]) -> None:
    # By hand: PyJWT does not sign a sub that is no text.
    token = jwt.api_jws.encode(json.dumps(claims(**wrong)).encode(), SECRET, "HS256")
    assert code(by_secret, token) == "invalid_token"


@pytest.mark.parametrize(
    ("token", "reason", "told"),
    [
        (hs(aud="another"), "wrong_audience", {"detail": "Audience doesn't match"}),
        (hs(aud=None), "wrong_claims", {"detail": 'Token is missing the "aud" claim'}),
        (hs(iss="nobody", nbf=time.time() + 600), "not_yet_valid", {"detail": "The token is not yet valid (nbf)"}),
        (
            jwt.encode(claims(), "another secret of more than 32 bytes", "HS256"),
            "wrong_secret", {"detail": "Signature verification failed"},
        ),
        (
            jwt.encode(claims(), SECRET * 2, "HS512"),
            "no_such_key", {"detail": "no key of this server is for 'HS512', None"},
        ),
        (hs(role="root"), "wrong_role", {"user": "d1"}),
        (hs(sub="{x}"), "wrong_claims", {"detail": "the sub is not a user id"}),
        ("x.y.z", "malformed", {"detail": "Invalid header"}),
        (hs(exp=int(time.time()) - 100), "expired", {"detail": "Signature has expired", "user": "d1"}),
    ],
)  # fmt: skip
def test_the_log_says_why_a_token_is_refused(
    by_secret: Authenticator, token: str, reason: str, told: dict[str, str]
) -> None:
    counted = TOKEN_REFUSALS.numbers[(reason,)]
    with structlog.testing.capture_logs() as lines:
        refused = code(by_secret, token)
    assert refused == ("token_expired" if reason == "expired" else "invalid_token")
    (line,) = lines
    assert line.pop("detail", "").startswith(told.pop("detail", ""))
    assert line == {"event": "Token refused", "log_level": "info", "reason": reason, "count": 1, **told}
    assert TOKEN_REFUSALS.numbers[(reason,)] == counted + 1


def test_the_log_says_what_the_answer_does_not(by_secret: Authenticator) -> None:
    for token in (hs(aud="another"), jwt.encode(claims(), SECRET * 2, "HS512"), "x.y.z"):
        with pytest.raises(Refusal) as refused:
            by_secret.verify(token)
        assert refused.value.message == PROBLEMS["invalid_token"].message


def test_expiry_with_leeway() -> None:
    now = int(time.time())
    strict, lenient = (
        authenticator(jwt_secret=SECRET, jwt_leeway_s=0),
        authenticator(jwt_secret=SECRET, jwt_leeway_s=60),
    )
    assert code(strict, hs(exp=now - 1)) == "token_expired"
    assert lenient.verify(hs(exp=now - 1))[1] == now - 1
    assert code(lenient, hs(exp=now - 100)) == "token_expired"


def test_a_remembered_token_expires_too(
    by_secret: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hs(exp=int(time.time()) + 10)
    by_secret.verify(token)
    later = time.time() + 16  # past expiry and the five seconds of leeway
    monkeypatch.setattr(auth.time, "time", lambda: later)
    assert code(by_secret, token) == "token_expired"
    monkeypatch.undo()
    assert not by_secret._remembered


def test_verified_once_and_bounded(by_secret: Authenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MAX_REMEMBERED", 3)
    tokens = [hs(sub=f"d{i}") for i in range(4)]
    for token in tokens[:3]:
        by_secret.verify(token)
    by_secret.verify(tokens[0])  # used again, so that the next one takes the place of d1
    by_secret.verify(tokens[3])
    assert list(by_secret._remembered) == [f"Bearer {tokens[number]}" for number in (2, 0, 3)]
    monkeypatch.setattr(by_secret, "_verify", None)
    assert by_secret.verify(tokens[0])[0].user_id == "d0"


def test_what_is_remembered_is_a_bearer_token_and_ends(
    by_secret: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hs(exp=int(time.time()) + 10)

    def asked(header: str) -> str:
        try:
            return by_secret.identify(CIMultiDictProxy(CIMultiDict(Authorization=header))).actor.user_id
        except Refusal as refusal:
            return refusal.code

    assert asked(f"Bearer {token}") == "d1"
    assert asked(f"bearer  {token}") == "d1"
    assert (asked(token), asked(f"Basic {token}"), asked("Bearer ")) == ("missing_token",) * 3
    later = time.time() + 16
    monkeypatch.setattr(auth.time, "time", lambda: later)
    assert asked(f"Bearer {token}") == "token_expired"


def test_long_tokens_are_not_remembered(by_secret: Authenticator) -> None:
    assert by_secret.verify(hs(note="x" * 3000))[0].user_id == "d1"
    assert not by_secret._remembered


@pytest.mark.parametrize(
    "token", ["x", "a.b.c", "....", "é" * 9, "\udcff", "e30.e30.e30", "[" * 4000, "\x00"]
)
def test_garbage_is_no_token(by_secret: Authenticator, token: str) -> None:
    assert code(by_secret, token) == "invalid_token"
    assert code(by_secret, "") == "missing_token"


def test_a_header_nested_too_deeply_is_no_token(by_secret: Authenticator) -> None:
    deep = base64.urlsafe_b64encode(b"[" * 100_000).rstrip(b"=").decode()
    assert code(by_secret, f"{deep}.e30.AA") == "invalid_token"


def test_another_secret_and_no_signature(by_secret: Authenticator) -> None:
    assert code(by_secret, jwt.encode(claims(), "b" * 40, "HS256")) == "invalid_token"
    assert code(by_secret, jwt.encode(claims(), None, "none")) == "invalid_token"
    assert code(by_secret, hs()[:-4] + "AAAA") == "invalid_token"


def test_issuer() -> None:
    strict = authenticator(jwt_secret=SECRET, jwt_issuer="us")
    assert strict.verify(hs(iss="us"))
    assert code(strict, hs(iss="them")) == "invalid_token"
    assert code(strict, hs()) == "invalid_token"


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256")])
def test_public_key_files(tmp_path: Path, key: Any, algorithm: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(key))
    public = authenticator(jwt_public_key_file=path)
    assert public.verify(jwt.encode(claims(), key, algorithm))[0] == Actor("d1", Role.DRIVER)
    assert code(public, jwt.encode(claims(), OTHER_RSA, "RS256")) == "invalid_token"
    assert code(public, hs()) == "invalid_token"


def test_a_public_key_is_never_taken_for_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(RSA))
    # PyJWT refuses to sign like this, so it is done by hand.
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
    hs256 = jwt.get_algorithm_by_name("HS256")
    signature = base64.urlsafe_b64encode(hs256.sign(head + b"." + body, pem(RSA))).rstrip(b"=")
    forged = b".".join((head, body, signature)).decode()
    for settings in ({}, {"jwt_secret": SECRET}):
        assert code(authenticator(jwt_public_key_file=path, **settings), forged) == "invalid_token"
    # Nor may an RSA key be used with another algorithm of its family.
    assert (
        code(authenticator(jwt_public_key_file=path), jwt.encode(claims(), RSA, "RS512"))
        == "invalid_token"
    )


def test_secret_and_public_key_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(EC))
    both = authenticator(jwt_secret=SECRET, jwt_public_key_file=path)
    assert both.verify(hs())
    assert both.verify(jwt.encode(claims(), EC, "ES256"))


def test_jwks(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    keys = [
        jwk(RSA, kid="a"), jwk(OTHER_RSA, kid="b"), jwk(EC, kid="c"),
        jwk(RSA, kid="enc", use="enc"), {"kty": "oct", "kid": "o", "k": "c2VjcmV0"},
    ]  # fmt: skip
    path.write_text(json.dumps({"keys": keys}))
    known = authenticator(jwt_jwks_file=path)
    for key, algorithm, kid in ((RSA, "RS256", "a"), (OTHER_RSA, "RS256", "b"), (EC, "ES256", "c")):
        assert known.verify(jwt.encode(claims(), key, algorithm, {"kid": kid}))
        assert known.verify(jwt.encode(claims(), key, algorithm)), "found without its kid"
    assert code(known, jwt.encode(claims(), RSA, "RS256", {"kid": "b"})) == "invalid_token"
    assert code(known, jwt.encode(claims(), RSA, "RS256", {"kid": "zzz"})) == "invalid_token"
    assert code(known, jwt.encode(claims(), RSA, "RS256", {"kid": "enc"})) == "invalid_token"
    assert code(known, jwt.encode(claims(), "secret" * 8, "HS256", {"kid": "o"})) == "invalid_token"


def test_no_key_at_all() -> None:
    with pytest.raises(SettingsError, match="DISPATCHER_JWT_SECRET"):
        authenticator()


@pytest.mark.parametrize(
    "content",
    [
        None, b"", b"nonsense",
        RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(rsa.generate_private_key(65537, 1024)),
    ],
    ids=["none", "empty", "nonsense", "private", "p384", "short"],
)  # fmt: skip
def test_bad_key_files_are_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^DISPATCHER_JWT_PUBLIC_KEY_FILE: "):
        authenticator(jwt_public_key_file=path)


@pytest.mark.parametrize(
    "content",
    [
        None, "", "[]", "{}", '{"keys": []}', '{"keys": 1}', '{"keys": [1]}', '{"keys": [{}]}',
        '{"keys": [{"kty": "RSA"}]}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
    ],
)  # fmt: skip
def test_bad_jwks_files_are_refused_by_name(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=r"^DISPATCHER_JWT_JWKS_FILE: "):
        authenticator(jwt_jwks_file=path)


def test_the_header_and_the_challenge() -> None:
    assert bearer_token("Bearer x.y.z") == bearer_token("bearer  x.y.z ") == "x.y.z"
    for header in (None, "", "Basic abc", "Bearer", "x.y.z"):
        with pytest.raises(Refusal) as refused:
            bearer_token(header)
        assert refused.value.code == "missing_token"
    assert challenge(Refusal("missing_token")) == 'Bearer realm="dispatcher"'
    assert 'error="invalid_token"' in challenge(Refusal("token_expired"))
