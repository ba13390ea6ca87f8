"""The scripts' headers are true, and each script has its method."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import dispatcher.live
from tests.lua.sources import SCRIPTS, code_with_names, header_and_code, names_of, naming_libraries

CLAIMS = [name for name in SCRIPTS if naming_libraries(name)]


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


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_says_why_and_what(name: str) -> None:
    header, _ = header_and_code(name)
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
    header, own = header_and_code(name)
    code = code_with_names(name)  # a claim's first keys and arguments are named in its library
    fixed, tail = _documented(header, kind)
    everything = fixed + ([tail] if tail is not None else [])
    assert everything == list(range(1, len(everything) + 1)), "numbered without a gap"

    named = names_of(code, kind)
    assert sorted(named) == fixed, "each is named in a local, and each that is named is declared"
    used = {int(number) for number in re.findall(rf"\b{kind}\[(\d+)\]", code)}
    assert used == set(fixed)
    for number, local in named.items():
        assert len(re.findall(rf"\b{local}\b", code)) > 1, f"{kind}[{number}] ({local}) is not used"
        assert len(re.findall(rf"\b{kind}\[{number}\]", code)) == 1, "from then on by its name"
    reads_open = bool(
        re.search(rf"#{kind}\b|\b{kind}\[[a-z]|unpack\({kind}|check_limits\(|FIRST_RATE", own)
    )
    assert reads_open == (tail is not None)
    if tail is not None:
        assert re.search(rf"\b{tail}\b", re.sub(rf"{kind}\[\d+\]", "", own)), "the open end's place"


@pytest.mark.parametrize("name", SCRIPTS)
def test_key_units_are_said(name: str) -> None:
    """A number of time or distance carries its unit, in the header and in the local's name."""
    header, _ = header_and_code(name)
    named = names_of(code_with_names(name), "ARGV")
    for number, text in re.findall(r"^-- ARGV\[(\d+)\] (.*)$", header, re.MULTILINE):
        local = named[int(number)]
        for unit in ("ms", "s", "m"):
            if local.endswith(f"_{unit}"):
                assert re.search(rf"\bin {unit}\b", text) or "latitude" in text, text
            elif re.search(rf"\bin {unit}\b", text):
                pytest.fail(f"{local} is {text}")


def test_claims_begin_alike() -> None:
    """What lua/lib/claim.lua names for all of them, each header says in the same words."""
    assert CLAIMS == [
        "claim_accept", "claim_availability", "claim_creation", "claim_decline", "claim_transition",
    ]  # fmt: skip
    in_library = code_with_names(CLAIMS[0]).removesuffix(header_and_code(CLAIMS[0])[1])
    declared: dict[str, set[str]] = {}
    for kind in ("KEYS", "ARGV"):
        numbers = sorted(names_of(in_library, kind))
        assert numbers == list(range(1, len(numbers) + 1)), "they are the first ones"
        for name in CLAIMS:
            header, own = header_and_code(name)
            assert sorted(names_of(own, kind))[:1] in ([], [len(numbers) + 1])
            for number in numbers:
                (said,) = re.findall(rf"^-- {kind}\[{number}\] (.*)$", header, re.MULTILINE)
                declared.setdefault(f"{kind}[{number}]", set()).add(said)
    # What may be resolved already is what the claim asks for: each names its own words.
    own_words = declared.pop("ARGV[5]")
    assert {said.partition(":")[0] for said in own_words} == {"what is resolved already, as words"}
    assert {place: said for place, said in declared.items() if len(said) > 1} == {}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_words_of_what_is_resolved_are_those_that_the_claim_asks_for(name: str) -> None:
    header, own = header_and_code(name)
    (said,) = re.findall(
        r"^-- ARGV\[5\] .*?: (.*) \(Postgres was asked\), limits \(", header, re.MULTILINE
    )
    asked = set(re.findall(r"is_resolved\('(\w+)'\)", own))
    assert set(said.split(", ")) == {"key", *asked}
    assert set(re.findall(r"is_resolved\('(\w+)'\)", code_with_names(name))) == {"key", "limits", *asked}


def _methods_that_run() -> dict[str, list[str]]:
    """For each script, the methods of the live wing's classes that run it."""
    runs: dict[str, list[str]] = {}
    for path in sorted(Path(dispatcher.live.__path__[0]).glob("*.py")):
        text = path.read_text()
        classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        for method in (node for cls in classes for node in cls.body):
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                source = ast.get_source_segment(text, method) or ""
                for script in re.findall(r'\.(?:run|_claim)\(\s*"(\w+)"', source):
                    runs.setdefault(script, []).append(method.name)
    return runs


def test_a_script_is_a_method_and_a_method_is_a_script() -> None:
    assert _methods_that_run() == {name: [name] for name in SCRIPTS}
