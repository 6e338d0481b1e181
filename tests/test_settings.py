"""One reader of settings: numbers are numbers, mistakes are one line, and no file hangs it or fills the memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from jrt_eval.errors import UserError
from jrt_eval.settings import apply_overrides, build, load, parse_yaml


@dataclass
class Inner:
    rate: float = 1.0
    pair: tuple[int, int] = (1, 2)


@dataclass
class Outer:
    name: str
    count: int = 1
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    sizes: list[int] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    either: int | str | None = None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8e-4", 8e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-1.", -1.0),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1.2.3", "1.2.3"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, {a: 2}]", [1, {"a": 2}]),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_values(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{a: 1, a: 2}", "gives 'a' a second time"),
        ("{a: {b: 1, c: 2, b: 3}}", "gives 'b' a second time"),
        (".nan", "not a finite number"),
        ("{a: -.inf}", "here: a: -inf is not a finite number"),
        ("1e400", "not a finite number"),
        ("9" * 30, "an integer of 100 bits"),
        ("9" * 5000, "5000 digits"),
        ("&a [*a]", "contains itself"),
        ("&a {<<: *a}", "contains itself"),
        ("[" * 200 + "]" * 200, "nested more than 100 deep"),
        ("[" * 5000, "nested too deeply"),
        ("[1", "not valid YAML"),
        ("--- 1\n--- 2", "not valid YAML"),
        ("!!python/object/apply:os.system [x]", "not valid YAML"),
        ("!!int ''", "here: "),
        ("!!bool x", "here: "),
        ("!!binary aGk=", "neither text"),
        ('"\\ud800"', "surrogate"),
    ],
)
def test_refused_values(text: str, says: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_yaml(text, "here")
    assert says in str(raised.value)
    assert str(raised.value).startswith("here: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("level", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_cannot_multiply(level: str) -> None:
    lines = ["a: &a {x: 1}"]
    for previous, name in zip("abcdefghijk", "bcdefghijkl", strict=True):
        lines.append(f"{name}: &{name} " + level.format(", ".join([f"*{previous}"] * 9)))
    with pytest.raises(UserError, match="more than 100,000 values"):
        parse_yaml("\n".join(lines), "here")


def test_overrides() -> None:
    content: dict[str, Any] = {"a": {"b": 1}, "c": None}
    apply_overrides(content, ["a.b=8e-4", "c.d=[1, 2]", "e=x=y", "f="])
    assert content == {"a": {"b": 8e-4}, "c": {"d": [1, 2]}, "e": "x=y", "f": None}
    for override, says in [
        ("a", "write key=value"),
        ("=1", "write key=value"),
        ("a..b=1", "write key=value"),
        ("e.b=1", "'e' is a value and has no keys"),
        ("a.b=[", "--set 'a.b=[': not valid YAML"),
        ("a.b=1e999", "not a finite number"),
    ]:
        with pytest.raises(UserError) as raised:
            apply_overrides(content, [override])
        assert says in str(raised.value)


def test_an_override_changes_no_alias() -> None:
    content = parse_yaml("{a: &x {b: [1]}, c: *x}", "here")
    apply_overrides(content, ["a.b=2"])
    assert content == {"a": {"b": 2}, "c": {"b": [1]}}


def test_a_dataclass_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: n\ncount: 2e3\ninner: {rate: 3, pair: [4, 5]}\nsizes: 7\neither: text\n")
    assert load(Outer, path, ["inner.rate=8e-4"]) == Outer("n", 2000, "a", Inner(8e-4, (4, 5)), [7], {}, "text")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"name": "n", "cuont": 1}, "here: unknown key 'cuont' (did you mean 'count'?)"),
        ({}, "here: name must be given"),
        ({"name": 1}, "here: name: expected text, got 1"),
        ({"name": None}, "here: name: expected text, got None"),
        ({"name": "n", "count": True}, "expected an integer, got True"),
        ({"name": "n", "count": 1.5}, "expected an integer, got 1.5"),
        ({"name": "n", "count": 1e300}, "expected an integer, got 1e+300"),
        ({"name": "n", "kind": "c"}, "expected one of a, b, got 'c'"),
        ({"name": "n", "kind": ["a"]}, "expected one of a, b"),
        ({"name": "n", "inner": {"rate": "x"}}, "here: inner: rate: expected a number, got 'x'"),
        ({"name": "n", "inner": {"pair": [1]}}, "expected a list of 2"),
        ({"name": "n", "inner": 3}, "expected keys and values, got 3"),
        ({"name": "n", "free": [1]}, "expected keys and values"),
        ({"name": "n", "free": {1: 2}}, "here: free: expected text, got 1"),
        ([1], "expected keys and values"),
        ({"name": "n", "count": "x" * 1000}, "..."),
    ],
)
def test_a_wrong_value_is_named(content: Any, says: str) -> None:
    with pytest.raises(UserError) as raised:
        build(Outer, content, "here")
    assert says in str(raised.value)
    assert len(str(raised.value)) < 200


@seed(0)
@settings(max_examples=400, deadline=2000, database=None)
@given(st.text(max_size=60) | st.text(alphabet="{}[]:,&*!<>-?|#%@`'\" \nab01.e", max_size=60))
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "here")
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
