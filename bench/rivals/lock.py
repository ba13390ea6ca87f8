"""The old way, done well: one Postgres transaction an accept, with `SELECT … FOR UPDATE`.

The same stack (aiohttp, uvloop, asyncpg with its prepared statements), the same checks: identity,
idempotency, trip, driver. No Redis, no rate limits, no push, so it does rather less than the
dispatcher. A verified token is remembered until it expires.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import orjson
from aiohttp import web
from listen import options, serve


def statements() -> dict[str, str]:
    """The blocks of lock.sql by name."""
    text = Path(__file__).with_name("lock.sql").read_text()
    blocks = (block.partition("\n") for block in text.split("-- name: ")[1:])
    return {name.strip(): body.strip() for name, _, body in blocks}


SQL = statements()


class RefusedError(Exception):
    """The accept is refused; nothing was changed."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class Accepting:
    """The one handler, with what it needs."""

    def __init__(self, pool: asyncpg.Pool, secret: str) -> None:
        self.pool = pool
        self.secret = secret
        self.known: dict[str, tuple[str, float]] = {}

    async def handle(self, request: web.Request) -> web.Response:
        try:
            driver = self.driver_of(request)
            raw = await request.read()
            body = orjson.loads(raw)
            key = request.headers.get("Idempotency-Key")
            status, answer = await self.accept(driver, body["trip_request_id"], key, raw)
        except RefusedError as refusal:
            status = refusal.status
            answer = orjson.dumps({"response_code": refusal.code, "status": status})
        return web.Response(body=answer, status=status, content_type="application/json")

    def driver_of(self, request: web.Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        subject, expires = self.known.get(token, ("", 0.0))
        if expires > time.time():
            return subject
        try:
            claims = jwt.decode(token, self.secret, algorithms=["HS256"], audience="dispatcher")
        except jwt.PyJWTError:
            raise RefusedError(401, "unauthorized") from None
        if claims.get("role") != "driver":
            raise RefusedError(403, "forbidden")
        if len(self.known) >= 100_000:
            self.known.clear()
        self.known[token] = (claims["sub"], claims["exp"])
        return str(claims["sub"])

    async def accept(self, driver: str, trip_id: str, key: str | None, raw: bytes) -> tuple[int, bytes]:
        fingerprint = hashlib.sha256(raw).digest()
        async with self.pool.acquire() as connection:
            if key is not None:
                kept = await connection.fetchrow(SQL["find_answer"], driver, key)
                if kept is not None:
                    if kept["fingerprint"] != fingerprint:
                        raise RefusedError(422, "idempotency_key_reused")
                    return kept["status"], kept["answer"]
            async with connection.transaction():
                return await self.assign(connection, driver, trip_id, key, fingerprint)

    async def assign(
        self, connection: Any, driver: str, trip_id: str, key: str | None, fingerprint: bytes
    ) -> tuple[int, bytes]:
        trip = await connection.fetchrow(SQL["lock_trip"], trip_id)
        if trip is None:
            raise RefusedError(404, "trip_not_found")
        if trip["status"] != "pending":
            raise RefusedError(409, "trip_already_assigned")
        state = await connection.fetchrow(SQL["lock_driver"], driver)
        if state is None or not state["is_online"]:
            raise RefusedError(409, "driver_not_online")
        if state["availability_status"] != "available" or state["trip_id"] is not None:
            raise RefusedError(409, "driver_not_available")
        changed = await connection.fetchrow(SQL["assign_trip"], trip_id, driver)
        await connection.execute(SQL["assign_driver"], driver, trip_id)
        document = {
            "response_code": "trip_accepted",
            "trip": {**trip, **changed, "status": "accepted", "driver_id": driver},
        }
        answer = orjson.dumps(document, default=lambda point: [point.x, point.y])
        payload = orjson.dumps({"driver_id": driver}).decode()
        await connection.execute(SQL["add_event"], trip_id, changed["version"], driver, payload)
        if key is not None:
            await connection.execute(SQL["keep_answer"], driver, key, fingerprint, 200, answer)
        return 200, answer


async def create_database(url: str, name: str) -> None:
    """An empty database of its own beside the dispatcher's."""
    connection = await asyncpg.connect(url)
    await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    connection = await asyncpg.connect(url, database=name)
    await connection.execute(SQL["schema"])
    await connection.close()


def main() -> None:
    parser = options("one transaction an accept, SELECT … FOR UPDATE")
    parser.add_argument("--database-url", required=True, help="a Postgres that may be written to")
    parser.add_argument("--database", default="bench_lock", help="made anew at each start")
    parser.add_argument("--pool", type=int, default=10, help="connections to Postgres")
    chosen = parser.parse_args()

    async def build() -> web.Application:
        await create_database(chosen.database_url, chosen.database)
        pool = await asyncpg.create_pool(
            chosen.database_url,
            database=chosen.database,
            min_size=chosen.pool,
            max_size=chosen.pool,
        )
        app = web.Application()
        accepting = Accepting(pool, os.environ["BENCH_JWT_SECRET"])
        app.router.add_post("/api/driver/ride/trip-action", accepting.handle)
        return app

    serve(build, chosen.host, chosen.port)


if __name__ == "__main__":
    main()
