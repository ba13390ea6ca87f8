"""What a schema is made of, and what is gone of it."""

from __future__ import annotations

from typing import Any, Final

import aiosql

from dispatcher.resources import SQL_DIR

_queries: Final[Any] = aiosql.from_path(SQL_DIR / "schema_objects.sql", "asyncpg")


async def schema_objects(connection: Any) -> dict[tuple[str, str], str]:
    """Every object of the schema by kind and name, with a column's table and a function's text."""
    rows = [row async for row in _queries.list_objects(connection)]
    return {(row["kind"], row["name"]): row["detail"] for row in rows}


async def schema_losses(
    connection: Any, before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]
) -> list[str]:
    """One line for each object that is there before and not after, and for each text that changes.

    The connection still has all that was there before: the rows of a table are counted.
    """
    gone = before.keys() - after.keys()
    losses = [
        await _loss(connection, kind, name)
        for (kind, name), detail in before.items()
        # Columns are named where their table stays.
        if (kind, name) in gone and (kind != "column" or ("table", detail) not in gone)
    ]
    changed = [name for (kind, name), text in before.items() if after.get((kind, name), text) != text]
    return losses + [f"function {name}: its former text comes back" for name in changed]


async def _loss(connection: Any, kind: str, name: str) -> str:
    if kind != "table":
        return f"{kind} {name}"
    rows: int = await connection.fetchval(await _queries.statement_that_counts(connection, name=name))
    return f"table {name}: {rows} rows"
