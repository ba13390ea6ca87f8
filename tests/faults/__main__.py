"""`python -m tests.faults --rounds 20 --seed 1`: rounds of faults, each of a seed of its own, as a table."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

import click

from tests.faults import kinds
from tests.faults.run import Outcome, play


@click.command()
@click.option("--rounds", default=20, show_default=True, help="how many rounds")
@click.option(
    "--seed", default=1, show_default=True, help="seed of the first round; the next has the next"
)
@click.option(
    "--seconds", default=10.0, show_default=True, help="how long faults come, each kind at least once"
)
@click.option("--keep", is_flag=True, help="keep the directory of a round that broke a promise")
def main(rounds: int, seed: int, seconds: float, keep: bool) -> None:
    """Plays rounds; the exit status is 1 if one of them broke a promise."""
    click.echo(
        f"{'seed':>6} {'faults':>6} {'calls':>6} {'success':>7} {'events':>6} {'quiet s':>7}  broken"
    )
    # A run that is told to stop takes its servers and engines down, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    broken = 0
    for number in range(seed, seed + rounds):
        directory = Path(tempfile.mkdtemp(prefix="dispatcher-faults-"))
        outcome = asyncio.run(play(directory, number, seconds, kinds.ALL))
        _show(outcome)
        broken += bool(outcome.breaches)
        if outcome.breaches and keep:
            click.echo(f"       kept: {directory}")
        else:
            shutil.rmtree(directory)
    click.echo(f"{rounds} rounds, {broken} broke a promise")
    raise SystemExit(bool(broken))


def _stop(number: int, frame: object) -> None:
    # `timeout` and `uv` both pass the signal on; the second one must not end the cleaning up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _show(outcome: Outcome) -> None:
    click.echo(
        f"{outcome.seed:>6} {len(outcome.faults):>6} {outcome.attempts:>6} {outcome.successes:>7}"
        f" {outcome.events:>6} {outcome.quiet_s:>7.1f}  {len(outcome.breaches)}"
    )
    for message in outcome.errors:
        click.echo(f"       logged as an error: {message}")
    if outcome.breaches:
        click.echo(f"       faults: {' '.join(outcome.faults)}")
        for line in outcome.breaches:
            click.echo(f"       {line}")


main()
