"""Result files made by real lm-eval runs, once per session."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for results_files
# As docs/analysis.md shows them; the arguments of the last two follow "python tests/analysis/lm/reader.py".
COMMANDS = (
    "python tests/analysis/lm/make_tasks.py tasks 60",
    "--model reader --model_args pretrained=acme/reader-small,memory=150,parameters=1000000 "
    "--tasks facts,colours_choice --include_path tasks --output_path runs --log_samples",
    "--model reader --model_args pretrained=acme/reader-large,memory=400,parameters=3000000 "
    "--tasks facts --include_path tasks --output_path runs --log_samples",
)


def lm_eval(*runs: str, cwd: Path, autoload: bool = False) -> None:
    """Run lm-eval's command with the reader model, several runs in one process."""
    arguments: list[str] = []
    for run in runs:
        arguments += (["--next"] if arguments else []) + shlex.split(run)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["JRT_EVAL_AUTOLOAD"] = "1" if autoload else "0"
    done = subprocess.run(
        [sys.executable, str(HERE / "lm" / "reader.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs`: two readers on four tasks of ours, their group and a multiple-choice task; and `tasks`."""
    folder = tmp_path_factory.mktemp("made")
    make, *runs = COMMANDS
    subprocess.run([sys.executable, str(HERE / "lm" / "make_tasks.py"), *make.split()[2:]], check=True, cwd=folder)
    lm_eval(*runs, cwd=folder)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of the runs that a test may change."""
    return Path(shutil.copytree(made / "runs", tmp_path / "runs"))
