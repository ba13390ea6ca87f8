"""The options every script has."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.generator import raise_open_files
from harness.servers import Server, running_at, start_dispatcher

RESULTS = Path(__file__).parent.parent / "results"


def parser(about: str, *, seconds: float, rounds: int, connections: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = made.add_argument
    add("--seconds", type=float, default=seconds, help="length of one measured run")
    add("--rounds", type=int, default=rounds, help="rounds; figures are medians over them")
    add("--connections", type=int, default=connections, help="connections of the generator")
    add("--small", action="store_true", help="the smallest run that still shows that it works")
    add("--results", type=Path, default=RESULTS, help="where the JSON and the plot go")
    add("--url", help="aim at a running server instead of starting one; it needs wide limits")
    add("--jwt-secret", help="with --url: the HS256 secret of that server")
    add("--redis-url", help="with --url: the server's Redis, for its accounts and settings")
    add("--database-url", help="with --url: the server's Postgres, likewise")
    return made


def parse(made: argparse.ArgumentParser, **small: Any) -> argparse.Namespace:
    """Parse; with `--small`, the values in `small` win over the rest."""
    chosen = made.parse_args()
    if chosen.url and not chosen.jwt_secret:
        made.error("--url needs --jwt-secret: the drivers' tokens are minted here")
    if chosen.small:
        for name, value in small.items():
            setattr(chosen, name, value)
    raise_open_files()
    return chosen


def shown(chosen: argparse.Namespace) -> dict[str, Any]:
    """The settings as a report prints them: without secrets."""
    hidden = {"jwt_secret", "redis_url", "database_url", "results"}
    return {k: v for k, v in vars(chosen).items() if k not in hidden and v not in (None, False)}


@contextmanager
def target(chosen: argparse.Namespace, **start: Any) -> Iterator[Server]:
    """The server that the options name, or one of our own."""
    if chosen.url:
        server = running_at(chosen.url, chosen.jwt_secret, chosen.redis_url, chosen.database_url)
    else:
        server = start_dispatcher(**start)
    with server:
        yield server
