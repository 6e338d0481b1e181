"""Damaged, strange and hostile files: a right result or one line, never a traceback, a hang, or another run lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import write_run

from jrt_eval.analysis import collect, compare_variants, load_results, prompt_table, scores_table
from jrt_eval.analysis.documents import document_data
from jrt_eval.analysis.failures import failure_table
from jrt_eval.analysis.report import write_report
from jrt_eval.cli import cli
from jrt_eval.errors import UserError

BOTH = {"jrt_fda": [1.0, 0.0, 0.0, 1.0] * 3, "jrt_fda_twice": [1.0, 1.0, 0.0, 1.0] * 3}
LITERALS = (
    "null", "true", "-1", "0", "1e300", "NaN", "Infinity", "-Infinity", "9" * 5000, "9223372036854775808", '""', "[]",
    "{}", "[" * 900 + "]" * 900, '"\\ud800"', '"\\u001b[31mred"', '"$\\\\notacommand{$"', '"=cmd()"', '"a\\nb|<b>&"',
    '"' + "x" * 300 + '"', '"2025-99-99"', '[[1, 2], "a"]', '{"a": [1]}', '"twice"', "0.5", '"0.5"',
)  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The text of a result file and of a sample file."""
    folder = tmp_path_factory.mktemp("valid")
    result = write_run(folder, "m", BOTH)
    return result.read_text(), next(folder.rglob("samples_jrt_fda_2*")).read_text()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def replaced(text: str, place: int, literal: str) -> str:
    """The JSON with the value at one place replaced by a literal."""
    data = json.loads(text)
    every = places(data)
    path = every[place % len(every)]
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "\0here"
    return json.dumps(data).replace('"\\u0000here"', literal)


edits = st.one_of(
    st.tuples(st.just("value"), st.integers(0, 400), st.sampled_from(LITERALS)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.none()),
    st.tuples(st.just("byte"), st.floats(0, 1), st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("twice"), st.integers(0, 11), st.none()),
)


def mutate(text: str, edit: tuple[str, Any, Any], lines: bool) -> bytes:
    kind, where, what = edit
    raw = text.encode()
    if kind == "value" and lines:
        first, _, rest = text.partition("\n")
        return (replaced(first, where, what) + "\n" + rest).encode()
    if kind == "value":
        return replaced(text, where, what).encode()
    if kind == "twice":
        rows = raw.splitlines(keepends=True)
        return b"".join([*rows, rows[where % len(rows)]])
    at = int(where * len(raw))
    return raw[:at] if kind == "cut" else raw[:at] + what + raw[at + 1 :]


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutations=st.lists(st.tuples(edits, edits, st.integers(0, 2)), min_size=6, max_size=6))
def test_any_mutation_ends_in_results_or_one_line(
    valid: tuple[str, str], tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[Any, Any, int]]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    write_run(folder, "sound", BOTH)
    for number, (results, samples, which) in enumerate(mutations):
        result = write_run(folder, f"m{number}", BOTH)
        text = valid[0].replace('"m"', f'"m{number}"')
        if which != 1:
            result.write_bytes(mutate(text, results, lines=False))
        if which != 0:
            sample = next((folder / f"m{number}").glob("samples_jrt_fda_2*"))
            sample.write_bytes(mutate(valid[1], samples, lines=True))
    done = collect(folder, folder / "out")
    assert done.runs >= 1
    loaded = load_results(folder / "out")
    assert "sound" in {str(m) for m in loaded.scores["model_name"]}
    assert compare_variants(loaded, metric="contains", models=["sound"]).table["n"].tolist() == [12]
    for make in (scores_table, prompt_table):
        try:
            table = make(loaded)
        except UserError:
            continue
        for form in ("terminal", "markdown", "latex", "csv"):
            assert "\x1b" not in table.render(form).replace("\x1b[0m", "")
    with_all = compare_variants(loaded, metric="contains")
    assert with_all.table["gain"].between(-1, 1).all()


def test_a_report_of_strange_names(tmp_path: Path) -> None:
    evil = "$\\notacommand{$ <b>\x1b[31m =x | \ud800 " + "x" * 300
    path = write_run(tmp_path, "m", BOTH)
    path.write_text(path.read_text().replace('"model_name": "m"', f'"model_name": {json.dumps(evil)}'))
    write_run(tmp_path, "=1+1", BOTH)
    results = load_results(tmp_path)
    write_report(results, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    table = scores_table(results)
    assert "\x1b" not in table.terminal(color=False)
    assert "jrt_fda,'=1+1" in table.render("csv")
    assert "\n=1+1" not in table.render("csv")


def test_nan_and_infinity_reject_nothing(tmp_path: Path) -> None:
    path = write_run(tmp_path, "m", BOTH, result={"f1,none": float("nan"), "x,none": float("inf")})
    assert "NaN" in path.read_text()
    sample = next(tmp_path.rglob("samples_jrt_fda_2*"))
    lines = sample.read_text().splitlines()
    sample.write_text("\n".join([lines[0].replace('"contains": 1.0', '"contains": NaN'), *lines[1:]]) + "\n")
    done = collect(tmp_path)
    assert (done.predictions, done.skipped) == (24, {})
    comparison = compare_variants(load_results(tmp_path))
    assert comparison.table["n"].tolist() == [11]
    assert "1 document without a finite contains left out: m, jrt_fda" in comparison.warnings


def test_one_bad_line_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, "m", BOTH)
    sample = next(tmp_path.rglob("samples_jrt_fda_2*"))
    lines = sample.read_text().splitlines()
    sample.write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    done = collect(tmp_path)
    assert done.predictions == 23
    assert next(iter(done.skipped.values())).startswith("1 line of it left out (the line at byte ")
    assert compare_variants(load_results(tmp_path)).table["n"].tolist() == [11]
    with pytest.raises(UserError, match="1 line of it left out"):
        collect(tmp_path, strict=True)


def test_hidden_folders_links_and_several_roots(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "m", BOTH, name=".__my-ckpt")
    write_run(tmp_path / "runs", ".mb", BOTH)
    write_run(tmp_path / "elsewhere", "linked", BOTH)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert set(load_results(tmp_path / "runs").scores["model"]) == {"m", ".mb", "linked"}
    write_run(tmp_path / "more", "n", BOTH)
    done = collect([tmp_path / "runs", tmp_path / "more"])
    assert done.out == tmp_path / "collected"
    assert done.runs == 4
    assert collect([tmp_path / "runs", tmp_path / "more"]).reused == 4 * 3
    assert load_results(tmp_path / "runs", tmp_path / "more").scores["model"].nunique() == 4
    collect(tmp_path / "more")
    both = load_results(tmp_path / "more" / "collected", tmp_path / "collected")
    assert compare_variants(both).table["n"].tolist() == [12] * 4


def test_files_that_are_no_files(tmp_path: Path) -> None:
    write_run(tmp_path, "m", BOTH)
    os.mkfifo(tmp_path / "m" / "results_2026-01-01T00-00-00.000000.json")
    os.mkfifo(tmp_path / "m" / "samples_jrt_fda_2026-01-01T00-00-00.000000.jsonl")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / os.fsdecode(b"caf\xe9.json")).write_text("{}")
    done = collect(tmp_path)
    assert done.runs == 1
    assert sorted(done.skipped.values()) == [
        "cannot be read (No such file or directory)",
        "foreign: no lm-eval result (no 'results' in it)",
        "not a regular file",
        "not a regular file",
    ]


def test_files_vanish_while_collect_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "m", BOTH)
    write_run(tmp_path, "n", BOTH)
    from jrt_eval.analysis import parse

    real = parse.ranges

    def ranges(path: Path) -> Any:
        if path.parent.name == "n":
            path.unlink()
        return real(path)

    monkeypatch.setattr(parse, "ranges", ranges)
    done = collect(tmp_path)
    assert (done.runs, done.predictions) == (2, 24)
    assert set(done.skipped.values()) == {"cannot be read (No such file or directory)"}


def test_several_collects_at_once(tmp_path: Path) -> None:
    for name in "abcd":
        write_run(tmp_path, name, BOTH)
    failed: list[Exception] = []

    def go() -> None:
        try:
            for _ in range(3):
                collect(tmp_path)
                assert len(load_results(tmp_path / "collected").predictions) == 96
        except (UserError, OSError, AssertionError) as error:
            failed.append(error)

    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_collect_runs_no_code_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "m", BOTH)
    for name in ("orjson", "ctypes", "pyarrow", "json", "jrt_eval"):
        (tmp_path / f"{name}.py").write_text("open('/dev/stderr', 'w').write('HACKED'); raise SystemExit(9)")
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p]\n"
        "from jrt_eval.analysis import collect, parse\nparse.FEW_BYTES = 0\nprint(collect('.', workers=2).predictions)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "24", "")


def test_our_task_and_lm_evals_own_on_one_data_set_are_told_apart(tmp_path: Path) -> None:
    own = {"fda": [0.0, 1.0] * 6, "fda_twice": [1.0] * 12}
    write_run(tmp_path, "m", {**BOTH, **own})
    results = load_results(tmp_path)
    assert compare_variants(results).table.set_index("dataset")["n"].to_dict() == {
        "fda": 12,
        "jrt_fda": 12,
        "all tasks": 24,
    }
    table = prompt_table(results)
    assert [c for c in table.columns() if c[1] == "once"] == [("FDA", "once"), ("jrt_fda", "once"), ("average", "once")]
    assert len(failure_table(results, "contains")) == 4
    write_report(results, tmp_path / "r.html")


def test_a_document_that_was_written_twice_counts_once_everywhere(tmp_path: Path) -> None:
    write_run(tmp_path, "m", BOTH)
    for path in tmp_path.rglob("samples_*"):
        path.write_text(path.read_text() * 2)
    results = load_results(tmp_path)
    assert compare_variants(results).table["n"].tolist() == [12]
    assert failure_table(results, "contains")["n"].tolist() == [12, 12]
    assert document_data(results, "contains").shown == 24


@pytest.mark.parametrize(("metric", "higher"), [("perplexity", False), ("truncated", False), ("score", True)])
def test_kinds_of_answers_need_a_metric_that_tells_right_from_wrong(metric: str, higher: bool, tmp_path: Path) -> None:
    tasks = {"jrt_w": [1.0, 3.0, 1.0] * 4, "jrt_w_twice": [2.0, 1.0, 4.0] * 4}
    write_run(tmp_path, "m", tasks, metric=metric, higher_is_better={task: {metric: higher} for task in tasks})
    results = load_results(tmp_path)
    with pytest.raises(UserError, match="does not say which answers are correct"):
        failure_table(results, metric)
    write_report(results, tmp_path / "r.html", metric=metric)
    assert "answers by kind" not in (tmp_path / "r.html").read_text()


def test_a_narrow_table_keeps_its_title_on_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, "m", {"jrt_fda_twice": [1.0]})
    assert prompt_table(load_results(tmp_path)).terminal(color=False).splitlines()[0] == "contains, percent: read twice"


def test_each_column_has_its_own_decimals(tmp_path: Path) -> None:
    write_run(tmp_path, "m", {"jrt_fda": [1.0, 0.0, 1.0, 1.0]})
    write_run(tmp_path, "m", {"wiki": [12.5, 13.5]}, metric="word_perplexity")
    cells = scores_table(load_results(tmp_path)).cells()
    assert [row[-2:] for row in cells] == [["75.0 ± 10.0", "–"], ["–", "13.000 ± 0.100"]]


def test_a_baseline_alone(tmp_path: Path) -> None:
    write_run(tmp_path, "m", BOTH)
    done = CliRunner().invoke(cli, ["compare", str(tmp_path), "--baseline", "m"])
    assert "m is the only model here" in str(done.exception)
