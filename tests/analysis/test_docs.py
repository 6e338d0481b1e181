"""docs/analysis.md: every command is run on the tests' result files, and must print what the page shows."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import COMMANDS

from jrt_eval.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_shows_how_the_files_were_made() -> None:
    shown = [line.removeprefix("$ ") for line in CONSOLE[0].splitlines()]
    assert shown == [COMMANDS[0], *(f"python tests/analysis/lm/reader.py {run}" for run in COMMANDS[1:])]


def test_commands_print_what_the_page_shows(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for block in CONSOLE[1:]:
        command, _, shown = block.partition("\n")
        assert command.startswith("$ jrt-eval ")
        done = CliRunner().invoke(cli, shlex.split(command)[2:])
        assert done.exit_code == 0, (command, done.output)
        assert done.stdout.rstrip("\n") == shown.rstrip("\n"), command
    code, printed = re.findall(r"^```(?:python|text)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue() == printed
    assert len(list(Path("plots").glob("*.png"))) == len(list(Path("plots").glob("*.svg"))) == 5
    assert {p.suffix for p in Path("tables").iterdir()} == {".md", ".tex", ".csv", ".parquet"}
    assert Path("report.html").stat().st_size > 50_000


def test_numbers_in_the_text_are_numbers_of_the_outputs() -> None:
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^\|.*$", "", prose, flags=re.MULTILINE)
    prose = re.sub(r"`[^`]*`|^    .*$", "", prose, flags=re.MULTILINE)
    numbers = re.findall(r"(?<![\d.])\d+\.\d(?![\d.])", prose)
    assert len(numbers) >= 3
    outputs = "\n".join(CONSOLE)
    assert [n for n in numbers if n not in outputs] == []
