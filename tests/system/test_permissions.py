"""A user or role that lacks what a day will need is refused at start, by name, in one sentence."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError

import dispatcher.live
from dispatcher.config import SettingsError
from dispatcher.ledger import migrate
from dispatcher.ledger.cleanup import delete_expired
from dispatcher.ledger.preflight import check_privileges
from dispatcher.live.permissions import CHANNEL_COMMANDS, KEYED_COMMANDS, OTHER_COMMANDS, acl_rules
from dispatcher.live.preflight import check_redis
from dispatcher.resources import LUA_DIR
from tests.harness.least_privilege import (
    ACL_FILE,
    APP_ROLE,
    OWNER_ROLE,
    ROLES_FILE,
    acl_line,
    make_roles,
)
from tests.harness.servers import JWT_SECRET
from tests.harness.services import PLACE, City, driver, open_city
from tests.system.test_cli import _run

AclUser = Callable[..., Awaitable[str]]


@pytest.fixture
async def acl_user(redis_url: str) -> AsyncIterator[AclUser]:
    """Makes a user of the session's Valkey, with these rules after the shipped ones; returns its URL."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        names = []

        async def make(*rules: str) -> str:
            name, password = f"user-{secrets.token_hex(4)}", secrets.token_hex(8)
            shipped = acl_line()[2:]
            await client.execute_command("ACL", "SETUSER", name, *shipped, f">{password}", *rules)
            names.append(name)
            return f"redis://{name}:{password}@{redis_url.partition('@')[2]}"

        yield make
        for name in names:
            await client.execute_command("ACL", "DELUSER", name)


def test_every_command_that_is_run_is_asked_for() -> None:
    run = {
        command
        for path in LUA_DIR.rglob("*.lua")
        # The other inspections are run by operators, as users of their own.
        if path.parent.name != "inspect" or path.stem == "why"
        for command in re.findall(r"redis\.p?call\('(\w+)'", path.read_text())
    }
    for path in Path(dispatcher.live.__path__[0]).glob("*.py"):
        run |= set(re.findall(r"command\(\s*\(?\"([A-Z]+)\"", path.read_text()))
    assert len(run) > 30
    keyed = {name.partition(" ")[0] for name in KEYED_COMMANDS}
    assert run - {"EVAL"} <= {*keyed, *CHANNEL_COMMANDS, *OTHER_COMMANDS}
    assert keyed <= run, "nothing is asked for that nobody runs"


def test_the_acl_file_is_what_the_command_prints() -> None:
    printed = _run("grants", "redis")
    assert printed.returncode == 0
    assert printed.stdout == ACL_FILE.read_text()
    assert acl_line() == ["user", "dispatcher", *acl_rules()]
    assert _run("grants", "postgres").stdout == ROLES_FILE.read_text()


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("ACL", "LIST"), ("SAVE",),
        ("GET", "other"), ("SET", "dsp:default:epoch", "1"), ("SSUBSCRIBE", "other"),
        ("SPUBLISH", "dsp:{default}:other", "x"), ("CLIENT", "LIST"), ("MONITOR",), ("SHUTDOWN",),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
async def test_the_user_may_do_nothing_else(acl_user: AclUser, command: tuple[str, ...]) -> None:
    async with redis.asyncio.Redis.from_url(await acl_user()) as client:
        with pytest.raises((NoPermissionError, ResponseError), match=r"permission|ACL"):
            await client.execute_command(*command)


async def test_what_is_asked_for_is_enough(acl_user: AclUser, database_url: str) -> None:
    url = await acl_user()
    await check_redis(url)
    async with open_city(url, database_url) as city:
        await _a_day(city)
        await city.redis("DEL", city.keys().epoch)
        await city.parts.rehydration.warm("default")


async def _a_day(city: City) -> None:
    """Something of everything that a server does."""
    await city.online("d1", "d2", location=PLACE)
    trip = await city.trip()
    assert (await city.act(driver("d2"), "decline", trip)).status == 200
    assert len(await city.parts.reads.pending_near(driver("d1"), 9)) == 1
    for action in ("accept", "arrive", "start", "complete"):
        assert (await city.act(driver("d1"), action, trip, action)).status == 200
    assert (await city.available("d1", is_online=False)).status == 200
    await city.parts.positions.save()
    await city.parts.snapshots.of(driver("d1"))
    await city.reconcile().run()


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (["-geosearch", "-zadd"], r"its user may not run GEOSEARCH, ZADD$"),
        (["-script|load"], r"its user may not run SCRIPT LOAD$"),
        (["-@write"], r"its user may not run DEL, .*ZADD"),
        (["-eval"], r"its user may not do what a server does: .*'eval'"),
        (["-info"], r"its user may not do what a server does: .*'info'"),
        (["resetkeys"], r"its user may not use the keys dsp:\{@servers\}:alive, .* and 33 more$"),
        (["resetkeys", "~other:*"], r"its user may not use the keys dsp:\{@servers\}:"),
        (["resetkeys", "~dsp:{@servers}:*", "~dsp:{default}:[a-su-z]*"],
         r"its user may not use the keys dsp:\{default\}:trip:\*, dsp:\{default\}:turned-down$"),
        (["resetchannels"], r"its user may not use SPUBLISH, SSUBSCRIBE on the channels dsp:\{\*\}:push, "
         r"dsp:\{@servers\}:changed, dsp:\{@servers\}:loads and 2 more$"),
        (["-hset", "resetchannels"], r"its user may not run HSET; nor use SPUBLISH"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
async def test_an_acl_that_lacks_something(acl_user: AclUser, rules: list[str], reason: str) -> None:
    with pytest.raises(SettingsError, match=r"^DISPATCHER_REDIS_URL: " + reason):
        await check_redis(await acl_user(*rules))


async def test_the_keys_of_every_zone_are_asked_for(acl_user: AclUser) -> None:
    url = await acl_user("resetkeys", "~dsp:{@servers}:*", "~dsp:{default}:*")
    await check_redis(url, zones=["default"])
    with pytest.raises(SettingsError, match=r"may not use the keys dsp:\{north\}:"):
        await check_redis(url, zones=["default", "north"])


async def test_a_replica_is_refused(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(SettingsError, match=r"is a replica of 127\.0\.0\.1:1; give .* primary"):
                await check_redis(redis_url)
        finally:
            await client.execute_command("REPLICAOF", "NO", "ONE")
    await check_redis(redis_url)


@pytest.mark.parametrize(
    ("setting", "value", "normal", "reason"),
    [("maxmemory", "1", "0", "OOM|maxmemory"), ("min-replicas-to-write", "1", "0", "replicas")],
)
async def test_a_redis_that_takes_no_writes(
    redis_url: str, setting: str, value: str, normal: str, reason: str
) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.config_set(setting, value)
        try:
            with pytest.raises(SettingsError, match=rf"Redis cannot be written: .*({reason})"):
                await check_redis(redis_url)
        finally:
            await client.config_set(setting, normal)


PRIVILEGES = {
    "schema_migrations": "SELECT",
    "trip_requests": "SELECT, INSERT, UPDATE",
    "driver_details": "SELECT, INSERT, UPDATE",
    "trip_events": "SELECT, INSERT",
    "idempotency_keys": "SELECT, INSERT, UPDATE, DELETE",
    "trip_offers": "SELECT, INSERT, UPDATE",
    "trip_races": "SELECT, INSERT",
    "zone_authorities": "SELECT, INSERT, UPDATE",
}


class Role:
    """A role with the rights of the shipped one; `owner` is a session that may change that."""

    def __init__(self, name: str, url: str, owner: asyncpg.Connection) -> None:
        self.name, self.owner = name, owner
        self.url = url.replace("://postgres@", f"://{name}@")

    async def make(self) -> None:
        await self.owner.execute(ROLES_FILE.read_text().replace(APP_ROLE, self.name))

    async def drop(self) -> None:
        await self.owner.execute(f"DROP OWNED BY {self.name}; DROP ROLE {self.name}")


@pytest.fixture
async def role(database_url: str) -> AsyncIterator[Role]:
    owner = await asyncpg.connect(database_url)
    made = Role(f"app_{secrets.token_hex(4)}", database_url, owner)
    await made.make()
    yield made
    await made.drop()
    await owner.close()


async def test_those_privileges_are_enough(role: Role, redis_url: str) -> None:
    await check_privileges(role.url)
    assert await migrate.up(role.url) == []
    async with open_city(redis_url, role.url) as city:
        await _a_day(city)
        await city.parts.effects.offer_log.save(city.parts.ledger.database)
    await role.owner.execute("UPDATE idempotency_keys SET expires_at = now()")
    assert await delete_expired(role.url) > 0


async def test_the_role_may_do_what_is_asked_for_and_no_more(role: Role) -> None:
    rows = await role.owner.fetch(
        """
        SELECT c.relname AS name, string_agg(p, ', ' ORDER BY o) AS privileges
          FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES',
                                        'TRIGGER']) WITH ORDINALITY AS t (p, o)
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
           AND has_table_privilege($1, c.oid, p)
         GROUP BY c.relname
        """,
        role.name,
    )
    assert {row["name"]: row["privileges"] for row in rows} == PRIVILEGES
    connection = await asyncpg.connect(role.url)
    try:
        for statement in (
            "CREATE TABLE t ()", "CREATE TEMPORARY TABLE t ()", "DROP TABLE trip_offers", "TRUNCATE trip_events",
            "ALTER TABLE trip_requests ADD COLUMN x int", "DELETE FROM trip_requests",
            "UPDATE trip_events SET event = event", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE SCHEMA s", "CREATE ROLE r", "DELETE FROM schema_migrations",
        ):  # fmt: skip
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_one_role_migrates_and_the_other_serves(empty_database_url: str) -> None:
    await make_roles(empty_database_url)
    owner, app = (
        empty_database_url.replace("://postgres@", f"://{name}@") for name in (OWNER_ROLE, APP_ROLE)
    )
    with pytest.raises(SettingsError, match=r"may not migrate the schema: .* as its owner"):
        await migrate.up(app)
    applied = await migrate.up(owner)
    with pytest.raises(SettingsError, match=r"its role lacks "):
        await check_privileges(app)
    await make_roles(empty_database_url)
    await check_privileges(app)
    assert await migrate.up(app) == []
    with pytest.raises((SettingsError, asyncpg.InsufficientPrivilegeError)):
        await migrate.down(app, 1)
    assert len(await migrate.down(owner, 1_000)) == len(applied)


@pytest.mark.parametrize(
    ("table", "privilege"),
    [(t, p) for t, all_ in PRIVILEGES.items() for p in all_.split(", ") if t != "schema_migrations"],
)
async def test_a_role_that_lacks_a_privilege(role: Role, table: str, privilege: str) -> None:
    await role.owner.execute(f"REVOKE {privilege} ON {table} FROM {role.name}")
    with pytest.raises(SettingsError) as caught:
        await check_privileges(role.url)
    assert str(caught.value) == f"DISPATCHER_DATABASE_URL: its role lacks {privilege} on table {table}"


async def test_a_role_that_lacks_a_function(role: Role) -> None:
    await role.owner.execute("REVOKE EXECUTE ON FUNCTION apply_changes FROM PUBLIC")
    with pytest.raises(SettingsError, match=r"its role lacks EXECUTE on function apply_changes$"):
        await check_privileges(role.url)


async def test_a_role_that_does_not_see_the_schema(role: Role) -> None:
    await role.owner.execute(f"REVOKE USAGE ON SCHEMA public FROM PUBLIC, {role.name}")
    with pytest.raises(SettingsError, match=r"its role sees no table driver_details, .*USAGE"):
        await check_privileges(role.url)
    with pytest.raises(SettingsError, match="its role may not migrate the schema"):
        await migrate.up(role.url)


async def test_a_role_that_may_not_migrate(role: Role) -> None:
    await role.owner.execute("REVOKE SELECT ON schema_migrations FROM PUBLIC")
    await role.owner.execute(f"REVOKE SELECT ON schema_migrations FROM {role.name}")
    for call in (migrate.up, migrate.status):
        with pytest.raises(SettingsError, match=r"may not migrate .*schema_migrations; run .* owner"):
            await call(role.url)
    await role.owner.execute(f"GRANT SELECT ON schema_migrations TO {role.name}")
    await migrate.down(role.url.replace(role.name, "postgres"), 1)
    with pytest.raises(SettingsError, match=r"may not migrate .*(owner|permission)"):
        await migrate.up(role.url)


@pytest.mark.parametrize("engine", ["redis", "postgres"])
async def test_the_command_says_so_in_one_sentence(
    role: Role, acl_user: AclUser, redis_url: str, engine: str
) -> None:
    await role.owner.execute(f"REVOKE INSERT ON trip_events FROM {role.name}")
    settings: dict[str, Any] = {
        "DISPATCHER_REDIS_URL": await acl_user("-xadd") if engine == "redis" else redis_url,
        "DISPATCHER_DATABASE_URL": role.url,
        "DISPATCHER_JWT_SECRET": JWT_SECRET,
    }
    refused = await asyncio.to_thread(_run, "serve", "--port", "0", **settings)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: DISPATCHER_REDIS_URL: its user may not run XADD\n"
        if engine == "redis"
        else "error: DISPATCHER_DATABASE_URL: its role lacks INSERT on table trip_events\n"
    )
