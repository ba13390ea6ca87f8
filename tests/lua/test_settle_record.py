"""The record of a settle: both sides, and the header between them, speak of the same fields."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest

from dispatcher.core.idempotency import StoredAnswer
from dispatcher.core.trips import Status
from dispatcher.live import settle
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.settle import Settler
from dispatcher.live.settlement import Message, SettleEffect, Settlement
from tests.harness.lua_zone import START_MS, key, make_driver, make_trip
from tests.lua.sources import header_and_code

_BEFORE = make_trip(version=3, current_status=Status.ONGOING, driver_id="d1")
#: Every part that a change can have, though no change has all of them.
_EVERYTHING = Settlement(
    trip=_BEFORE._replace(version=4, current_status=Status.COMPLETED),
    before=_BEFORE,
    driver_id="d1",
    driver_vehicle_type="car",
    effect=SettleEffect.FREE,
    driver=make_driver("d1", version=7),
    barred_driver="d1",
    inboxes=["d1", "d2"],
    event="{}",
    messages=[Message(["customer:c1", "driver:d1"], "{}"), Message(["driver:d2"], "[]")],
)


class _Recorder:
    """A pipeline that keeps what a script is called with."""

    def run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> tuple[list[str], list[Any]]:
        assert script == "settle_changes"
        return list(keys), list(args)


def _sent(*settlements: Settlement, answer: StoredAnswer | None = None) -> tuple[list[str], list[Any]]:
    """The keys and arguments of one call."""
    settler = Settler(cast(Pipeline, _Recorder()), fix_age_s=60)
    changes = [
        (Attempt(f"node.{n}", f"z_{n}", f"d{n}", 10_000, key(), 60_000), settlement, answer)
        for n, settlement in enumerate(settlements)
    ]
    return cast(Any, settler.settle_changes(keys_of("z"), changes))


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _fields(record: dict[str, Any], above: str = "") -> set[str]:
    """The record's fields, those of a part as `part.field`."""
    found = {above + name for name in record}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= _fields(value, f"{name}.")
    return found


def fields_in_python() -> set[str]:
    """The fields of a record in which everything applies."""
    _, args = _sent(_EVERYTHING, answer=StoredAnswer("f", 200, "{}", START_MS))
    return _fields(orjson.loads(args[1]))


def fields_in_header() -> set[str]:
    """The fields that the header of settle_changes names."""
    header, _ = header_and_code("settle_changes")
    about = header[header.index("-- ARGV[2...]") : header.index("-- RETURNS")]
    found: set[str] = set()
    # A line of the list begins with the names, and a semicolon may begin further ones.
    for names, parts in re.findall(
        r"(?:^--   |; )([a-z_]+(?:, [a-z_]+)*): (?:\{([a-z_, ]+)\})?", about, re.MULTILINE
    ):
        found |= set(names.split(", "))
        found |= {f"{names}.{part}" for part in parts.split(", ") if part}
    return found


def fields_in_lua() -> set[str]:
    """The fields that the code of settle_changes reads."""
    _, code = header_and_code("settle_changes")
    found: set[str] = set()
    parts = dict(re.findall(r"local (\w+) = change\.(\w+)$", code, re.MULTILINE))
    for name, below in re.findall(r"\bchange\.(\w+)(?:\.(\w+))?", code):
        found |= {name, f"{name}.{below}"} if below else {name}
    for local, part in parts.items():
        found |= {f"{part}.{name}" for name in re.findall(rf"\b{local}\.(\w+)", code)}
    return found


def test_the_example_holds_every_field_that_a_record_can() -> None:
    """Each name that the code of settle.py puts into a record is in the example below, too."""
    written: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(settle))):
        if isinstance(node, ast.Dict):
            written |= {k.value for k in node.keys if isinstance(k, ast.Constant)}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            written |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    assert {name.rpartition(".")[2] for name in fields_in_python()} == written


@pytest.mark.parametrize("other", [fields_in_header, fields_in_lua])
def test_both_sides_speak_of_the_same_fields(other: Any) -> None:
    assert other() == fields_in_python()


def test_both_sides_speak_of_the_same_words() -> None:
    header, code = header_and_code("settle_changes")
    (effects,) = re.findall(r"driver_id, effect: [^:]*: (.*)", header)
    assert re.findall(r"(\w+) \(", effects) == list(SettleEffect)
    (waves,) = re.findall(r"wave is (\w+) \(now\) or (\w+)", header)
    sent = {
        orjson.loads(_sent(Settlement(trip=make_trip(current_status=status)))[1][1])["trip"]["wave"]
        for status in Status
    }
    assert sent == set(waves)
    # What is neither of these is what remains: a wave that stops, a driver whose state changes.
    assert set(re.findall(r"change\.effect == '(\w+)'", code)) == {"take", "free"}
    assert set(re.findall(r"after\.wave == '(\w+)'", code)) == {"start"}


def test_what_does_not_apply_is_left_out() -> None:
    _, args = _sent(Settlement())
    assert orjson.loads(args[1]) == {
        "token": "node.0", "entry": "node.0 z_0 d0", "inboxes": 0, "trip_id": "z_0",
    }  # fmt: skip
    assert args[2:] == ["", ""]


def test_the_texts_follow_their_record() -> None:
    header, code = header_and_code("settle_changes")
    settlements = [
        Settlement(event=f"e{n}", messages=[Message([f"driver:d{n}"], f"m{n}{m}") for m in range(n)])
        for n in range(3)
    ]
    _, args = _sent(*settlements, answer=StoredAnswer("f", 200, "{}", START_MS))
    assert [args[2:4], args[5:8], args[9:]] == [
        ["D f 200 {}", "e0"], ["D f 200 {}", "e1", "m10"], ["D f 200 {}", "e2", "m20", "m21"]
    ]  # fmt: skip
    assert orjson.loads(args[8])["to"] == [["driver:d2"], ["driver:d2"]]
    (each,) = re.findall(r"KEYS_EACH, ARGS_EACH = \d+, (\d+)", code)
    assert len(args) == 1 + 3 * int(each) + 3
    assert "local answer, event = ARGV[a + 1], ARGV[a + 2]" in code
    assert "ARGV[a + ARGS_EACH - 1 + m]" in code
    assert "a = a + ARGS_EACH + #(change.to or {})" in code
    places = [header.index(text) for text in ("idempotency record to keep", "an event", "messages (")]
    assert places == sorted(places)


def test_keys_go_with_their_records() -> None:
    """The script finds a change's keys by how many the changes before it have."""
    header, code = header_and_code("settle_changes")
    keys, args = _sent(Settlement(inboxes=["d7", "d8"]), _EVERYTHING, Settlement())
    (first,) = re.findall(r"FIRST_KEY, FIRST_RECORD = (\d+), 2", code)
    (each,) = re.findall(r"KEYS_EACH, ARGS_EACH = (\d+), \d+", code)
    inboxes = [orjson.loads(text)["inboxes"] for text in args[1:] if b"token" in _bytes(text)]
    assert inboxes == [2, 2, 0]
    assert len(keys) == int(first) - 1 + 3 * int(each) + sum(inboxes)
    assert f"-- KEYS[{first}...]" in header
    second = int(first) - 1 + int(each) + 2
    assert keys[second] == keys_of("z").trip("z_1")
    assert keys[second - 2 : second] == [keys_of("z").inbox("d7"), keys_of("z").inbox("d8")]
