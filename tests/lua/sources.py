"""The Lua files as their tests read them: headers, code, includes, and the globals of a chunk."""

from __future__ import annotations

import re
import struct
from typing import Any

import lupa.lua51 as lua51

from dispatcher.resources import LUA_DIR

SCRIPTS = sorted(path.stem for path in LUA_DIR.glob("*.lua"))
LIBRARIES = sorted(path.stem for path in (LUA_DIR / "lib").glob("*.lua"))
# What Lua 5.1 and Redis give to a script and the house uses.
GLOBALS = {"redis", "cjson", "KEYS", "ARGV", "tonumber", "tostring", "type", "string", "table", "math",
           "ipairs", "unpack", "pcall"}  # fmt: skip
#: What a claim says before it includes lua/lib/claim.lua.
GIVEN_TO_LIBRARIES = {"FIRST_LIMIT", "FIRST_RATE", "trip_claim"}
_INCLUDE = re.compile(r'^--- @include "(\w+)"$', re.MULTILINE)


def text_of(name: str) -> str:
    """A script as it stands in its file, its includes as they are written."""
    return (LUA_DIR / f"{name}.lua").read_text()


def library_text(name: str) -> str:
    """A library as it stands in its file."""
    return (LUA_DIR / "lib" / f"{name}.lua").read_text()


def includes_of(name: str) -> list[str]:
    """The libraries that a script includes, in their order."""
    return _INCLUDE.findall(text_of(name))


def without_comments(text: str) -> str:
    """The code of a text."""
    return re.sub(r"\s*--.*", "", text)


def header_and_code(name: str) -> tuple[str, str]:
    """Header and code of a script, without its includes."""
    lines = text_of(name).splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("-- "))
    code = [line for line in lines[end:] if not line.startswith("---")]
    return "\n".join(lines[:end]), "\n".join(map(without_comments, code))


def naming_libraries(name: str) -> list[str]:
    """The libraries of a script that name keys or arguments for it."""
    found = [
        library
        for library in includes_of(name)
        if re.search(r"\b(?:KEYS|ARGV)\[\d", without_comments(library_text(library)))
    ]
    assert set(found) <= {"claim"}, "what all of a kind begin with stands in one library"
    return found


def code_with_names(name: str) -> str:
    """A script's code after that of the libraries that name keys or arguments for it, or use the names."""
    naming, included = naming_libraries(name), includes_of(name)
    since = included.index(naming[0]) if naming else len(included)
    named = [without_comments(library_text(library)) for library in included[since:]]
    return "\n".join([*named, header_and_code(name)[1]])


def names_of(code: str, kind: str) -> dict[int, str]:
    """Which number of KEYS or ARGV has which local name."""
    found: dict[int, str] = {}
    for names, values in re.findall(r"^local ([\w, ]+) = (.*)$", code, re.MULTILINE):
        expressions = values.split(", ")
        for name, expression in zip(names.split(", "), expressions, strict=False):
            for number in re.findall(rf"\b{kind}\[(\d+)\]", expression):
                assert int(number) not in found
                found[int(number)] = name
    return found


def offered_by(library: str) -> set[str]:
    """The local names that a library leaves to the script, functions among them."""
    found = re.findall(r"^local (?:function )?([\w, ]+)", library_text(library), re.MULTILINE)
    return {name for names in found for name in names.strip().split(", ")}


def calls_in(text: str) -> list[tuple[str, list[str]]]:
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


class Bytecode:
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


def globals_of(text: str) -> Bytecode:
    """The globals that a chunk reads and writes."""
    runtime = lua51.LuaRuntime(encoding=None)
    dump = runtime.eval(b"function(text) return string.dump(assert(loadstring(text))) end")
    return Bytecode(dump(text.encode()))
