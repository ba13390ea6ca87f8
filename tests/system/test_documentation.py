"""The README and docs/ are true: tables are held against the code, links lead somewhere, commands are run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dispatcher.cli import cli
from dispatcher.client.replies import PASSING_CODES
from dispatcher.config import ENV_PREFIX, Settings
from dispatcher.core.errors import PROBLEMS
from dispatcher.live.keys import Keys
from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.protocol import CloseCode
from tests.harness.servers import Serve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
API, INTEGRATE, KEYS, OPERATE, SETTINGS = (
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("api", "integrate", "keys", "operate", "settings")
)
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]  # fmt: skip


def _rows(page: str, name: str) -> list[list[str]]:
    """The cells of a page's table between its markers, without its head."""
    text = page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->", 1)[0]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_every_setting_is_documented() -> None:
    documented = {row[0].strip("`"): row for row in _rows(SETTINGS, "settings")}
    assert list(documented) == [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        _, default, description = documented[ENV_PREFIX + name.upper()]
        assert description == field.description
        if not field.is_required() and field.default_factory is None:
            value = field.default
            text = str(value).lower() if isinstance(value, bool) else str(value)
            assert default.strip("`") == ("" if value in (None, "") else text), name


def test_every_endpoint_is_documented() -> None:
    documented = [row[0].strip("`") for row in _rows(API, "endpoints")]
    assert sorted(documented) == sorted(f"{e.method} {e.path}" for e in ENDPOINTS)


def test_every_key_is_documented() -> None:
    documented = {row[0].strip("`") for row in _rows(KEYS, "keys")}
    keys = Keys("z")
    names = {"trip_id": "trip", "driver_id": "driver", "limit_class": "class", "user_id": "user"}
    made = {value.replace("{z}", "{zone}") for name, value in vars(keys).items() if name[0] not in "_z"}
    for name in dir(Keys):
        method = getattr(Keys, name)
        if name.startswith("_") or not callable(method):
            continue
        arguments = method.__code__.co_varnames[1 : method.__code__.co_argcount]
        made.add(method(keys, *(f"<{names.get(a, a)}>" for a in arguments)).replace("{z}", "{zone}"))
    documented = {key.replace("<role>:<user>", "<user>") for key in documented}
    assert made == documented


def test_every_close_code_is_documented() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d{4}) \|", API, re.MULTILINE)}
    assert documented == set(CloseCode)


def test_every_command_is_documented() -> None:
    documented = {}
    for row in _rows(OPERATE, "commands"):
        _, name, *words = re.split(r"[ |\\\[\]]+", row[0].strip("`"))
        documented[name] = set(words)
    commands = {name: command for name, command in cli.commands.items() if not command.hidden}
    assert set(documented) == set(commands)
    for name, command in commands.items():
        parts = command.commands if isinstance(command, click.Group) else {}
        options = {
            option
            for part in (command, *parts.values())
            for parameter in part.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        assert parts.keys() <= documented[name], name
        assert {word for word in documented[name] if word.startswith("--")} == options - {
            "--data-dir"
        }, name


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            led_to = (page.parent / path).resolve() if path else page
            if not led_to.exists() or (anchor and anchor not in _anchors(led_to)):
                broken.append((page.name, target))
    assert broken == []


def _prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, by GitHub's rule."""
    titles = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {
        (ROOT / target).resolve()
        for target in re.findall(r"\]\(([^)#\s]+)", README)
        if "://" not in target
    }
    assert [page.relative_to(ROOT) for page in PAGES[1:] if page not in linked] == []


def test_the_readme_is_one_screen_with_a_picture() -> None:
    assert len(README.splitlines()) <= 120
    [picture] = re.findall(r"!\[[^\]]+\]\((\S+\.png)\)", README)
    content = (ROOT / picture).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 300_000


def test_the_page_for_integrators_shows_the_app_that_is_tested() -> None:
    shown = INTEGRATE.split("<!-- driver app -->\n```python\n")[1].split("```")[0]
    assert shown == (ROOT / "docs" / "driver_app.py").read_text()
    assert len(shown.splitlines()) <= 34


def test_the_page_for_integrators() -> None:
    passing = INTEGRATE.split("<!-- passing -->")[1].split("<!-- /passing -->")[0]
    assert set(re.findall(r"`(\w+)`", passing)) == PASSING_CODES
    rows = INTEGRATE.split("| code | the app |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows.splitlines()[2:])))
    assert named <= set(PROBLEMS) - PASSING_CODES
    assert "aiohttp" in INTEGRATE.split("<!-- run webhook -->")[1].split("```")[1]
    for block in INTEGRATE.split("```python\n")[1:]:
        compile(block.split("```")[0], "docs/integrate.md", "exec")


def test_the_commands_come_first_and_ci_runs_them() -> None:
    command = "pip install uv && uv run pytest"
    assert README.index("uv run dispatcher demo") < README.index(command) < README.index("## ")
    ci = (ROOT / ".ci" / "run").read_text()
    assert "uv run pytest" in ci


def test_no_registry_and_no_lock() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "uv.lock" not in listed.stdout.split()


async def test_the_walk_and_the_same_walk_again(serve: Serve, tmp_path: Path) -> None:
    server = await serve()
    for _ in range(2):
        out = await _walk(server.url, tmp_path)
        assert out.count('"response_code":"availability_updated"') == 3
        assert out.count('"response_code":"trip_accepted"') == 2
        assert out.lower().count("x-idempotent-replay: true") == 1
        assert "trip_already_assigned" in out
        assert '"current_status":"pending","version":2' in out.splitlines()[-1]


async def test_the_lines_for_redis_cli(redis_url: str) -> None:
    """Each line runs as it stands against a stock redis-cli."""
    if shutil.which("redis-cli") is None:
        pytest.skip("there is no redis-cli here")
    lines = [line for line in OPERATE.splitlines() if line.startswith('redis-cli -u "$REDIS_URL"')]
    assert len(lines) >= 9
    for line in lines:
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", line.replace("TRIP_ID", "default_1")],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env={**os.environ, "REDIS_URL": redis_url},
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
        assert "ERR" not in done.stdout, (line, done.stdout)


async def test_the_lines_for_psql(serve: Serve) -> None:
    """Each line runs as it stands against the database of a server."""
    if shutil.which("psql") is None:
        pytest.skip("there is no psql here")
    server = await serve()
    lines = [line for line in OPERATE.splitlines() if line.startswith('psql "$DATABASE_URL"')]
    assert len(lines) >= 2
    for line in lines:
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", line.replace(" -f ", " -v ON_ERROR_STOP=1 -f ")],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env={**os.environ, "DATABASE_URL": server.database_url},
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
        assert "(0 rows)" in done.stdout, (line, done.stdout)


async def _walk(url: str, directory: Path) -> str:
    """What the README's walk prints, taken against the server at `url`."""
    script = README.split("<!-- walk -->")[1].split("```bash\n")[1].split("```")[0]
    script = script.replace("http://127.0.0.1:8080", url)
    script = script.replace("uv run dispatcher", f"{sys.executable} -m dispatcher")
    script = script.replace("python3 -c", f"{sys.executable} -c")
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={
            **os.environ,
            "DISPATCHER_JWT_SECRET": "a-secret-for-tests-with-more-than-32-bytes",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
