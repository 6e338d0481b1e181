"""A grid resumes, shares its folder with other processes, and passes over damaged results."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from state_size_helpers import CPU, SMALL

from jrt_eval.errors import UserError
from jrt_eval.experiments.state_size.grid import GridPoint, GridSettings
from jrt_eval.experiments.state_size.points import PointResult, read_point, read_points, run_grid
from jrt_eval.files import lock

PUBLISHED = Path(__file__).parents[3] / "results" / "synthetic"


def _run(points: list[GridPoint], output: Path, settings: GridSettings = SMALL) -> int:
    return run_grid(points, settings, output, CPU, lambda *_: 0, lambda _: 0)


def test_a_grid_resumes(tmp_path: Path) -> None:
    points = [GridPoint(8, 2, True), GridPoint(8, 2, False)]
    assert _run(points, tmp_path) == 2
    path = tmp_path / "points" / f"{points[1].name}.json"
    whole = read_point(path)
    path.unlink()
    assert _run(points, tmp_path) == 1
    again = read_point(path)
    assert (again.losses, again.scores) == (whole.losses, whole.scores)
    assert _run(points, tmp_path) == 0
    with pytest.raises(UserError, match=r"other settings \(steps\)"):
        _run(points, tmp_path, replace(SMALL, steps=5))


def test_a_point_that_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    points = [GridPoint(8, 2, True), GridPoint(8, 2, False)]
    with lock(tmp_path / "points" / f"{points[0].name}.lock", "held by another test"):
        assert _run(points, tmp_path) == 1
    assert [result.point for result in read_points(tmp_path)] == [points[1]]
    assert _run(points, tmp_path) == 1


def test_settings_that_did_not_exist_yet_have_their_defaults(tmp_path: Path) -> None:
    point = GridPoint(8, 2, True)
    _run([point], tmp_path)
    path = tmp_path / "points" / f"{point.name}.json"
    content = json.loads(path.read_text())
    for key in ("marked", "sharp", "hold", "beta2", "pairs"):
        del content["settings"][key]
    path.write_text(json.dumps(content))
    assert _run([point], tmp_path) == 0
    with pytest.raises(UserError, match=r"other settings \(marked\)"):
        _run([point], tmp_path, replace(SMALL, marked=True))


@pytest.mark.parametrize("folder", ["", "marked", "plain"])
def test_the_published_points_are_read(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    found = read_points(PUBLISHED / folder)
    assert len(found) == len(list((PUBLISHED / folder / "points").glob("*.json"))) > 0
    assert not caplog.records
    assert all(result.state_bytes == result.point.state_bytes for result in found)


def test_a_damaged_point_is_run_again_and_left_out_of_the_figure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = [GridPoint(8, 2, True), GridPoint(8, 2, False)]
    _run(points, tmp_path)
    path = tmp_path / "points" / f"{points[0].name}.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        assert [result.point for result in read_points(tmp_path)] == [points[1]]
        assert _run(points, tmp_path) == 1
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["left out", "run again"]
    assert len(read_points(tmp_path)) == 2


_ODD = st.sampled_from(
    [None, True, -1, 0, 2**63, 10**400, 1e300, float("nan"), float("inf"), "", "x" * 300, "\x00", [], {}, [[]], "8"]
)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, inner in list(items)[:4] for leaf in _leaves(inner, (*path, key)))]


@seed(0)
@settings(max_examples=300, deadline=5000, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_file_is_a_result_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    content = json.loads(next((PUBLISHED / "points").glob("*.json")).read_text())
    where = data.draw(st.sampled_from(_leaves(content)))
    target: Any = content
    if where:
        for key in where[:-1]:
            target = target[key]
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace":
            target[where[-1]] = data.draw(_ODD)
        elif action == "remove":
            del target[where[-1]]
        elif isinstance(target, dict):
            target[data.draw(st.text(max_size=9))] = data.draw(_ODD)
    else:
        content = data.draw(_ODD)
    path = tmp_path / "point.json"
    text = json.dumps(content)
    cut = data.draw(st.integers(0, 9))
    path.write_text(text if cut else text[: data.draw(st.integers(0, len(text)))])
    try:
        assert isinstance(read_point(path), PointResult)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert str(error).startswith(str(path))  # noqa: PT017
        assert len(str(error)) < len(str(path)) + 400  # noqa: PT017
