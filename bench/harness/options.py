"""The options that every script has, and the server and the folder of results that they select."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.interruption import exit_on_signals
from harness.load_process import raise_open_files
from harness.servers import Server, running_at, start_dispatcher

PUBLISHED_RESULTS = Path(__file__).parent.parent / "results"


def build_parser(
    about: str, *, seconds: float, rounds: int, connections: int
) -> argparse.ArgumentParser:
    """A parser with the options of every script; the arguments are their defaults."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=seconds, help="length of one measured run")
    add("--rounds", type=int, default=rounds, help="rounds; figures are medians over them")
    add("--connections", type=int, default=connections, help="connections of the generator")
    add("--small", action="store_true", help="the smallest run that still shows that it works")
    add(
        "--results",
        type=Path,
        default=argparse.SUPPRESS,
        help=f"folder of the JSON and the plot (default: {PUBLISHED_RESULTS.name}/, which is published;"
        " with --small, a temporary folder)",
    )
    add("--url", help="measure a running server instead of starting one; it needs wide limits")
    add("--jwt-secret", help="with --url: the HS256 secret of that server")
    add("--redis-url", help="with --url: the server's Redis, for its CPU and settings")
    add("--database-url", help="with --url: the server's Postgres, likewise")
    return parser


def parse(parser: argparse.ArgumentParser, **small: Any) -> argparse.Namespace:
    """Parse the command line; with `--small`, the values in `small` replace the others.

    A small run does not write over the published results, unless `--results` names their folder.
    """
    args = parser.parse_args()
    if args.url and not args.jwt_secret:
        parser.error("--url needs --jwt-secret: the drivers' tokens are minted here")
    if args.small:
        for name, value in small.items():
            setattr(args, name, value)
    if "results" not in args:
        args.results = PUBLISHED_RESULTS
        if args.small:
            args.results = Path(tempfile.mkdtemp(prefix="dispatcher-bench-results-"))
    raise_open_files()
    exit_on_signals()
    return args


def shown(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that a report prints, without secrets and addresses."""
    hidden = {"jwt_secret", "redis_url", "database_url", "results"}
    return {k: v for k, v in vars(args).items() if k not in hidden and v not in (None, False)}


@contextmanager
def target(args: argparse.Namespace, **start: Any) -> Iterator[Server]:
    """The server at `--url`, or one that is started for this run and stopped afterwards."""
    if args.url:
        server = running_at(args.url, args.jwt_secret, args.redis_url, args.database_url)
    else:
        server = start_dispatcher(**start)
    with server:
        yield server
