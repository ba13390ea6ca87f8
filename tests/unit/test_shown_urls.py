"""The ready line's URLs: no password that was given, and a user where redis-cli needs one."""

from __future__ import annotations

import pytest

from dispatcher.config import shown_url
from dispatcher.server.supervisor import shown_redis_url


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://:hunter2@host:6379/1", "redis://default:***@host:6379/1"),
        ("rediss://:hunter2@host", "rediss://default:***@host"),
        ("redis://app:hunter2@host:6379", "redis://app:***@host:6379"),
        ("unix://:hunter2@/run/redis.sock?db=1", "unix://default:***@/run/redis.sock?db=1"),
        ("unix:///run/redis.sock?password=hunter2&db=1", "unix:///run/redis.sock?password=***&db=1"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("unix:///run/a:b@c.sock", "unix:///run/a:b@c.sock"),
        (
            "rediss+sentinel://app:hunter2@a:1,b:2/main/1?sentinel_password=hunter3&ssl_ca_certs=/ca",
            "rediss+sentinel://app:***@a:1,b:2/main/1?sentinel_password=***&ssl_ca_certs=/ca",
        ),
        ("redis+cluster://:hunter2@[::1]:7000,b", "redis+cluster://default:***@[::1]:7000,b"),
    ],
)
def test_a_redis_url(given: str, shown: str) -> None:
    assert shown_redis_url(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://app:hunter2@host/db", "postgresql://app:***@host/db"),
        ("postgresql:///db?host=/run&password=hunter2", "postgresql:///db?host=/run&password=***"),
        ("postgresql://app@/db?host=/run", "postgresql://app@/db?host=/run"),
    ],
)
def test_a_database_url(given: str, shown: str) -> None:
    assert shown_url(given) == shown
