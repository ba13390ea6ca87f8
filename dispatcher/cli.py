"""The `dispatcher` command: serve, migrate, token, cleanup, demo, and the operators' tools."""

# ruff: noqa: PLC0415  a command imports what it needs, so that `dispatcher token` is quick

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import structlog

from dispatcher.config import Settings, SettingsError, load_settings
from dispatcher.core.actors import USER_ID
from dispatcher.operations.commands import COMMANDS


class _Finite(click.FloatRange):
    """A number above 0 that is one: neither infinite nor not a number."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that a run can have.", param, ctx)
        return number


def _user_id(_: click.Context, __: click.Parameter, value: str) -> str:
    """The id of a user, as the server takes it from a token."""
    if not USER_ID.fullmatch(value):
        raise click.BadParameter(
            "the server takes 1 to 64 letters, digits or ._:@|- that begin with a letter or digit."
        )
    return value


_DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Directory of the embedded engines."
)


def main() -> None:
    """Entry point. Exit status: 0 done, 1 failed, 2 wrong settings, schema or usage."""
    # Standard output is for results, so log lines go to stderr; the server sets their form later.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        cli()
    except SettingsError as error:
        _exit_with_error(error, status=2)
    except Exception as error:
        if isinstance(error, _refusals()):
            _exit_with_error(error, status=2)
        if isinstance(error, _expected_errors()):
            _exit_with_error(error, status=1)
        raise


@click.group()
@click.version_option(package_name="redis-trip-dispatcher", prog_name="dispatcher")
def cli() -> None:
    """Real-time trip dispatcher: exactly one driver wins each trip.

    Settings come from DISPATCHER_* environment variables; options win over them.
    """


@cli.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
@click.option("--workers", type=int, help="Server processes that share the port.")
@_DATA_DIR
def serve(host: str | None, port: int | None, workers: int | None, data_dir: Path | None) -> None:
    """Run the server, and the embedded engines where no URLs are set."""
    from dispatcher.server import supervisor

    supervisor.serve(_settings(host=host, port=port, workers=workers, data_dir=data_dir))


@cli.command("_worker", hidden=True)
@click.option("--number", type=click.IntRange(min=0), required=True)
@click.option("--metrics-dir", type=click.Path(file_okay=False, path_type=Path), required=True)
def worker(number: int, metrics_dir: Path) -> None:
    """Run one of several server processes; `serve` starts it."""
    from dispatcher.observe.worker_metrics import WorkerPlace
    from dispatcher.server.worker import run_worker

    run_worker(WorkerPlace(number, metrics_dir))


@cli.group()
def migrate() -> None:
    """Bring the database's schema forward or back."""


@migrate.command("up")
@_DATA_DIR
def migrate_up(data_dir: Path | None) -> None:
    """Apply every migration that is missing."""
    from dispatcher.ledger import migrate

    with _database_url(_settings(data_dir=data_dir)) as url:
        _print_labels(asyncio.run(migrate.up(url)), "applied", "nothing to apply")


@migrate.command("down")
@click.option("--steps", type=click.IntRange(min=1), required=True, help="How many to take back.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also while servers are connected.")
@_DATA_DIR
def migrate_down(*, steps: int, yes: bool, force: bool, data_dir: Path | None) -> None:
    """Take back the last migrations. What only they stored is gone, and is named before."""
    from dispatcher.ledger import migrate

    with _database_url(_settings(data_dir=data_dir)) as url:
        preview = asyncio.run(migrate.preview_down(url, steps, force=force))
        for line in preview.losses:
            click.echo(f"goes: {line}", err=True)
        if preview.labels and not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("nobody can be asked here: repeat it with --yes")
            click.confirm(f"Take back {', '.join(preview.labels)}?", abort=True, err=True)
        labels = asyncio.run(migrate.down(url, steps, force=force))
        _print_labels(labels, "reverted", "nothing to revert")


@migrate.command("status")
@_DATA_DIR
def migrate_status(data_dir: Path | None) -> None:
    """Show which migrations the database has."""
    from dispatcher.ledger import migrate

    with _database_url(_settings(data_dir=data_dir)) as url:
        for item in asyncio.run(migrate.status(url)):
            applied = item.applied_at.isoformat(timespec="seconds") if item.applied_at else "-"
            click.echo(f"{item.version:04}_{item.name}  {applied}")


@cli.command()
@click.option("--role", type=click.Choice(["driver", "customer", "admin"]), required=True)
@click.option("--sub", callback=_user_id, required=True, help="Id of the user.")
@click.option("--ttl-s", type=click.IntRange(min=1), default=3_600, show_default=True)
@_DATA_DIR
def token(role: str, sub: str, ttl_s: int, data_dir: Path | None) -> None:
    """Print a signed token for tests and demonstrations."""
    import jwt

    from dispatcher.embedded.engines import development_secret

    settings = _settings(data_dir=data_dir)
    if settings.jwt_secret is not None:
        secret = settings.jwt_secret.get_secret_value()
    elif settings.jwt_public_key_file or settings.jwt_jwks_file:
        raise SettingsError(
            "DISPATCHER_JWT_SECRET: is not set, and the holder of the private key issues tokens"
        )
    elif settings.redis_url and settings.database_url:
        raise SettingsError("DISPATCHER_JWT_SECRET: must be set to the server's secret")
    else:
        secret = development_secret(settings.data_dir)
    now = int(time.time())
    claims: dict[str, object] = {"sub": sub, "role": role, "aud": settings.jwt_audience}
    claims |= {"iat": now, "exp": now + ttl_s}
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    click.echo(jwt.encode(claims, secret, algorithm="HS256"))


@cli.command()
@click.option("--chunk", type=click.IntRange(min=1), default=1_000, show_default=True)
@_DATA_DIR
def cleanup(chunk: int, data_dir: Path | None) -> None:
    """Delete expired rows, a chunk in each transaction."""
    from dispatcher.ledger import cleanup, migrate
    from dispatcher.ledger.preflight import check_privileges

    with _database_url(_settings(data_dir=data_dir)) as url:
        asyncio.run(migrate.check_current(url))
        asyncio.run(check_privileges(url))
        click.echo(f"{asyncio.run(cleanup.delete_expired(url, chunk))} rows deleted")


@cli.command()
@click.option(
    "--pickups",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of real pickups to replay.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Trips at most.")
@click.option("--drivers", type=click.IntRange(min=1), help="Simulated drivers.")
@click.option("--speed", type=_Finite(), help="Times real time.")
@click.option("--minutes", type=_Finite(), help="How long to run.")
@click.option("--keep", is_flag=True, help="Stay up afterwards, with all data, until Ctrl-C.")
@click.option("--port", type=int, help="Port to listen on; unset: 8080 where it is free.")
@_DATA_DIR
def demo(
    *,
    pickups: Path | None,
    limit: int | None,
    drivers: int | None,
    speed: float | None,
    minutes: float | None,
    keep: bool,
    port: int | None,
    data_dir: Path | None,
) -> None:
    """Run a simulated city against a server of its own, and show it on the console."""
    from dispatcher import demo

    options = _given(pickups=pickups, limit=limit, drivers=drivers, speed=speed, minutes=minutes)
    sys.exit(demo.run(_settings(data_dir=data_dir, port=port), keep=keep, **options))


for _command in COMMANDS:
    cli.add_command(_command)


def _settings(**options: object) -> Settings:
    """The settings of the environment; options that were given win over them."""
    return load_settings(**_given(**options))


def _given(**options: object) -> dict[str, Any]:
    """The options that are on the command line."""
    return {name: value for name, value in options.items() if value is not None}


@contextlib.contextmanager
def _database_url(settings: Settings) -> Iterator[str]:
    """The database to work on: the one that is set, or else the embedded one.

    An embedded Postgres that runs is used as it is; one that does not is started for the length of
    the command.
    """
    from dispatcher.embedded.engines import Engines, running_database_url
    from dispatcher.ledger.preflight import check_postgres

    if settings.database_url is not None:
        asyncio.run(check_postgres(settings.database_url))
        yield settings.database_url
        return
    running = running_database_url(settings.data_dir)
    if running is not None:
        yield running
        return
    with Engines(settings.data_dir, redis=False) as urls:
        yield urls.database_url


def _print_labels(labels: list[str], verb: str, nothing: str) -> None:
    for label in labels:
        click.echo(f"{verb} {label}")
    if not labels:
        click.echo(nothing)


def _refusals() -> tuple[type[Exception], ...]:
    """Errors by which nothing was begun, since what is there is not what this program works with."""
    from dispatcher.ledger.migrate import SchemaError

    return (SchemaError,)


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is all that an operator needs; all others are bugs and keep their trace."""
    from dispatcher.demo.server import DemoError
    from dispatcher.embedded.process import EngineError
    from dispatcher.ledger.migrate import MigrationError
    from dispatcher.server.process_pool import ServerError

    return (DemoError, EngineError, MigrationError, ServerError)


def _exit_with_error(error: Exception, *, status: int) -> None:
    for line in str(error).splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(status)
