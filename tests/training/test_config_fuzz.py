"""Any change of a training configuration is a configuration or one line of error."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from jrt_eval.errors import UserError
from jrt_eval.settings import read_settings
from jrt_eval.training.objective import build_model
from jrt_eval.training.stages import load_stages

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [*sorted((CONFIGS / "mini").glob("*.yaml")), *sorted((CONFIGS / "paper").glob("*-1b.yaml"))]
ODD = st.sampled_from(
    [
        *(
            None,
            True,
            -1,
            0,
            1,
            3,
            10**9,
            2**63 - 1,
            -(2**63),
            2**63,
            10**400,
            0.5,
            -0.5,
            1e300,
            float("nan"),
            float("inf"),
        ),
        *("", "x" * 300, "\x00", "a/b", "../..", "[31m", "8", [], {}, [[]], [1, "a"], [-1], [10**9], {"a": {"b": 1}}),
    ]
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, element in items for inner in _paths(element, (*path, key)))]


def _load(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """Load and build the models, on the device "meta", which holds no values."""
    try:
        for config in load_stages(path, overrides):
            if (config.model.get("n_layer") or 0) < 100:
                build_model(config.model, config.backend, config.seed, device="meta")
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1200  # noqa: PT017


@seed(0)
@settings(max_examples=100, deadline=10_000, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_values(tmp_path: Path, data: st.DataObject) -> None:
    content = read_settings(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(_paths(content)[1:]))
        target: Any = content
        for key in path[:-1]:
            target = target[key]
        action = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            target[path[-1]] = deepcopy(data.draw(ODD))
        elif action == "remove":
            del target[path[-1]]
        elif isinstance(target, dict):
            target[data.draw(st.text(max_size=9) | st.sampled_from([None, 1, "steps", "init_from"]))] = deepcopy(
                data.draw(ODD)
            )
        if not content:
            break
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    _load(file)


@seed(0)
@settings(max_examples=100, deadline=10_000, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(FILES)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b"\n", b": ", b"[", b"{", b"*", b"&", b"!!", b"- ", b"'", b'"', b"\t", b"#"])
        )
    file = tmp_path / "config.yaml"
    file.write_bytes(bytes(content))
    _load(file)


@seed(0)
@settings(max_examples=100, deadline=10_000, database=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(
        ["steps", "data", "data.lengths", "model.n_layer", "model", "stages", "optimizer.betas", "x", "=", "."]
    )
    | st.text(max_size=12),
    value=st.text(max_size=12) | st.sampled_from(["8e-4", "[1, 2]", "{a: 1}", "null", "[", "*x", "1e999", "9" * 99]),
)
def test_overrides(key: str, value: str) -> None:
    _load(FILES[0], (f"{key}={value}",))
