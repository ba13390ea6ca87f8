"""The operators' commands. Exit status: 0 all is well, 1 something was found, 2 bad input or an engine away."""

# ruff: noqa: PLC0415  a command imports what it needs, so that `dispatcher token` is quick

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dispatcher.config import SettingsError, load_settings

if TYPE_CHECKING:
    from dispatcher.operations.workbench import Workbench

_DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Directory of the embedded engines."
)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.option("--trip", required=True, help="Id of the trip.")
@click.option("--driver", required=True, help="Id of the driver.")
@_AS_JSON
@_DATA_DIR
def why(*, trip: str, driver: str, as_json: bool, data_dir: Path | None) -> None:
    """Explain what keeps a driver from a trip: each filter with what it saw, and what happened."""
    from dispatcher.operations.explain import explain, explained_lines

    found = _work(data_dir, lambda bench: explain(bench, trip, driver))
    _print(found, explained_lines(found), as_json=as_json)


COMMANDS = (why,)


def _work(data_dir: Path | None, work: Callable[[Workbench], Awaitable[Any]]) -> Any:
    """What `work` makes of the engines. Raises SettingsError, whose exit status is 2."""
    from dispatcher.core.errors import Refusal, StoreUnavailable
    from dispatcher.ledger.migrate import MigrationError
    from dispatcher.operations.workbench import open_workbench

    settings = load_settings(**({} if data_dir is None else {"data_dir": data_dir}))

    async def worked() -> Any:
        async with open_workbench(settings) as bench:
            return await work(bench)

    try:
        return asyncio.run(worked())
    except Refusal as refusal:
        raise SettingsError(refusal.message) from None
    except StoreUnavailable as error:
        raise SettingsError(f"an engine does not answer any more: {error}; try again") from None
    except MigrationError as error:
        raise SettingsError(str(error)) from None


def _print(found: Any, lines: list[str], *, as_json: bool) -> None:
    click.echo(json.dumps(found, indent=2, default=str) if as_json else "\n".join(lines))


def _exit_with(status: int) -> None:
    if status:
        sys.exit(status)
