"""The scripts and their libraries keep the house rules: keys, globals, includes, commands."""

from __future__ import annotations

import itertools
import re
from typing import Any

import lupa.lua51 as lua51
import pytest
import redis.asyncio

from dispatcher.live.scripts import read_script
from dispatcher.live.settle import EVENTS_KEPT
from tests.lua.sources import (
    GIVEN_TO_LIBRARIES,
    GLOBALS,
    LIBRARIES,
    SCRIPTS,
    calls_in,
    code_with_names,
    globals_of,
    header_and_code,
    includes_of,
    library_text,
    offered_by,
    text_of,
    without_comments,
)

_INCLUDE = re.compile(r'^--- @include "(\w+)"$', re.MULTILINE)


def _needs(library: str) -> set[str]:
    """The libraries that one leans on: each name that is not its own is another one's."""
    free = globals_of(library_text(library)).read - GLOBALS - GIVEN_TO_LIBRARIES
    offers = {other: offered_by(other) - offered_by(library) for other in LIBRARIES}
    needed = {other for other, names in offers.items() if names & free}
    assert free <= {name for other in needed for name in offers[other]}
    return needed


# --- libraries


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_includes_nothing_and_is_included(name: str) -> None:
    text = library_text(name)
    assert text.startswith("-- ")
    assert not _INCLUDE.search(text)
    assert "return" not in re.findall(r"^\w+", text, re.MULTILINE), "it would end the script"
    assert any(name in includes_of(script) for script in SCRIPTS)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_says_what_it_needs(name: str) -> None:
    comment = " ".join(re.match(r"(?:-- .*\n)+", library_text(name))[0].replace("--", "").split())  # type: ignore[index]
    (said,) = re.findall(r"Needs ([\w.]+(?:(?:, | and )[\w.]+)*)\.(?: |$)", comment) or ("",)
    assert {part.removesuffix(".lua") for part in re.findall(r"\w+\.lua", said)} == _needs(name)


def test_no_two_libraries_offer_the_same_name() -> None:
    offered = [name for library in LIBRARIES for name in offered_by(library)]
    assert sorted(offered) == sorted(set(offered))


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_library_needs_is_included_before_it(name: str) -> None:
    before: set[str] = set()
    for library in includes_of(name):
        assert _needs(library) <= before, library
        before.add(library)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_included_exists_and_is_used(name: str) -> None:
    _, code = header_and_code(name)
    used = code
    for library in reversed(includes_of(name)):
        assert library in LIBRARIES
        does_something = re.search(r"^(?:if|redis)\b", library_text(library), re.MULTILINE)
        is_named = any(re.search(rf"\b{word}\b", used) for word in offered_by(library))
        assert is_named or does_something, library
        used += library_text(library)
    assert "@include" not in read_script(name)


def test_whether_a_driver_is_free_is_said_alike_twice() -> None:
    """`eligibility.lua` spells out, for speed, what the filters of `candidates.lua` ask one by one."""
    both = library_text("driver_state") + library_text("eligibility")
    free, asked = lua51.LuaRuntime().execute(  # type: ignore[attr-defined]
        both
        + """
        return is_free, function(is_online, availability_status, trip_id)
          return works(is_online) and wants_trips(availability_status) and not has_trip(trip_id)
        end"""
    )
    drivers = list(
        itertools.product(
            ("1", "0", "", False), ("available", "unavailable", "", False), ("z_1", "", False, None)
        )
    )
    assert [free(*driver) for driver in drivers] == [asked(*driver) for driver in drivers]
    assert sum(free(*driver) for driver in drivers) == 3


# --- keys, globals, commands


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"lib/{name}" for name in LIBRARIES)])
def test_every_key_is_one_of_keys(name: str) -> None:
    is_library = name.startswith("lib/")
    text = re.sub(r"--.*", "", text_of(name))
    keys = {"key"} if is_library else set()
    # What one library names, those after it use.
    named = library_text("claim") + text if is_library else code_with_names(name)
    for names, values in re.findall(r"^\s*local ([\w, ]+) = (.*)$", named, re.MULTILINE):
        for local, value in zip(names.split(", "), values.split(", "), strict=False):
            if value.startswith("KEYS["):
                keys.add(local)
    # A list of keys: nothing but keys, or what another such list holds, is put into it.
    puts = re.findall(r"^\s*(\w+)\[#\1 \+ 1\](?:, .*?)? = ([\w\[\]]+)", text, re.MULTILINE)
    put: dict[str, set[str]] = {}
    for into, value in puts:
        put.setdefault(into, set()).add(re.sub(r"\[\w+\]$", "", value))
    lists: set[str] = set()
    while more := {into for into, values in put.items() if values <= keys | lists} - lists:
        lists |= more
    keys |= {f"unpack({of_keys})" for of_keys in lists}
    for command, arguments in calls_in(text):
        assert re.fullmatch(r"'[A-Z]+'", command), f"{command} is no literal"
        assert command not in ("'KEYS'", "'SCAN'", "'EVAL'", "'SELECT'")
        if command != "'TIME'":
            key = arguments[0]
            if command == "'SPUBLISH'":
                # A channel is no key: that of a user is an address after what is given for all of them.
                key = key.partition(" .. ")[0]
            assert key in keys or re.fullmatch(r"KEYS\[[\w +]+\]", key), f"{command} {key}"
    assert not re.search(r"KEYS\[[^]]*\]\s*\.\.|\.\.\s*KEYS", text), "a key is built"


def test_the_reader_of_globals_sees_them() -> None:
    found = globals_of("local function f() later = 1 end local x = print; x = {y = f}; return x")
    assert (found.read, found.written) == ({"print"}, {"later"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_global_is_left_behind(name: str) -> None:
    found = globals_of(read_script(name))
    assert found.written == set()
    assert found.read <= GLOBALS


async def test_every_command_is_older_than_redis_7_2(redis_url: str) -> None:
    calls = [call for name in SCRIPTS for call in calls_in(without_comments(read_script(name)))]
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        client.set_response_callback("COMMAND", lambda reply, **_: reply)
        for command, arguments in {(c, tuple(a)) for c, a in calls}:
            reply = await client.execute_command("COMMAND", "DOCS", command.strip("'"))
            docs = dict(zip(reply[1][::2], reply[1][1::2], strict=True))
            assert _version(docs["since"]) <= (7, 2), command
            options = _options(docs.get("arguments", []))
            for word in arguments:
                if re.fullmatch(r"'[A-Z]{2,}'", word):
                    assert _version(options[word.strip("'")]) <= (7, 2), (command, word)


def _options(arguments: list[list[Any]]) -> dict[str, str]:
    """Option words of a command with the version that brought them."""
    found: dict[str, str] = {}
    for flat in arguments:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if "token" in fields:
            found[fields["token"]] = fields.get("since", "0")
        found |= _options(fields.get("arguments", []))
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def test_a_stream_keeps_as_many_events_whoever_tells_it() -> None:
    assert f"local EVENTS_KEPT = {EVENTS_KEPT}\n" in text_of("settle_changes")
