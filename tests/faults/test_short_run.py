"""A short run of the fault suite, by another seed each time, which pytest names; FAULTS_SEED sets it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.run import play


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("started_before")
async def test_every_promise_holds_after_faults(data_dir: Path) -> None:
    """Two servers, two zones: a kill, a pause, a flush and a failover, and others while there is time."""
    seed = int(os.environ["FAULTS_SEED"])
    outcome = await play(data_dir, seed, fault_s=8.0)
    assert not outcome.breaches, (f"FAULTS_SEED={seed}", outcome)
    assert {"kill_server", "pause_server", "flush", "fail_over"} <= set(
        "+".join(outcome.faults).split("+")
    )
    assert outcome.successes > 50, outcome
