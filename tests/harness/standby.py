"""A second Postgres that follows the embedded one by streaming, and can be promoted."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from dispatcher.embedded.postgres import Postgres


class Standby:
    """A standby of a running embedded Postgres, in a directory beside its own."""

    def __init__(self, primary: Postgres, directory: Path) -> None:
        self._primary = primary
        self.postgres = Postgres(directory)
        self.url = self.postgres.url
        self._directory = directory

    async def start(self) -> None:
        """Copies the primary, follows it from there on, and takes questions."""
        self._directory.mkdir(mode=0o700)
        if (account := self._primary._account) is not None:
            os.chown(self._directory, account.pw_uid, account.pw_gid)
        source = ["--host", host_of(self._primary.url), "--username", "postgres"]
        copying = ["--pgdata", str(self._directory), "--checkpoint=fast", "--write-recovery-conf"]
        made = await asyncio.to_thread(self._primary._run, "pg_basebackup", *source, *copying)
        assert made.returncode == 0, made.stderr
        self.postgres.launch()
        await self._answers("SELECT pg_is_in_recovery()", expected=True)

    async def promote(self) -> None:
        """Makes it the primary."""
        await self._answers("SELECT pg_promote()", expected=True)
        await self._answers("SELECT pg_is_in_recovery()", expected=False)

    async def caught_up_with(self, position: str) -> None:
        """Waits until it has all that was written up to a position of the log."""
        await self._answers(f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn", expected=True)

    async def _answers(self, question: str, *, expected: bool) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    connection = await asyncpg.connect(self.url, timeout=5)
                    try:
                        if await connection.fetchval(question) is expected:
                            return
                    finally:
                        connection.terminate()
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pass  # it starts
                await asyncio.sleep(0.02)


def host_of(url: str) -> str:
    """The directory of a Postgres' socket."""
    return parse_qs(urlsplit(url).query)["host"][0]


def url_of_both(first: str, second: str) -> str:
    """One URL that lists the hosts of two."""
    return f"postgresql://postgres@/dispatcher?host={host_of(first)},{host_of(second)}"
