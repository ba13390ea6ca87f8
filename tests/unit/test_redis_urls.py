"""What Redis URLs say, and those that say nothing: refused in one sentence, without their passwords."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dispatcher.config import load_settings
from dispatcher.live.address import (
    CREDENTIALS,
    SENTINEL_OPTIONS,
    TLS_OPTIONS,
    Kind,
    RedisAddress,
    parse_address,
)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://host", RedisAddress(Kind.NODE, (("host", 6379),))),
        (
            "redis://app:a%20secret@[::1]:7000/3?client_name=d1",
            RedisAddress(
                Kind.NODE,
                (("::1", 7000),),
                options={"username": "app", "password": "a secret", "db": 3, "client_name": "d1"},
            ),
        ),
        (
            "unix:///run/redis.sock?db=2",
            RedisAddress(Kind.NODE, (), options={"path": "/run/redis.sock", "db": 2}),
        ),
        (
            "redis+sentinel://app:secret@a,b:26380/main/1?sentinel_username=w&sentinel_password=x",
            RedisAddress(
                Kind.SENTINEL,
                (("a", 26379), ("b", 26380)),
                "main",
                {"username": "app", "password": "secret", "db": 1},
                {"username": "w", "password": "x"},
            ),
        ),
        (
            "redis+cluster://:secret@a:7000,[::1]:7001,c",
            RedisAddress(
                Kind.CLUSTER, (("a", 7000), ("::1", 7001), ("c", 6379)), options={"password": "secret"}
            ),
        ),
    ],
)
def test_what_a_url_says(url: str, address: RedisAddress) -> None:
    assert parse_address(url) == address
    assert load_settings(redis_url=url).has_redis_cluster == (address.kind is Kind.CLUSTER)
    assert "secret" not in repr(parse_address(url))


def test_the_urls_of_the_page_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    urls = re.findall(r"[`'](?:DISPATCHER_REDIS_URL=')?((?:rediss?(?:\+\w+)?|unix)://[^`'…]+)[`']", page)
    kinds = [parse_address(url).kind for url in urls]
    assert set(kinds) == set(Kind)
    options = set(re.findall(r"`(\w+)`", page.split("| option |")[1].split("\n\n")[0]))
    assert {*TLS_OPTIONS, *SENTINEL_OPTIONS, *CREDENTIALS, "db"} <= options


@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel", "rediss+cluster"])
def test_tls_is_asked_for_by_the_scheme(scheme: str) -> None:
    url = f"{scheme}://host" + ("/main" if "sentinel" in scheme else "")
    assert parse_address(url).tls is not None
    assert parse_address(url.replace("rediss", "redis")).tls is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:hunter2@a,b", "names several hosts"),
        ("redis://:hunter2@a:port", "names a host or port that is none"),
        ("redis://:hunter2@a:70000", "names a host or port that is none"),
        ("redis://:hun/ter2@a", "names a host or port that is none"),
        ("redis://a/hunter2", "its path is not the number of a database"),
        ("redis://a?protocol=3", "does not take the option protocol; it takes client_name, db"),
        ("redis://a?db=x", "Invalid value for 'db'"),
        ("redis://a?sentinel_password=hunter2", "does not take the option sentinel_password"),
        ("redis+sentinel://:hunter2@a", "names no master"),
        ("redis+sentinel://a,,b/main", "names a host that is empty"),
        ("redis+cluster://a,b/1", "a cluster has no database but 0"),
        ("redis+cluster://", "names a host that is empty"),
        ("redis://a?ssl_ca_certs=/ca.pem", "ssl_ca_certs needs rediss://"),
        ("rediss://a?ssl_cert_reqs=never", "ssl_cert_reqs takes none, optional, required"),
        ("rediss://a?ssl_keyfile=/key.pem", "ssl_keyfile needs ssl_certfile"),
    ],
)
def test_what_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)
