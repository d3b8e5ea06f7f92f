"""One decoder for JSON and TOML: what is written is read back, and nothing unforeseen passes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.errors import InputError
from safesteer_edge.formats.json_values import (
    BadValueError,
    format_json,
    from_json,
    load_json,
    load_toml,
    refuse_control_characters,
    to_json,
)

texts = st.text(st.characters(exclude_categories=("Cs",)))
finite = st.floats(allow_nan=False, allow_infinity=False)


@dataclass(frozen=True, slots=True)
class Part:
    """What lies inside."""

    share: float
    colour: Literal["red", "green", 3] = "red"

    def __post_init__(self) -> None:
        if self.share < 0:
            raise ValueError(f"share is {self.share}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Whole:
    """One field of each kind that the decoder knows."""

    name: str
    n: int
    is_on: bool
    data: bytes
    path: Path
    parts: tuple[Part, ...] = ()
    ends: tuple[int, int] = (0, 0)
    only: Part | None = None
    by_name: Mapping[str, Part] = field(default_factory=dict[str, Part])
    free: Mapping[str, object] = field(default_factory=dict[str, object])


WHOLE_NUMBERS = st.integers(1 - 2**63, 2**63 - 1)
parts = st.builds(Part, st.floats(0, 1e300), st.sampled_from(["red", "green", 3]))
wholes = st.builds(
    Whole,
    name=texts,
    n=WHOLE_NUMBERS,
    is_on=st.booleans(),
    data=st.binary(),
    path=st.just(Path("some/where")),
    parts=st.lists(parts, max_size=3).map(tuple),
    ends=st.tuples(WHOLE_NUMBERS, WHOLE_NUMBERS),
    only=st.none() | parts,
    by_name=st.dictionaries(texts, parts, max_size=2),
    free=st.dictionaries(texts, st.none() | st.booleans() | finite | texts, max_size=3),
)


@given(wholes)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(whole: Whole):
    assert from_json(Whole, load_json(format_json(whole))) == whole


def sample(**changes: object) -> dict[str, Any]:
    good = to_json(Whole("a", 1, True, b"x", Path("p"), parts=(Part(0.5),)))
    return {**good, **changes}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"nam": 1}, "unknown key 'nam' (did you mean 'name'?)"),
        ({"zzz": 1}, "unknown key 'zzz' (known here: name, n,"),
        ({"name": 3}, "'name' is 3; expected a text"),
        ({"n": True}, "'n' is True; expected a whole number"),
        ({"n": 1.0}, "'n' is 1.0; expected a whole number"),
        ({"n": 2**63}, "'n' is 9223372036854775808; expected a smaller whole number"),
        ({"n": 1 << 99999}, "'n' is int too large to show; expected a smaller whole number"),
        ({"is_on": 1}, "'is_on' is 1; expected true or false"),
        ({"data": "?"}, "'data' is '?'; expected base64"),
        ({"path": 7}, "'path' is 7; expected a path"),
        ({"parts": {}}, "'parts' is {}; expected a list"),
        ({"parts": [{"share": "1"}]}, "'parts[0].share' is '1'; expected a number"),
        ({"parts": [{"share": 10**400}]}, "expected a finite number"),
        ({"parts": [{"share": float("nan")}]}, "'parts[0].share' is nan; expected a finite number"),
        ({"parts": [{"share": -1}]}, "parts[0]: share is -1.0; expected 0 or more"),
        ({"parts": [{}]}, "the key 'parts[0].share' is missing"),
        ({"ends": [1, 2, 3]}, "'ends' is [1, 2, 3]; expected a list of 2"),
        ({"only": []}, "'only' is []; expected an object"),
        (
            {"only": {"share": 1, "colour": "reed"}},
            "'only.colour' is 'reed'; expected 'red' or 'green' or 3 (did you mean 'red'?)",
        ),
        ({"only": {"share": 1, "colour": 3.0}}, "'only.colour' is 3.0"),
        ({"by_name": {"x": {"shar": 1}}}, "'by_name.x.shar' (did you mean 'share'?)"),
        ({"name": ["y" * 999]}, "…; expected a text"),
    ],
)
def test_what_was_not_foreseen_is_named_with_its_place(changes: dict[str, Any], problem: str):
    with pytest.raises(BadValueError) as caught:
        from_json(Whole, sample(**changes))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [None, 3, "x", [], [{}]])
def test_a_file_that_is_no_object_is_refused(value: object):
    with pytest.raises(BadValueError, match=r"^it is .*; expected an object"):
        from_json(Whole, value)


def test_a_whole_number_may_stand_for_a_float_and_becomes_one():
    assert type(from_json(Part, {"share": 1}).share) is float


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands there twice"),
        ('{"x": [{"a": 1, "a": 1}]}', "the key 'a' stands there twice"),
        ("[NaN]", "NaN is not a number"),
        ("-Infinity", "-Infinity is not a number"),
        ("1e999", "1e999 is too large"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b'{"a": "\xe9"}', "not valid JSON (byte 8 is not UTF-8)"),
        ("[" * 100_000, "not valid JSON (it is nested too deeply)"),
        ("[" + "9" * 5000 + "]", "not valid JSON (a number has too many digits)"),
    ],
)
def test_json_that_readers_could_disagree_on_is_refused(text: str | bytes, problem: str):
    with pytest.raises(BadValueError) as caught:
        load_json(text)
    assert problem in str(caught.value)


def test_toml_is_read_into_the_same_dataclasses():
    table = load_toml(b"share = 1\ncolour = 'green'\n")
    assert from_json(Part, table) == Part(1.0, "green")
    with pytest.raises(BadValueError, match="'share' is inf; expected a finite number"):
        from_json(Part, load_toml(b"share = inf"))
    for broken in (b"share =", b"a = 1\na = 2", b"\xff"):
        with pytest.raises(BadValueError, match="not valid TOML"):
            load_toml(broken)
    with pytest.raises(BadValueError, match=r"not valid TOML \(a number has too many digits\)"):
        load_toml(b"a = " + b"9" * 5000)


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x7f", "\x9b", "\r", "\ud800"])
def test_a_control_character_is_refused_in_any_text_or_key(character: str):
    for value in ({"a": [{"b": character}]}, {"a": {f"x{character}": 1}}):
        with pytest.raises(BadValueError, match=r"'a.*without control characters") as caught:
            refuse_control_characters(value)
        assert character not in str(caught.value)
    refuse_control_characters({"a": "two\nlines\tand ü"})


def test_nesting_beyond_any_use_is_refused():
    with pytest.raises(BadValueError, match="nested deeper than"):
        refuse_control_characters(json.loads("[" * 60 + "]" * 60))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_json_cannot_hold_is_not_written(value: object):
    with pytest.raises(BadValueError, match="cannot be written as JSON"):
        format_json({"a": value})


def test_a_bad_value_is_the_users_and_a_value_error():
    assert issubclass(BadValueError, InputError)
    assert issubclass(BadValueError, ValueError)
