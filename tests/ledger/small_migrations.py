"""Small migrations in a directory, and a look at the database that they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg


async def query(url: str, sql: str, *args: Any) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql, *args)]
    finally:
        await connection.close()


def write(directory: Path, label: str, up: str, down: str) -> None:
    (directory / f"{label}.up.sql").write_text(up)
    (directory / f"{label}.down.sql").write_text(down)
