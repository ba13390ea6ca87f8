"""docker-compose.yml: the specification's own schema, and what operators rely on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

FILE = Path(__file__).parents[2] / "docker-compose.yml"
DOCUMENT = yaml.safe_load(FILE.read_text())


def test_it_follows_the_compose_specification() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_is_checked_and_restarted() -> None:
    assert set(DOCUMENT["services"]) == {"dispatcher", "valkey", "postgres"}
    for name, service in DOCUMENT["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name
    waits = DOCUMENT["services"]["dispatcher"]["depends_on"]
    assert {name: on["condition"] for name, on in waits.items()} == {
        "valkey": "service_healthy",
        "postgres": "service_healthy",
    }


def test_no_password_has_a_default() -> None:
    text = FILE.read_text()
    for name in ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "DISPATCHER_JWT_SECRET"):
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses, name
        assert all(use.startswith(":?") for use in uses), name


def test_valkey_never_evicts_and_data_is_kept() -> None:
    valkey, postgres = DOCUMENT["services"]["valkey"], DOCUMENT["services"]["postgres"]
    assert "--maxmemory-policy noeviction" in valkey["command"][-1]
    assert "--appendonly yes" in valkey["command"][-1]
    assert {v.split(":")[0] for s in (valkey, postgres) for v in s["volumes"]} == set(
        DOCUMENT["volumes"]
    )


def test_the_image_is_built_from_the_repository_and_is_not_root() -> None:
    inline = DOCUMENT["services"]["dispatcher"]["build"]["dockerfile_inline"]
    for folder in ("dispatcher", "lua", "sql"):
        assert f"COPY {folder} {folder}" in inline
    assert "\nUSER dispatcher\n" in inline
