"""The scripts' headers are true, and the scripts keep the house rules."""

from __future__ import annotations

import inspect
import re
import struct
from typing import Any

import lupa.lua51 as lua51
import pytest
import redis.asyncio

from dispatcher.live.pipeline import read_script
from dispatcher.live.scripts import Scripts
from dispatcher.resources import LUA_DIR

SCRIPTS = sorted(path.stem for path in LUA_DIR.glob("*.lua"))
LIBRARIES = sorted(path.stem for path in (LUA_DIR / "lib").glob("*.lua"))
# What Lua 5.1 and Redis give to a script and the house uses.
GLOBALS = {"redis", "KEYS", "ARGV", "tonumber", "tostring", "type", "string", "table", "math", "ipairs",
           "unpack", "pcall"}  # fmt: skip
_INCLUDE = re.compile(r'^--- @include "(\w+)"$', re.MULTILINE)


def _parts(name: str) -> tuple[str, str]:
    """Header and code of a script, without its includes."""
    lines = (LUA_DIR / f"{name}.lua").read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("-- "))
    code = [line for line in lines[end:] if not line.startswith("---")]
    return "\n".join(lines[:end]), "\n".join(re.sub(r"\s*--.*", "", line) for line in code)


def _documented(header: str, kind: str) -> tuple[list[int], int | None]:
    """Numbers of the fixed ones, and where the open end begins."""
    fixed, tail = [], None
    for number, dots in re.findall(rf"^-- {kind}\[(\d+)(\.\.\.)?\] \S", header, re.MULTILINE):
        if dots:
            assert tail is None
            tail = int(number)
        else:
            assert tail is None, "an open end is the last one"
            fixed.append(int(number))
    return fixed, tail


def _named(code: str, kind: str) -> dict[int, str]:
    """Which number of KEYS or ARGV has which local name."""
    found: dict[int, str] = {}
    for names, values in re.findall(r"^local ([\w, ]+) = (.*)$", code, re.MULTILINE):
        expressions = values.split(", ")
        for name, expression in zip(names.split(", "), expressions, strict=False):
            for number in re.findall(rf"\b{kind}\[(\d+)\]", expression):
                assert int(number) not in found
                found[int(number)] = name
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_says_why_and_what(name: str) -> None:
    header, _ = _parts(name)
    lines = header.splitlines()
    assert re.match(r"-- Purpose: \S", lines[0])
    starts = [line for line in lines if not line.startswith("--  ")]
    order = ["Purpose:", "Atomic because:"]
    fixed_keys, open_keys = _documented(header, "KEYS")
    fixed_args, open_args = _documented(header, "ARGV")
    order += ["KEYS["] * (len(fixed_keys) + (open_keys is not None))
    order += ["ARGV["] * (len(fixed_args) + (open_args is not None))
    order += ["RETURNS "]
    assert [o for o, line in zip(order, starts, strict=True) if not line.startswith(f"-- {o}")] == []
    assert re.search(r"^-- RETURNS \S", header, re.MULTILINE)


@pytest.mark.parametrize("kind", ["KEYS", "ARGV"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_header_declares_is_what_the_code_uses(name: str, kind: str) -> None:
    header, code = _parts(name)
    fixed, tail = _documented(header, kind)
    everything = fixed + ([tail] if tail is not None else [])
    assert everything == list(range(1, len(everything) + 1)), "numbered without a gap"

    named = _named(code, kind)
    assert sorted(named) == fixed, "each is named in a local, and each that is named is declared"
    used = {int(number) for number in re.findall(rf"\b{kind}\[(\d+)\]", code)}
    assert used == set(fixed)
    for number, local in named.items():
        assert len(re.findall(rf"\b{local}\b", code)) > 1, f"{kind}[{number}] ({local}) is not used"
        assert len(re.findall(rf"\b{kind}\[{number}\]", code)) == 1, "from then on by its name"
    reads_open = bool(
        re.search(rf"#{kind}\b|\b{kind}\[[a-z]|unpack\({kind}|check_limits\(|gate\(", code)
    )
    assert reads_open == (tail is not None)
    if tail is not None:
        assert re.search(rf"\b{tail}\b", re.sub(rf"{kind}\[\d+\]", "", code)), "the open end's place"


@pytest.mark.parametrize("name", SCRIPTS)
def test_key_units_are_said(name: str) -> None:
    """A number of time or distance carries its unit, in the header and in the local's name."""
    header, code = _parts(name)
    named = _named(code, "ARGV")
    for number, text in re.findall(r"^-- ARGV\[(\d+)\] (.*)$", header, re.MULTILINE):
        local = named[int(number)]
        for unit in ("ms", "s", "m"):
            if local.endswith(f"_{unit}"):
                assert re.search(rf"\bin {unit}\b", text) or "latitude" in text, text
            elif re.search(rf"\bin {unit}\b", text):
                pytest.fail(f"{local} is {text}")


def test_a_script_is_a_method_and_a_method_is_a_script() -> None:
    runs: dict[str, list[str]] = {}
    for name, method in inspect.getmembers(Scripts, inspect.isfunction):
        for script in re.findall(r'\.run\(\s*"(\w+)"', inspect.getsource(method)):
            runs.setdefault(script, []).append(name)
    assert runs == {name: [name] for name in SCRIPTS}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_includes_nothing_and_is_included(name: str) -> None:
    text = (LUA_DIR / "lib" / f"{name}.lua").read_text()
    assert text.startswith("-- ")
    assert not _INCLUDE.search(text)
    assert "return" not in re.findall(r"^\w+", text, re.MULTILINE), "it would end the script"
    assert any(name in _INCLUDE.findall((LUA_DIR / f"{s}.lua").read_text()) for s in SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_included_exists_and_is_used(name: str) -> None:
    text = (LUA_DIR / f"{name}.lua").read_text()
    _, code = _parts(name)
    used = code
    for library in reversed(_INCLUDE.findall(text)):
        assert library in LIBRARIES
        included = (LUA_DIR / "lib" / f"{library}.lua").read_text()
        offers = re.findall(r"^local (?:function )?(\w+)", included, re.MULTILINE)
        assert any(re.search(rf"\b{word}\b", used) for word in offers), library
        used += included
    assert "@include" not in read_script(name)


def _calls(text: str) -> list[tuple[str, list[str]]]:
    """(command, arguments as written) of each redis.call."""
    found = []
    # Brackets in texts are no brackets.
    text = re.sub(r"'[^']*'", lambda match: re.sub(r"[()\[\],]", "_", match[0]), text)
    for start in (match.end() for match in re.finditer(r"redis\.p?call\(", text)):
        depth, end = 1, start
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        command, *arguments = re.split(r",\s*(?![^(\[]*[)\]])", text[start : end - 1])
        found.append((command, arguments))
    return found


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"lib/{name}" for name in LIBRARIES)])
def test_every_key_is_one_of_keys(name: str) -> None:
    text = (LUA_DIR / f"{name}.lua").read_text()
    text = re.sub(r"--.*", "", text)
    keys = {"key", "epoch_key"} if name.startswith("lib/") else set()
    for names, values in re.findall(r"^\s*local ([\w, ]+) = (.*)$", text, re.MULTILINE):
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
    for command, arguments in _calls(text):
        assert re.fullmatch(r"'[A-Z]+'", command), f"{command} is no literal"
        assert command not in ("'KEYS'", "'SCAN'", "'EVAL'", "'SELECT'")
        if command != "'TIME'":
            key = arguments[0]
            assert key in keys or re.fullmatch(r"KEYS\[[\w +]+\]", key), f"{command} {key}"
    assert not re.search(r"KEYS\[[^]]*\]\s*\.\.|\.\.\s*KEYS", text), "a key is built"


class _Bytecode:
    """The chunk that Lua 5.1's string.dump writes, read for its globals."""

    def __init__(self, data: bytes) -> None:
        assert data[:5] == b"\x1bLua\x51"
        self._data = data
        self._at = 12
        self.read: set[str] = set()
        self.written: set[str] = set()
        self._function()

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        size = self._take("<Q")
        self._at += size
        return self._data[self._at - size : self._at - 1].decode() if size else ""

    def _constant(self) -> Any:
        match self._take("<B"):
            case 0:
                return None
            case 1:
                return self._take("<B")
            case 3:
                return self._take("<d")
            case _:
                return self._string()

    def _function(self) -> None:
        self._string()
        self._at += 2 * 4 + 4
        code = [self._take("<I") for _ in range(self._take("<i"))]
        constants = [self._constant() for _ in range(self._take("<i"))]
        for instruction in code:
            if instruction & 0x3F in (5, 7):  # GETGLOBAL, SETGLOBAL
                names = self.read if instruction & 0x3F == 5 else self.written
                names.add(constants[instruction >> 14])
        for _ in range(self._take("<i")):
            self._function()
        lines = self._take("<i")
        self._at += 4 * lines
        for _ in range(self._take("<i")):
            self._string()
            self._at += 8
        for _ in range(self._take("<i")):
            self._string()


def _globals(text: str) -> _Bytecode:
    runtime = lua51.LuaRuntime(encoding=None)
    dump = runtime.eval(b"function(text) return string.dump(assert(loadstring(text))) end")
    return _Bytecode(dump(text.encode()))


def test_the_reader_of_globals_sees_them() -> None:
    found = _globals("local function f() later = 1 end local x = print; x = {y = f}; return x")
    assert (found.read, found.written) == ({"print"}, {"later"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_global_is_left_behind(name: str) -> None:
    found = _globals(read_script(name))
    assert found.written == set()
    assert found.read <= GLOBALS


async def test_every_command_is_older_than_redis_7_2(redis_url: str) -> None:
    texts = (re.sub(r"--.*", "", read_script(name)) for name in SCRIPTS)
    calls = [call for text in texts for call in _calls(text)]
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
