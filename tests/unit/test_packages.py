"""The packages that hold the engines are laid out inside as dispatcher/embedded/packages.py expects."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.config import SettingsError
from dispatcher.embedded.packages import postgres_files, postgres_programs, valkey_program


def _version(program: Path) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def test_valkey_is_one_that_the_service_accepts() -> None:
    assert os.access(valkey_program(), os.X_OK)
    major = int(_version(valkey_program()).split("v=")[1].split(".")[0])
    assert major >= 8


@pytest.mark.parametrize("name", ["postgres", "initdb", "psql", "createdb"])
def test_the_programs_of_postgres_18(name: str) -> None:
    assert " 18." in _version(postgres_programs() / name)


def test_the_programs_of_postgres_are_among_its_files() -> None:
    assert postgres_programs().is_relative_to(postgres_files()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only wheels for Linux bundle libraries")
def test_the_libraries_that_the_programs_load_are_among_its_files() -> None:
    command = ["ldd", str(postgres_programs() / "psql")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = [Path(path).resolve() for path in re.findall(r"=> (\S+)", loaded)]
    bundled = [path for path in paths if "pgserver" in str(path)]
    assert bundled
    for path in bundled:
        assert any(path.is_relative_to(tree.resolve()) for tree in postgres_files()), path


def test_a_missing_package_says_what_to_set_or_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"DISPATCHER_REDIS_URL.*\[embedded\]"):
        valkey_program()
    with pytest.raises(SettingsError, match=r"DISPATCHER_DATABASE_URL.*\[embedded\]"):
        postgres_programs()
