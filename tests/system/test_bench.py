"""The bench scripts work: a small run of each. No test asserts a time."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import psutil
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


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("harness.options")
    monkeypatch.setattr(module, "raise_open_files", lambda: None)
    monkeypatch.setattr(module, "exit_on_signals", lambda: None)
    return module


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ([], True),
        (["--small"], False),
        (["--small", "--results", str(BENCH / "results")], True),
        (["--results", "elsewhere"], False),
    ],
)
def test_a_small_run_leaves_the_published_results(
    options: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: list[str],
    *,
    published: bool,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench.py", *given])
    parser = options.build_parser("a script", seconds=1.0, rounds=1, connections=1)
    args = options.parse(parser, seconds=0.1)
    assert (args.results == BENCH / "results") is published


def test_the_code_of_a_frame(options: ModuleType) -> None:
    client = importlib.import_module("harness.websocket_client")
    refused = b'{"type":"error","id":"p1","status":409,"response_code":"trip_already_assigned"}'
    assert client.frame_code(refused) == "error trip_already_assigned"
    assert client.frame_code(b'{"type":"ack","id":"p1"}') == "ack"


@pytest.mark.bench
@pytest.mark.parametrize("received", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["as the server starts", "during the run"])
def test_an_interrupted_run_stops_its_servers(
    received: signal.Signals, moment: str, tmp_path: Path
) -> None:
    script = BENCH / "sockets.py"
    command = [sys.executable, str(script), "--drivers", "50", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        if moment == "during the run":
            while not run.stdout.readline().startswith(b"engines"):
                assert run.poll() is None
        parent = psutil.Process(run.pid)
        while not (started := parent.children(recursive=True)):
            time.sleep(0.02)
        run.send_signal(received)
        run.communicate(timeout=60)
    assert run.returncode != 0
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert not (tmp_path / "sockets.json").exists()
