"""Any change to a sweep file ends in a sweep that can be planned or in one line, never in a traceback or a hang."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jrt_eval.errors import UserError
from jrt_eval.sweep import spec
from jrt_eval.sweep.run import dry_run, plan

ODD = [
    None, True, -1, 0, 2**31, 2**63, 10**400, -0.5, 1e300, float("nan"), float("inf"), "", " ", ".", "..", "/", "a" * 5000, "\x00", "\x1b[2J",
    "\n", "\ud800", "8e-4", "9" * 5000, "auto:" + "9" * 5000, "٣", "${HOME}", "../../etc", "{{x}}", "!!python/object:os.system", "2025-99-99",
    [], {}, [[]], [None], [1], ["a", 1], {"": ""}, {1: 2, "a": 3}, {"a": {2: None, "b": 1}}, [{"name": "x"}], {"gpus": "many"}, {"memory": "1.2.3GB"},
]  # fmt: skip
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def base() -> dict[str, Any]:
    return {
        "name": "toys",
        "description": "two words",
        "models": [
            {"name": "first", "type": "dummy", "args": {"pretrained": "a/first", "revision": "main"}, "params": 1e9},
            {"name": "second", "type": "jrt", "random": "gpt2", "resources": {"gpus": 2}, "batch_size": 8, "limit": 3},
        ],
        "tasks": ["toy_a", "toys"],
        "settings": [{"context_length": 512, "models": ["first"]}, {"name": "x", "num_fewshot": 1, "tasks": "toy_b"}],
        "include_path": "./tasks",
        "metadata": {"data_dir": "./data", "answer_length": 50},
        "gen_kwargs": {"until": ["\n"]},
        "batch_size": "auto",
        "time_limit": "1h",
        "resources": {"gpus": 0.5, "cpus": 2, "memory": "2GB"},
        "seed": 3,
        "expected": {"gpu_hours": 1},
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside `value`."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, element in items:
        found += places(element, (*path, key))
    return found


PLACES = places(base())


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """The sweep above with one to three values or keys replaced."""
    raw = base()
    for _ in range(draw(st.integers(1, 3))):
        path, odd = draw(st.sampled_from(PLACES)), draw(st.sampled_from(ODD))
        target: Any = raw
        try:
            for key in path[:-1]:
                target = target[key]
            if draw(st.booleans()) or not isinstance(target, dict):
                target[path[-1]] = copy.deepcopy(odd)
            else:
                target[str(odd)[:300]] = target.pop(path[-1])
        except (KeyError, IndexError, TypeError):  # an earlier change removed the place
            continue
    return raw


def one_line(call: Any) -> Any:
    """The result of `call`, or None after a UserError of one printable line."""
    try:
        return call()
    except UserError as error:
        text = str(error)
        assert 0 < len(text) < 2000
        assert text.replace("\ud800", "").isprintable(), text
        return None


@settings(FUZZ, max_examples=200)
@given(changed())
def test_changed_values(tmp_path: Path, raw: dict[str, Any]) -> None:
    file = tmp_path / "toys.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8", errors="surrogatepass")
    sweep = one_line(lambda: spec.load(str(file)))
    if sweep is not None:
        json.dumps(asdict(sweep), allow_nan=False)
        yaml.safe_dump(sweep.raw).encode()


@settings(FUZZ, max_examples=15)
@given(changed())
def test_changed_values_up_to_the_plan(toys: Any, raw: dict[str, Any]) -> None:
    file = toys.folder / "toys.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8", errors="surrogatepass")
    sweep = one_line(lambda: spec.load(str(file)))
    if sweep is not None and one_line(lambda: plan(sweep, toys.out)) is not None:
        dry_run(sweep, toys.out)
    assert not toys.out.exists()


@settings(FUZZ, max_examples=80)
@given(st.data())
def test_changed_text(tmp_path: Path, data: st.DataObject) -> None:
    text = yaml.safe_dump(base(), sort_keys=False)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        cut = data.draw(st.sampled_from([0, 1, 5, 40]))
        put = data.draw(
            st.sampled_from(
                [
                    "",
                    ":",
                    "- ",
                    "&a ",
                    "*a",
                    "<<: ",
                    "{",
                    "[",
                    "]",
                    "\t",
                    "'",
                    "!!int ",
                    "#",
                    "\x07",
                    "---\n",
                    text[at : at + 60],
                ]
            )
        )
        text = text[:at] + put + text[at + cut :] or " "
    (tmp_path / "toys.yaml").write_text(text, encoding="utf-8")
    one_line(lambda: spec.load(str(tmp_path / "toys.yaml")))


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "models: &m [*m]\n",
        "[" * 900,
        "name: a\nname: b\n",
    ],
    ids=["alias bomb", "contains itself", "nested", "duplicate key"],
)  # fmt: skip
def test_hostile_yaml_is_refused_quickly(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(text)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"bomb\.yaml"):
        spec.load(str(file))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["a" * 5000, "\x00", "/dev/zero", "/", "nowhere/\x1b[2J", ""])
def test_odd_file_names(name: str) -> None:
    with pytest.raises(UserError) as caught:
        spec.load(name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2000
