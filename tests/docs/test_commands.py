"""The commands of docs/read-twice.md and docs/protocols.md, as a user would paste them.

Commands with mini checkpoints run as they are, on fewer documents. The others name released checkpoints and data sets of
the hub: their tasks run on real documents with a model that knows no answers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def commands(page: str) -> list[list[str]]:
    if not DOCS.is_dir():
        return []
    blocks = re.findall(r"^```bash\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(block) for block in blocks]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


ALL = [*commands("read-twice.md"), *commands("protocols.md")]
MINIS = [command for command in ALL if "mini-" in " ".join(command)]
OTHERS = [command for command in ALL if command[0] == "lm_eval" and command not in MINIS]


def test_every_command_is_known() -> None:
    assert len(ALL) == len(MINIS) + len(OTHERS) + 1
    assert ["jrt-eval", "audit", "runs"] in ALL


@pytest.mark.parametrize("command", MINIS, ids=lambda command: option(command, "--tasks"))
def test_commands_with_minis(command: list[str], tmp_path: Path) -> None:
    run = [sys.executable, "-P", "-m", *command, "--device", "cpu", "--limit", "1"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    samples = {re.sub(r"_\d{4}-.*", "", path.name) for path in tmp_path.rglob("samples_*")}
    assert samples == {f"samples_{task}" for task in option(command, "--tasks").split(",")}
    audit = [sys.executable, "-P", "-m", "jrt_eval", "audit", "runs"]
    shown = subprocess.run(audit, cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert all(task in shown.stdout for task in option(command, "--tasks").split(","))


@pytest.fixture(scope="module")
def manager() -> Any:
    """lm-eval's index of all its tasks, made once: reading thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.mark.parametrize("command", OTHERS, ids=lambda command: option(command, "--tasks"))
def test_commands_with_released_checkpoints(command: list[str], manager: Any, shared: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.api.model import LM

    class Silent(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [""] * len(requests)

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise AssertionError

        loglikelihood_rolling = loglikelihood

    for folder in (shared / "data" / "hub").iterdir():
        (tmp_path / folder.name).symlink_to(folder.resolve())
    large = shared / "data" / "hub-large" / "based_nq_2048" / "validation.jsonl"
    if not large.is_file():
        pytest.skip(f"no {large}")
    (tmp_path / "based_nq_2048").mkdir()
    pages = large.read_text().splitlines()[40:50]  # some that are long enough for every window of jrt_depth
    (tmp_path / "based_nq_2048" / "validation.jsonl").write_text("\n".join(pages) + "\n")
    manager._factory._meta = {"data_dir": str(tmp_path), "tokenizer": str(shared / "data" / "gpt2")}
    group, *more = manager.match_tasks(option(command, "--tasks").split(","))
    if group in ("jrt_unwindowed", "jrt_closed_book"):  # their documents are on the hub only
        assert all(name in manager.task_index for name in manager.task_index[group].cfg["task"])
        return
    out = lm_eval.simple_evaluate(Silent(), tasks=[group, *more], task_manager=manager, limit=1, bootstrap_iters=0)
    assert out is not None
    assert len(out["configs"]) == {"jrt_prompt": 12, "jrt_2k": 6, "jrt_depth": 2, "jrt_needle": 2}[group]


@pytest.mark.parametrize("results", ["minis", "smollm2"])
def test_the_tables_of_read_twice_are_what_the_script_prints(results: str) -> None:
    root = DOCS.parent
    script = root / "benchmarks" / "variants.py"
    if not script.is_file():
        pytest.skip(f"no {script}")
    command = [sys.executable, "-P", str(script), "--output", str(root / "results" / "variants" / results)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed in (DOCS / "read-twice.md").read_text()
