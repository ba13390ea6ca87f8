"""The operators' commands. Exit status: 0 all is well, 1 something was found, 2 it could not be done."""

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


@click.command()
@click.option("--zone", help="One zone; all of them otherwise.")
@click.option("--repair", is_flag=True, help="Repair what differs, one thing at a time.")
@_AS_JSON
@_DATA_DIR
def fsck(*, zone: str | None, repair: bool, as_json: bool, data_dir: Path | None) -> None:
    """Compare Redis with Postgres while servers run. Exit status 1 where something differs."""
    from dispatcher.operations.fsck import fsck as compare
    from dispatcher.operations.fsck import fsck_lines

    def work(bench: Workbench) -> Awaitable[dict[str, Any]]:
        return compare(bench, _zones(bench, zone), repairs=repair)

    result = _work(data_dir, work)
    _print(result, fsck_lines(result), as_json=as_json)
    _exit_with(1 if result["remaining"] else 0)


@click.command()
@click.option("--zone", required=True, help="The zone.")
@_AS_JSON
@_DATA_DIR
def rebuild(*, zone: str, as_json: bool, data_dir: Path | None) -> None:
    """Drop a zone's live state and load it anew from Postgres, while servers run."""
    from dispatcher.operations.rebuild import rebuild as load_anew
    from dispatcher.operations.rebuild import rebuild_lines

    result = _work(data_dir, lambda bench: load_anew(bench, _zones(bench, zone)[0]))
    _print(result, rebuild_lines(result), as_json=as_json)


@click.command()
@click.argument("trip")
@_AS_JSON
@_DATA_DIR
def replay(*, trip: str, as_json: bool, data_dir: Path | None) -> None:
    """Show a trip's events and offers in order. Exit status 1 where its row is not what follows."""
    from dispatcher.operations.replay import replay as replayed
    from dispatcher.operations.replay import replay_lines

    result = _work(data_dir, lambda bench: replayed(bench, trip))
    _print(result, replay_lines(result), as_json=as_json)
    _exit_with(1 if result["faults"] or result["differences"] else 0)


@click.command()
@click.argument("engine", type=click.Choice(["redis", "postgres"]))
def grants(engine: str) -> None:
    """Print what gives a server the rights that it needs, and no others.

    For Redis, a line of an ACL file; for Postgres, SQL that makes a role for servers and one that
    migrates. Passwords are in neither.
    """
    from dispatcher.live.permissions import acl_rules
    from dispatcher.resources import SQL_DIR

    if engine == "redis":
        click.echo(f"user dispatcher {' '.join(acl_rules())}")
    else:
        click.echo((SQL_DIR / "roles.sql").read_text(), nl=False)


COMMANDS = (why, fsck, rebuild, replay, grants)


def _zones(bench: Workbench, name: str | None) -> list[str]:
    """The zones that are meant. Raises SettingsError where there is none of that name."""
    names = bench.zones.names()
    if name is not None and name not in names:
        raise SettingsError(f"--zone: there is no zone {name}; there are {', '.join(names[:20])}")
    return names if name is None else [name]


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
