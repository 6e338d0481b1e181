"""The jrt-eval command: quick to start, teaches by --help, errors in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from jrt_eval import __version__
from jrt_eval.cli import COMMANDS, cli
from jrt_eval.errors import UserError, nearest


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(sys.executable).parent)


def test_version() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"jrt-eval, version {__version__}\n"


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    assert all(name in output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_itself(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_a_misspelt_command_names_the_nearest() -> None:
    result = CliRunner().invoke(cli, ["docter"])
    assert result.exit_code == 2
    assert "no command 'docter' (did you mean 'doctor'?)" in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from jrt_eval.cli import cli;"
        "CliRunner().invoke(cli, ['--help']);"
        "heavy = ('torch', 'lm_eval', 'pandas', 'transformers', 'datasets', 'matplotlib');"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["jrt_eval", "jrt_eval.plugin", "jrt_eval.prompts", "jrt_eval.analysis", "jrt_eval.cli"]
)
def test_light_parts_import_neither_torch_nor_lm_eval(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'lm_eval') if m in sys.modules])"
    result = run_python(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_user_errors_are_one_line() -> None:
    code = (
        "from jrt_eval.errors import install_excepthook, UserError; install_excepthook(); install_excepthook();"
        "raise UserError('runs: no such folder; give the one that --output_path named')"
    )
    result = run_python(code)
    assert result.returncode == 1
    assert result.stderr == "jrt-eval: error: runs: no such folder; give the one that --output_path named\n"


def test_other_errors_keep_their_traceback() -> None:
    result = run_python("from jrt_eval.errors import install_excepthook; install_excepthook(); 1 / 0")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_nearest() -> None:
    assert nearest("jrt_sqaud", ["jrt_squad", "jrt_drop"]) == " (did you mean 'jrt_squad'?)"
    assert nearest("zzz", ["jrt_squad"]) == ""
    assert issubclass(UserError, ValueError)


def test_doctor_describes_a_model() -> None:
    from jrt_eval.cli.doctor import doctor

    result = CliRunner().invoke(doctor, ["--model", "mini-based"])
    assert "mini-based: based, 2,048,896 parameters, bfloat16" in result.output
    assert "padded: padding is masked in every layer" in result.output
    assert "bytes after 2,048 tokens: attention cache" in result.output
    assert CliRunner().invoke(doctor, ["--model", "nowhere/at/all"]).exit_code == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_one_line(tmp_path: Path) -> None:
    """As another user, who may not even ask whether a file is in the folder; who may not read modules either, so they are imported before."""
    (tmp_path / "runs").mkdir(mode=0o700)
    code = (
        "import os, sys; from jrt_eval.cli import main; import jrt_eval.analysis.load, jrt_eval.analysis.tables, jrt_eval.cli.scores;"
        f"os.seteuid(65534); sys.argv = ['jrt-eval', 'scores', {str(tmp_path / 'runs')!r}]; main()"
    )
    done = run_python(code)
    assert done.returncode == 1
    said = re.escape(f"jrt-eval: error: cannot use {tmp_path / 'runs'}") + r"(/manifest\.json)?: Permission denied\n"
    assert re.fullmatch(said, done.stderr), done.stderr
