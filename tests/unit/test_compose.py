"""docker-compose.yml and what it mounts: the specification's own schema, and what operators rely on."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from dispatcher.config import ENV_PREFIX, Settings
from dispatcher.core.errors import Refusal
from dispatcher.embedded.packages import valkey_program
from dispatcher.service.answers import refusal_answer
from tests.harness.valkey_nodes import free_ports

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
DOCUMENT = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
SERVERS = {name: service for name, service in SERVICES.items() if name.startswith("dispatcher-")}
HAPROXY = (ROOT / "docs" / "deploy" / "haproxy.cfg").read_text()
MONITORING = ROOT / "docs" / "monitoring"
PROMETHEUS = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
PASSWORDS = ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "DISPATCHER_JWT_SECRET", "GRAFANA_PASSWORD")


def _environment(name: str) -> dict[str, str]:
    """The environment of a service, with a password wherever one is asked for."""
    return {
        key: re.sub(r"\$\{\w+:\?[^}]*\}", "p" * 32, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
        for key, value in SERVICES[name]["environment"].items()
    }


def _settings(name: str) -> Settings:
    given = {key: value for key, value in _environment(name).items() if key.startswith(ENV_PREFIX)}
    names = {key: key.removeprefix(ENV_PREFIX).lower() for key in given}
    assert set(names.values()) <= set(Settings.model_fields), "there is no such setting"
    return Settings(**{names[key]: value for key, value in given.items()})  # type: ignore[arg-type]


def test_it_follows_the_compose_specification() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_servers_and_all_that_they_need() -> None:
    others = {"balancer", "valkey", "postgres", "prometheus", "grafana"}
    assert set(SERVICES) == others | {"dispatcher-1", "dispatcher-2"}
    for service in SERVERS.values():
        waits = service["depends_on"]
        assert {name: on["condition"] for name, on in waits.items()} == {
            "valkey": "service_healthy",
            "postgres": "service_healthy",
        }


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_checked_restarted_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name not in SERVERS:
        # A version and what comes after its first dot, so that nothing new comes by itself.
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", service["image"])
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "who publishes it says so"


def test_no_password_has_a_default() -> None:
    text = FILE.read_text()
    for name in PASSWORDS:
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses, name
        assert all(use.startswith(":?") for use in uses), name
    for secret in DOCUMENT["secrets"].values():
        assert secret["environment"] in PASSWORDS


def test_engines_are_reached_by_servers_alone() -> None:
    assert DOCUMENT["networks"]["back"]["internal"] is True
    for name in ("valkey", "postgres"):
        assert SERVICES[name]["networks"] == ["back"]
        assert "ports" not in SERVICES[name]
    on_back = {name for name, service in SERVICES.items() if "back" in service["networks"]}
    assert on_back == {"valkey", "postgres", *SERVERS}
    assert not any("ports" in service for service in SERVERS.values())


@pytest.mark.parametrize("name", SERVERS)
def test_the_settings_of_a_server(name: str) -> None:
    settings = _settings(name)
    network = DOCUMENT["networks"]["front"]["ipam"]["config"][0]
    balancer = ip_address(SERVICES["balancer"]["networks"]["front"]["ipv4_address"])
    assert balancer in ip_network(network["subnet"])
    assert balancer not in ip_network(network["ip_range"]), "another container may have it"
    assert settings.trusted_proxies == [ip_network(balancer)]
    assert "metrics" not in settings.public_pages
    assert settings.redis_url == f"redis://:{'p' * 32}@valkey:6379/0"
    assert settings.database_url == f"postgresql://dispatcher:{'p' * 32}@postgres:5432/dispatcher"
    grace = SERVICES[name]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > settings.drain_s + 5
    assert f":{settings.port}/readyz" in SERVICES[name]["healthcheck"]["test"][-1]
    assert settings.max_connections < SERVICES[name]["ulimits"]["nofile"]


def test_the_balancer_leads_to_every_server() -> None:
    servers = re.findall(r"^\s+server (\S+) (\S+):(\d+) ", HAPROXY, re.MULTILINE)
    assert servers == [(name, name, str(_settings(name).port)) for name in SERVERS]
    assert SERVICES["balancer"]["ports"] == ["127.0.0.1:8080:8080"]
    assert "bind :8080\n" in HAPROXY
    connections = int(re.findall(r"maxconn (\d+)", HAPROXY)[0])
    assert SERVICES["balancer"]["ulimits"]["nofile"] > 2 * connections, "one to each side"
    deadline = _settings("dispatcher-1").request_deadline_s
    assert int(re.findall(r"timeout server (\d+)s", HAPROXY)[0]) > deadline
    tunnel = int(re.findall(r"timeout tunnel (\d+)m", HAPROXY)[0])
    assert tunnel * 60 > _settings("dispatcher-1").presence_ttl_s


def test_the_balancer_speaks_like_a_server() -> None:
    answer = refusal_answer(Refusal("service_unavailable", retry_after=1))
    [(said, after)] = re.findall(r"string '(.*)' hdr Retry-After (\d+)", HAPROXY)
    assert json.loads(said) == json.loads(answer.body)
    assert int(after) == answer.retry_after_s


def test_prometheus_asks_the_private_address_of_every_server() -> None:
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in PROMETHEUS["scrape_configs"]}
    ports = {name: str(_settings(name).metrics_address).rpartition(":")[2] for name in SERVERS}
    assert jobs["dispatcher"] == [f"{name}:{port}" for name, port in ports.items()]
    assert jobs["balancer"] == ["balancer:8404"]
    assert "bind :8404\n" in HAPROXY
    assert 'job="dispatcher"' in (MONITORING / "alerts.yml").read_text()


def test_what_is_mounted_exists() -> None:
    mounts = [v for s in SERVICES.values() for v in s.get("volumes", ())]
    assert {v.split(":")[0] for v in mounts if not v.startswith("./")} == set(DOCUMENT["volumes"])
    for mount in mounts:
        if mount.startswith("./"):
            assert (ROOT / mount.split(":")[0]).exists(), mount
            assert mount.endswith(":ro"), mount
    [rules] = PROMETHEUS["rule_files"]
    assert (MONITORING / Path(rules).relative_to("/etc/monitoring")).exists()


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = MONITORING / "provisioning"
    grafana = SERVICES["grafana"]["environment"]["GF_PATHS_PROVISIONING"]
    assert MONITORING / Path(grafana).relative_to("/etc/monitoring") == provisioning
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert set(SERVICES["grafana"]["networks"]) & set(SERVICES["prometheus"]["networks"])
    [provider] = yaml.safe_load((provisioning / "dashboards" / "dispatcher.yml").read_text())[
        "providers"
    ]
    folder = MONITORING / Path(provider["options"]["path"]).relative_to("/etc/monitoring")
    # Grafana takes every JSON file below the folder.
    assert [path.name for path in folder.rglob("*.json")] == ["dashboard.json"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    text = (MONITORING / "prometheus.yml").read_text().replace("/etc/monitoring", str(tmp_path))
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


async def test_the_valkey_that_its_command_starts(tmp_path: Path) -> None:
    """The command as it stands, but for the entry point of the image, and on a port of its own."""
    [port] = free_ports(1)
    secret = tmp_path / "redis_password"
    secret.write_text("a-password")
    shell, option, command = SERVICES["valkey"]["command"]
    program = f"{valkey_program()} - --bind 127.0.0.1 --port {port}"
    command = command.replace("$$", "$").replace("/run/secrets/redis_password", str(secret))
    assert command.startswith("exec docker-entrypoint.sh valkey-server - <<")
    command = command.replace("docker-entrypoint.sh valkey-server -", program, 1)
    process = await asyncio.create_subprocess_exec(
        shell, option, command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            async for line in process.stdout:
                if b"Ready to accept connections" in line:
                    break
        with redis.Redis(port=port, password="a-password", decode_responses=True) as client:
            configured: Any = client.config_get("maxmemory-policy", "appendonly", "appendfsync")
            assert configured == {
                "maxmemory-policy": "noeviction",
                "appendonly": "yes",
                "appendfsync": "everysec",
            }
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        process.terminate()
        async with asyncio.timeout(30):
            await process.communicate()
    assert process.returncode == 0, "the signal to stop comes to Valkey itself"


def test_the_image_is_built_of_what_docker_is_given_and_is_not_root() -> None:
    for server in SERVERS.values():
        inline = server["build"]["dockerfile_inline"]
        copied = {
            name
            for line in re.findall(r"^COPY (.*) \S+$", inline, re.MULTILINE)
            for name in line.split()
        }
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        assert lines[1] == "*"
        assert {line[1:] for line in lines if line.startswith("!")} == copied
        assert {"dispatcher", "lua", "sql"} <= copied
        assert "\nUSER dispatcher\n" in inline
