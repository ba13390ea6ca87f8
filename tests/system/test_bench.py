"""The bench scripts work: a small run of each. No test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SCRIPTS = sorted(path.stem for path in BENCH.glob("*.py") if path.stem != "report")


@pytest.mark.bench
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_small_run(name: str, tmp_path: Path) -> None:
    script = BENCH / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), "--small", "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert {"machine", "versions", "settings", "results"} <= document.keys()
    assert document["results"]
    assert (tmp_path / f"{name}.png").stat().st_size > 1_000


def test_every_script_is_described() -> None:
    readme = (BENCH / "README.md").read_text()
    missing = [name for name in SCRIPTS if f"`{name}.py`" not in readme]
    assert not missing
