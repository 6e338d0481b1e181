"""The commands: bad input is one clear line and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from results_files import edit, result_file, sample_file

from jrt_eval.cli import cli
from jrt_eval.errors import UserError


def run(*arguments: str) -> str:
    """The output of a command that must succeed."""
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def fails(*arguments: str) -> str:
    """The message of a command that must fail as a user's error."""
    done = CliRunner().invoke(cli, list(arguments))
    assert isinstance(done.exception, UserError), (done.output, done.exception)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_one_line_and_exit_code_from_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from jrt_eval.cli import main; main()", "collect", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f"jrt-eval: error: no such folder: {tmp_path / 'none'}"


@pytest.mark.parametrize("command", ["collect", "compare", "report"])
def test_folders_with_nothing(command: str, tmp_path: Path) -> None:
    assert "no such folder" in fails(command, str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "nothing to collect" in fails(command, str(tmp_path / "empty"))
    (tmp_path / "file").write_text("x")
    assert "is a file" in fails(command, str(tmp_path / "file"))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "results_2026-01-01T00-00-00.json").write_text('{"results": {')
    assert "half-written" in fails(command, str(tmp_path / "torn"))
    assert not list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("*.html"))


def test_out_is_not_overwritten_when_it_is_something_else(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "was not made by collect" in fails("collect", str(runs), "-o", str(tmp_path / "mine"))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert "is a folder" in fails("report", str(runs), "-o", str(tmp_path / "mine"))
    (tmp_path / "file").write_text("x")
    assert "is a file" in fails("collect", str(runs), "-o", str(tmp_path / "file"))
    assert "cannot write" in fails("compare", str(runs), "-o", str(tmp_path / "file" / "t.md"))


def test_results_without_samples(runs: Path) -> None:
    for path in runs.rglob("samples_*"):
        path.unlink()
    assert "0 predictions" in run("collect", str(runs))
    assert "run lm_eval with --log_samples" in fails("compare", str(runs))
    run("report", str(runs / "collected"), "-o", str(runs / "r.html"))
    assert "run lm_eval with --log_samples" in (runs / "r.html").read_text(encoding="utf-8")
    assert "88.3 ± 2.0" in run("scores", str(runs / "collected"))
    assert "acme/reader-small" in run("compare", str(runs), "--table", "prompt")


def test_mixed_metrics(runs: Path) -> None:
    assert "without contains, so left out: colours_choice" in run("compare", str(runs), "--table", "prompt")
    assert "no metric 'bleu' in the samples: " in fails("compare", str(runs), "--metric", "bleu")
    assert "nothing was read twice here" in fails("compare", str(runs), "--metric", "acc")


def test_only_one_variant(runs: Path) -> None:
    for path in runs.rglob("results_*.json"):
        data = json.loads(path.read_text())
        data["results"] = {k: v for k, v in data["results"].items() if not k.endswith("_twice")}
        path.write_text(json.dumps(data))
    assert "nothing was read twice here" in fails("compare", str(runs))
    assert "3M" in run("compare", str(runs), "--table", "prompt")


def test_two_models_with_one_name(runs: Path) -> None:
    edit(result_file(runs, "acme__reader-large"), model_name="acme/reader-small")
    out = run("collect", str(runs))
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "2 different models have the name acme/reader-small" in notes[0]


def test_skipped_files_are_printed(runs: Path) -> None:
    path = sample_file(runs, "jrt_towns")
    path.write_bytes(path.read_bytes()[:-9])
    assert f"skipped, half-written: its last line is cut: acme__reader-small/{path.name}" in run("collect", str(runs))
    assert "half-written" in fails("collect", str(runs), "--strict")


def test_options_that_do_not_go_together(runs: Path) -> None:
    assert "--published goes with" in fails("compare", str(runs), "--published")
    assert "does not go with" in fails("compare", str(runs), "--versus", "a", "b", "--table", "prompt")
    assert "did you mean 'acme/reader-large'" in fails("compare", str(runs), "--model", "acme/reader-lage")
    assert "did you mean 'acme/reader-large'" in fails("compare", str(runs), "--versus", "acme/reader-lage", "x")


def test_one_model_only(runs: Path) -> None:
    out = run("compare", str(runs), "--model", "acme/reader-large")
    assert "acme/reader-large" in out
    assert "acme/reader-small" not in out


def test_some_tasks_only(runs: Path, tmp_path: Path) -> None:
    out = run("compare", str(runs), "--task", "towns")
    assert "towns" in out
    assert "colours" not in out
    assert "all tasks" not in out
    out = run("compare", str(runs), "--table", "prompt", "--task", "jrt_towns", "--task", "colours")
    assert [word in out for word in ("colours", "towns")] == [True, True]
    assert "–" in out  # towns was read once only among these
    assert "did you mean 'towns'" in fails("compare", str(runs), "--task", "town")
    run("report", str(runs), "-o", str(tmp_path / "r.html"), "--task", "towns", "--model", "acme/reader-small")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "1 model, 2 tasks, 120 predictions" in page
    assert "colours" not in page


def test_distances_in_tokens(runs: Path, shared: Path) -> None:
    out = run("compare", str(runs), "--table", "by-distance", "--tokenizer", str(shared / "data" / "gpt2"))
    assert "gain by tokens between the answer and the question" in out
