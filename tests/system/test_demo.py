"""The demo as a user runs it, and what it checks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from rich.console import Console

from dispatcher import demo
from dispatcher.client import Reply
from dispatcher.config import Settings, SettingsError
from dispatcher.demo import runner
from dispatcher.demo.car import Car, distance_m
from dispatcher.demo.invariants import Finding, check_invariants
from dispatcher.demo.pickups import BUNDLED_PICKUPS, read_pickups
from dispatcher.demo.requests import Requests, is_same_answer
from dispatcher.demo.server import Server, running_server, scaled_waves, scaled_zones
from dispatcher.demo.stats import Stats, percentile
from dispatcher.demo.view import View
from dispatcher.zones_file import load_zones
from tests.harness.servers import wait_for_end

_CITY = ["--limit", "60", "--drivers", "60", "--speed", "600"]


def _command(*more: str) -> list[str]:
    return [sys.executable, "-m", "dispatcher", "demo", *_CITY, *more]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if "DISPATCHER_" not in name}
    return given | {"TMPDIR": str(tmp_path), "DISPATCHER_DRAIN_S": "1"}


def _values(report: str) -> dict[str, str]:
    """The rows of the table at the end; names and values are set apart by two spaces."""
    found = re.findall(r"^(\S.*?|  \S.*?) {2,}(\S.*)$", report, re.MULTILINE)
    return {name.strip(): value for name, value in found}


async def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=100,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


async def test_a_small_city(environment: dict[str, str], data_dir: Path) -> None:
    status, said = await _run(_command("--data-dir", str(data_dir)), environment)
    assert status == 0, said
    verdict = re.search(
        r"^every invariant held: 60 trips, (\d+) winners, 0 double assignments", said, re.M
    )
    assert verdict is not None, said
    assert int(verdict[1]) >= 55
    assert verdict.start() < said.index("\nassigned "), "the verdict comes before the table"
    assert "\nwave: " in said, "the words of the table are explained"
    rows = _values(said)
    assert rows["double assignments"] == "0"
    assert rows["replay mismatches"] == "0"
    assert rows["answered successes not in Postgres"] == "0"
    assert rows["trips"].startswith("60 created")
    share = float(rows["of those in reach of a free driver"].split()[0])
    assert share > 95, said
    assert int(rows["refused"]) > 0, "no crowd fought for any trip"
    assert int(rows["replayed"].partition(";")[0]) > 0
    for latency in ("creation to offer", "accept to customer", "time to assignment"):
        assert re.match(r"p50 [\d.]+ m?s, p99 [\d.]+ m?s", rows[latency])


@pytest.mark.usefixtures("started_before")
async def test_it_ends_early_when_asked(environment: dict[str, str], data_dir: Path) -> None:
    command = _command("--data-dir", str(data_dir), "--speed", "60")
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if b"trips " in line:
            process.send_signal(signal.SIGINT)
            break
    said = (await process.stdout.read()).decode()
    assert await process.wait() == 0, said
    assert _values(said)["double assignments"] == "0"


@pytest.mark.usefixtures("started_before")
async def test_a_kept_demo_stays_up_with_its_console(
    environment: dict[str, str], data_dir: Path
) -> None:
    command = _command("--data-dir", str(data_dir), "--limit", "20", "--keep", "--port", "0")
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        lines = []
        async for line in process.stdout:
            lines.append(line.decode())
            if len(lines) > 4 and line.startswith(b"sql:"):
                break
        # Once at the beginning, before anything is simulated, and once at the end.
        assert [line.partition(":")[0] for line in lines[1:4]] == ["console", "redis", "sql"]
        assert lines[1] == lines[-3]
        url, _, token = lines[1].split()[1].partition("/console#token=")
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token.strip()}"}
        ) as session:
            async with session.get(f"{url}/console") as page:
                assert page.status == 200
            async with session.get(f"{url}/api/admin/zones") as zones:
                (zone,) = (await zones.json())["zones"]
                assert zone["outline"]["type"] in ("Polygon", "MultiPolygon"), "the map shows the city"
            async with session.get(f"{url}/api/admin/rides?limit=100") as trips:
                assert len((await trips.json())["trips"]) == 20
    finally:
        process.send_signal(signal.SIGINT)
    assert await process.wait() == 0
    assert await asyncio.to_thread(wait_for_end, data_dir, 20.0) == []


async def test_two_that_start_at_once_have_a_port_each(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    async def start(name: str, stack: contextlib.AsyncExitStack) -> str:
        settings = Settings(redis_url=redis_url, database_url=database_url, data_dir=tmp_path / name)
        return (await stack.enter_async_context(running_server(settings, 60.0))).url

    async with contextlib.AsyncExitStack() as one, contextlib.AsyncExitStack() as other:
        urls = await asyncio.gather(start("a", one), start("b", other))
        assert len(set(urls)) == 2
        async with aiohttp.ClientSession() as session:
            for url in urls:
                async with session.get(f"{url}/healthz") as alive:
                    assert alive.status == 200


@pytest.mark.usefixtures("started_before")
async def test_nothing_outlives_a_killed_demo(environment: dict[str, str], data_dir: Path) -> None:
    command = _command("--data-dir", str(data_dir), "--speed", "60")
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if b"trips " in line:
            break
    process.kill()
    await process.wait()
    assert await asyncio.to_thread(wait_for_end, data_dir, 20.0) == []


async def test_invariants_hold_in_an_empty_database(database_url: str) -> None:
    findings = await check_invariants(database_url)
    assert [finding.violations for finding in findings] == [0] * len(findings)


_TRIP = """
INSERT INTO trip_requests (id, zone, customer_id, driver_id, current_status, version, pickup_location)
VALUES ($1, 'default', 'c', $2, $3, $4, '(-74, 40.7)')"""
_EVENT = """
INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role, payload, created_at)
VALUES ($1, $2, $3, $4, 'driver', jsonb_build_object('current_status', $5::text, 'driver_id', $6::text),
        to_timestamp($7))"""


class Forger:
    """Writes what the dispatcher never would."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def trip(self, name: str, driver: str | None, status: str, version: int) -> None:
        await self._connection.execute(_TRIP, f"default_{name}", driver, status, version)

    async def history(self, name: str, *steps: tuple[str, str, str, str | None, int]) -> None:
        for version, (event, actor, status, holder, at_s) in enumerate(steps):
            await self._connection.execute(
                _EVENT, f"default_{name}", version, event, actor, status, holder, float(at_s)
            )


@pytest.fixture
async def connection(database_url: str) -> object:
    connected = await asyncpg.connect(database_url)
    yield connected
    await connected.close()


async def _broken(database_url: str, answered: list[tuple[str, int]] | None = None) -> dict[str, int]:
    findings = await check_invariants(database_url, answered or [])
    return {finding.name: finding.violations for finding in findings if finding.violations}


async def test_a_trip_taken_twice_is_found(database_url: str, connection: asyncpg.Connection) -> None:
    forger = Forger(connection)
    await forger.trip("t", "d2", "accepted", 2)
    await forger.history(
        "t",
        ("created", "c", "pending", None, 1),
        ("accepted", "d1", "accepted", "d1", 2),
        ("accepted", "d2", "accepted", "d2", 3),
    )
    assert await _broken(database_url) == {"double assignments": 1}


async def test_a_trip_taken_again_after_a_release_is_right(
    database_url: str, connection: asyncpg.Connection
) -> None:
    forger = Forger(connection)
    await forger.trip("t", "d2", "accepted", 3)
    await forger.history(
        "t",
        ("created", "c", "pending", None, 1),
        ("accepted", "d1", "accepted", "d1", 2),
        ("released", "d1", "pending", None, 3),
        ("accepted", "d2", "accepted", "d2", 4),
    )
    assert await _broken(database_url) == {}


async def test_a_driver_in_two_trips_at_once_is_found(
    database_url: str, connection: asyncpg.Connection
) -> None:
    forger = Forger(connection)
    for name, begin, end in (("a", 10, 30), ("b", 20, 40), ("c", 40, 50)):
        await forger.trip(name, "d", "cancelled", 2)
        await forger.history(
            name,
            ("created", "c", "pending", None, 1),
            ("accepted", "d", "accepted", "d", begin),
            ("cancelled", "c", "cancelled", "d", end),
        )
    assert await _broken(database_url) == {"double assignments": 1}


async def test_a_second_active_trip_is_found(database_url: str, connection: asyncpg.Connection) -> None:
    await connection.execute("DROP INDEX trip_requests_one_active_per_driver")
    forger = Forger(connection)
    for name, at_s in (("a", 2), ("b", 3)):
        await forger.trip(name, "d", "ongoing", 1)
        await forger.history(
            name,
            ("created", "c", "pending", None, 1),
            ("accepted", "d", "ongoing", "d", at_s),
        )
    assert await _broken(database_url) == {"double assignments": 2}  # by state, and by history


async def test_gaps_and_lies_in_histories_are_found(
    database_url: str, connection: asyncpg.Connection
) -> None:
    forger = Forger(connection)
    await forger.trip("gap", None, "pending", 2)
    await forger.history("gap", ("created", "c", "pending", None, 1))
    await forger.trip("lie", None, "expired", 0)
    await forger.history("lie", ("created", "c", "pending", None, 1))
    await forger.trip("none", None, "pending", 0)
    assert await _broken(database_url) == {
        "histories with gaps": 2,
        "states unlike their history": 1,
    }


async def test_a_trip_held_by_somebody_offline_is_found(
    database_url: str, connection: asyncpg.Connection
) -> None:
    forger = Forger(connection)
    await connection.execute("INSERT INTO driver_details (user_id, zone) VALUES ('d', 'default')")
    await forger.trip("t", "d", "accepted", 1)
    await forger.history(
        "t", ("created", "c", "pending", None, 1), ("accepted", "d", "accepted", "d", 2)
    )
    assert await _broken(database_url) == {"trips held by drivers who are offline": 1}


async def test_offers_that_came_to_something_else_are_found(
    database_url: str, connection: asyncpg.Connection
) -> None:
    forger = Forger(connection)
    await connection.execute(
        "INSERT INTO driver_details (user_id, zone, is_online) VALUES ('d', 'default', true)"
    )
    await forger.trip("t", "d", "accepted", 1)
    await forger.history(
        "t", ("created", "c", "pending", None, 1), ("accepted", "d", "accepted", "d", 20)
    )
    await connection.execute(
        "INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at, deadline, outcome, outcome_at)"
        " SELECT e.trip_id, offer.driver, 1, e.created_at + offered, e.created_at + interval '8 s', 'withdrawn',"
        "        e.created_at + ended FROM trip_events e,"
        " (VALUES ('d', -interval '1 s', interval '0 s'), ('x', -interval '1 s', -interval '2 s'),"
        "         ('y', -interval '1 s', interval '0 s')) AS offer (driver, offered, ended)"
        " WHERE e.event = 'accepted'"
    )
    assert await _broken(database_url) == {"offers that came to something else": 2}


async def test_answers_without_effect_are_found(
    database_url: str, connection: asyncpg.Connection
) -> None:
    forger = Forger(connection)
    await forger.trip("t", None, "pending", 0)
    await forger.history("t", ("created", "c", "pending", None, 1))
    for key, version in (("right", 0), ("wrong", 1)):
        await connection.execute(
            "INSERT INTO idempotency_keys (idempotency_key, user_id, endpoint, zone, request_payload,"
            " request_fingerprint, response_payload, status_code, expires_at)"
            " VALUES ($1, 'd', 'e', 'default', '{}', $2, $3, 200, now())",
            key, "0" * 64, f'{{"trip": {{"id": "default_t", "version": {version}}}}}',
        )  # fmt: skip
    answered = [("default_t", 0), ("default_t", 1), ("default_u", 0)]
    assert await _broken(database_url, answered) == {
        "kept answers without effect": 1,
        "answered successes not in Postgres": 2,
    }


@pytest.mark.parametrize("broken", [True, False])
def test_the_exit_status_tells(monkeypatch: pytest.MonkeyPatch, *, broken: bool) -> None:
    outcome = {
        "created": 1, "assigned": 1, "reachable": 1, "waves": {"1": 1}, "answered": [],
        "mismatched": [],
    }  # fmt: skip
    state = {"counts": {}, "trips": {}, "latencies": {}, "mismatches": 0, "outcome": outcome}

    class _Serving:
        async def __aenter__(self) -> Server:
            return Server("", "", "s" * 32, 0)

        async def __aexit__(self, *_: object) -> None: ...

    async def live(*_: object) -> object:
        return state

    async def check(*_: object) -> list[Finding]:
        return [Finding("double assignments", int(broken), ("d: t",) * broken)]

    monkeypatch.setattr(runner, "running_server", lambda *_: _Serving())
    monkeypatch.setattr(runner, "_run_city_process", live)
    monkeypatch.setattr(runner, "check_invariants", check)
    assert demo.run(Settings(), limit=2) == int(broken)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("when,lat,lng\n", "line 1: the columns"),
        ("picked_up_at,lat,lng\n2014-09-05T16:00:00,40.7,-74\nnever,1,1\n", "line 3"),
        ("picked_up_at,lat,lng\n2014-09-05T16:00:00,91,-74\n", "line 2: 91.0"),
        ("picked_up_at,lat,lng\n2014-09-05T16:00:00,nan,-74\n", "line 2: nan"),
        ("picked_up_at,lat,lng\n2014-09-05T16:00:00,40.7\n", "line 2"),
        ("picked_up_at,lat,lng\n2014-09-05T16:00:00,40.7,-74\n", "two pickups"),
        ("", "line 1"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "pickups.csv"
    file.write_text(text)
    with pytest.raises(SettingsError, match=says):
        read_pickups(file, None)


def test_the_shipped_pickups() -> None:
    begins, pickups = read_pickups(BUNDLED_PICKUPS, None)
    assert f"{begins:%A %H:%M}" == "Friday 16:00"
    assert len(pickups) == 1_038
    assert pickups[0].after_s == 0
    assert [p.after_s for p in pickups] == sorted(p.after_s for p in pickups)
    assert len(read_pickups(BUNDLED_PICKUPS, 10)[1]) == 10


def test_cars_and_percentiles() -> None:
    here, there = (40.7559, -73.9864), (40.7306, -73.9866)
    assert distance_m(here, there) == pytest.approx(2_813, rel=0.01)
    car = Car(here, speed_m_s=1_000_000)
    assert car.drive_to(there) == pytest.approx(0.0028, rel=0.02)
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99, 1)] == [50, 99, 100]
    assert percentile([], 0.5) is None


def test_waves_are_faster_but_answerable() -> None:
    assert scaled_waves(1) == scaled_waves(0.5)
    assert scaled_waves(60)[0].deadline_s == pytest.approx(scaled_waves(1)[0].deadline_s / 10)


def test_rounds_of_matching_are_faster_too(tmp_path: Path) -> None:
    file = tmp_path / "zones.toml"
    for speed, every_s, head_start_s in ((1, 3.0, 5.0), (2, 1.5, 2.5), (600, 0.5, 0.5)):
        file.write_text(scaled_zones(speed))
        zone = load_zones(file).get("default")
        assert zone is not None
        assert (zone.matching.every_s, zone.matching.head_start_s) == (every_s, head_start_s)


def test_a_replay_is_the_same_answer() -> None:
    first = Reply(200, {"response_code": "trip_accepted", "trip": {"version": 1}}, False, b"x")
    frame = {"type": "ack", "id": 7, "status": 200, "replayed": True, **first.body}
    assert is_same_answer(first, Reply(200, frame, True))
    assert not is_same_answer(first, Reply(200, first.body, True, b"y"))
    assert not is_same_answer(first, Reply(200, {**frame, "trip": {"version": 2}}, True))


@pytest.mark.parametrize("turns", range(4))
async def test_a_call_that_is_cancelled_as_it_is_answered_ends(turns: int) -> None:
    """A driver whose trip is taken away at that moment must not go on with it."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    async def send() -> Reply:
        return await answer

    call = asyncio.create_task(Requests(Stats(), random.Random(2)).request("arrive", send))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answer.set_result(Reply(200, {"response_code": "trip_arrived"}, replayed=False))
    for _ in range(turns):
        await asyncio.sleep(0)
    if call.cancel():
        with pytest.raises(asyncio.CancelledError):
            await call


def test_a_terminal_gets_a_picture() -> None:
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    state = {
        "counts": {"offers": 3}, "trips": {"pending": 1}, "drivers": {"free": 2}, "replayed": 1,
        "latencies": {"accept": [3, 0.01, 1.5]}, "accepts_per_s": 0.5, "mismatches": 0,
        "simulated_s": 90.0, "phase": "day",
    }  # fmt: skip
    begins, _ = read_pickups(BUNDLED_PICKUPS, 2)
    with View(console, begins=begins, speed=60, trips=10) as view:
        view.update(state)
        console.print(view._dashboard(state))
    shown = console.export_text()
    assert "Fri 16:01" in shown
    assert "1.50 s" in shown


def test_the_picture_is_of_one_width_and_names_its_tail() -> None:
    begins, _ = read_pickups(BUNDLED_PICKUPS, 2)
    states = [
        {
            "counts": {"offers": count}, "trips": {"completed": done, "cancelled": 226 - done, "ongoing": 10_000, "accepted": 10_000},
            "drivers": {"free": count, "to pickup": count, "riding": count, "on a break": count},
            "replayed": 229, "latencies": latencies, "accepts_per_s": 0.5,
            "mismatches": 0, "simulated_s": simulated_s, "phase": phase,
        }
        for count, done, latencies, simulated_s, phase in (
            (0, 0, {}, None, "day"), (12_345, 3, {"accept": [3, 0.01, 1.5]}, 90.0, "day"),
            (12_345, 7, {"accept": [3, 0.01, 1.5]}, 9_000.0, "tail"),
        )
    ]  # fmt: skip
    for width, expected in ((160, 100), (80, 80)):
        console = Console(force_terminal=True, width=width, record=True, file=io.StringIO())
        view = View(console, begins=begins, speed=60, trips=11_229)
        heights = set()
        for state in states:
            with console.capture() as picture:
                console.print(view._dashboard(state))
            heights.add(len(picture.get().splitlines()))
            console.print(view._dashboard(state))
        shown = console.export_text()
        assert len(heights) == 1
        for word in ("229 of 11229", "requests", "connections"):
            assert word in shown
        assert {len(line) for line in shown.splitlines()} == {expected}
        assert "Fri 18:30, the last 3 trips end" in shown
