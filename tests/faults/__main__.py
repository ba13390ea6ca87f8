"""`python -m tests.faults --rounds 20 --seed 1`: rounds of faults, each of a seed of its own, as a table."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from dispatcher.embedded.engines import Engines
from tests.faults import kinds
from tests.faults.kinds.fault import Fault
from tests.faults.run import Outcome, play


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
@click.option("--keep", is_flag=True, help="keep the directory of a round that broke a promise")
def main(rounds: int, seed: int, seconds: float, kind_names: tuple[str, ...], keep: bool) -> None:
    """Plays rounds; the exit status is 1 if one of them broke a promise."""
    click.echo(
        f"{'seed':>6} {'faults':>6} {'calls':>6} {'success':>7} {'events':>6} {'quiet s':>7}  broken"
    )
    # A run that is told to stop takes its servers and engines down, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    faults = [kinds.BY_NAME[name] for name in kind_names] or kinds.ALL
    with tempfile.TemporaryDirectory(prefix="dispatcher-cluster-") as cluster:
        with Engines(Path(cluster), redis=False):
            pass
        broken = _play(range(seed, seed + rounds), seconds, faults, Path(cluster) / "postgres", keep)
    click.echo(f"{rounds} rounds, {broken} broke a promise")
    raise SystemExit(bool(broken))


def _play(
    seeds: Iterable[int], seconds: float, faults: Sequence[Fault], cluster: Path, keep: bool
) -> int:
    """Plays a round of each seed; returns how many broke a promise."""
    broken = 0
    for number in seeds:
        directory = Path(tempfile.mkdtemp(prefix="dispatcher-faults-"))
        outcome = asyncio.run(
            play(directory, number, seconds, faults, faults, small_disk=True, cluster=cluster)
        )
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
    for reason in dict.fromkeys(outcome.skipped):
        click.echo(f"       skipped: {reason}")
    for message in outcome.errors:
        click.echo(f"       logged as an error: {message}")
    if outcome.breaches:
        click.echo(f"       faults: {' '.join(outcome.faults)}")
        for line in outcome.breaches:
            click.echo(f"       {line}")


main()
