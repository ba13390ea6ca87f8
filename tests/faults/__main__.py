"""`python -m tests.faults --rounds 20 --seed 1`: rounds of faults, each of a seed of its own, as a table."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from dispatcher.embedded.engines import Engines
from tests.faults import kinds
from tests.faults.run import Outcome, play
from tests.harness.bytecode import keep_bytecode


@click.command()
@click.option("--rounds", default=20, show_default=True, help="how many rounds")
@click.option(
    "--seed", default=1, show_default=True, help="seed of the first round; the next has the next"
)
@click.option(
    "--seconds", default=10.0, show_default=True, help="how long faults come, each kind at least once"
)
@click.option(
    "--kind",
    "kind_names",
    multiple=True,
    type=click.Choice(sorted(kinds.BY_NAME)),
    help="this fault alone, once a round and again while there is time; may be given several times",
)
@click.option(
    "--sizes-every",
    "sized_every_s",
    default=0.0,
    help="look at memory, files and connections of the servers this often, in s; none of them is killed then",
)
@click.option("--keep", is_flag=True, help="keep the directory of a round that broke a promise")
def main(
    rounds: int, seed: int, seconds: float, kind_names: tuple[str, ...], sized_every_s: float, keep: bool
) -> None:
    """Plays rounds; the exit status is 1 if one of them broke a promise."""
    click.echo(
        f"{'seed':>6} {'faults':>6} {'calls':>6} {'success':>7} {'events':>6} {'quiet s':>7}  broken"
    )
    # Servers that compile what they import are slow for their first seconds.
    atexit.register(keep_bytecode())
    # A run that is told to stop takes its servers and engines down, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    faults = [kinds.BY_NAME[name] for name in kind_names] or list(kinds.ALL)
    if sized_every_s:
        faults = [fault for fault in faults if fault not in kinds.SERVERS_DIE]
    with tempfile.TemporaryDirectory(prefix="dispatcher-cluster-") as cluster:
        with Engines(Path(cluster), redis=False):
            pass
        one = partial(
            play, fault_s=seconds, always=faults, others=faults, small_disk=True,
            cluster=Path(cluster) / "postgres", sized_every_s=sized_every_s,
        )  # fmt: skip
        broken = _play(range(seed, seed + rounds), one, keep=keep)
    click.echo(f"{rounds} rounds, {broken} broke a promise")
    raise SystemExit(bool(broken))


def _play(seeds: Iterable[int], one: Callable[..., Coroutine[Any, Any, Outcome]], *, keep: bool) -> int:
    """Plays a round of each seed; returns how many broke a promise."""
    broken = 0
    for number in seeds:
        directory = Path(tempfile.mkdtemp(prefix="dispatcher-faults-"))
        outcome = asyncio.run(one(directory, number))
        _show(outcome)
        broken += bool(outcome.breaches)
        if outcome.breaches and keep:
            click.echo(f"       kept: {directory}")
        else:
            shutil.rmtree(directory)
    return broken


def _stop(number: int, frame: object) -> None:
    # `timeout` and `uv` both pass the signal on; the second one must not end the cleaning up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _show(outcome: Outcome) -> None:
    click.echo(
        f"{outcome.seed:>6} {len(outcome.faults):>6} {outcome.attempts:>6} {outcome.successes:>7}"
        f" {outcome.events:>6} {outcome.quiet_s:>7.1f}  {len(outcome.breaches)}"
    )
    for size in outcome.sizes:
        click.echo(f"       {size}")
    for reason in dict.fromkeys(outcome.skipped):
        click.echo(f"       skipped: {reason}")
    for message in outcome.errors:
        click.echo(f"       logged as an error: {message}")
    if outcome.breaches:
        click.echo(f"       faults: {' '.join(outcome.faults)}")
        for line in outcome.breaches:
            click.echo(f"       {line}")


main()
