"""A sweep of three toy tasks, run by a stand-in for lm_eval unless a test wants the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# A token of an earlier cluster in the home folder would keep these tests from the clusters that they start.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
import yaml

from jrt_eval.sweep import spec
from jrt_eval.sweep.spec import Sweep

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
TASK = """\
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {validation: FOLDER/documents.jsonl}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


class Toys:
    """A folder with toy tasks, from which sweeps are made; and helpers for tests that kill things."""

    stand_in = STAND_IN

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.journal = folder / "journal.jsonl"
        tasks = folder / "tasks"
        tasks.mkdir()
        for name in ("toy_a", "toy_b", "toy_c"):
            text = TASK.replace("NAME", name).replace("FOLDER", str(tasks))
            (tasks / f"{name}.yaml").write_text(text)
        (tasks / "toys.yaml").write_text("group: toys\ntask: [toy_a, toy_b]\n")
        rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(24)]
        (tasks / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def raw(self, **keys: Any) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "name": "toys",
            "models": [{"name": "first", "type": "dummy", "args": {"pretrained": "a/first"}}],
            "tasks": ["toy_a", "toy_b", "toy_c"],
            "include_path": "./tasks",
            "batch_size": 8,
            "resources": {"gpus": 0},
        }
        raw |= keys
        raw["metadata"] = {"journal": str(self.journal), **raw.get("metadata", {})}
        return raw

    def sweep(self, **keys: Any) -> Sweep:
        return spec.parse(self.raw(**keys), self.folder / "toys.yaml")

    def file(self, **keys: Any) -> Path:
        path = self.folder / "toys.yaml"
        path.write_text(yaml.safe_dump(self.raw(**keys)))
        return path

    def starts(self) -> list[dict[str, Any]]:
        if not self.journal.exists():
            return []
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def there(self) -> set[str]:
        return {path.parent.name for path in (self.out / "results").glob("*/.record.json")}

    def status(self, job: str = "first") -> dict[str, Any]:
        (path,) = (self.out / "jobs").glob(f"{job}-*/.status.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def program(self, file: Path, *, command: tuple[str, ...], engine: str) -> str:
        """Python code that runs the sweep."""
        return (
            "import sys; from jrt_eval.sweep import run, spec\n"
            "from jrt_eval.sweep.local import LocalEngine\n"
            f"if {engine!r} == 'ray':\n"
            "    from jrt_eval.sweep.ray_engine import RayEngine as LocalEngine\n"
            f"sweep, command = spec.load({str(file)!r}), {command!r}\n"
            f"sys.exit(run.run_sweep(sweep, {str(self.out)!r}, engine=LocalEngine(), command=command))"
        )

    def spawn(self, file: Path, *, command: tuple[str, ...] = STAND_IN, engine: str = "local") -> subprocess.Popen[str]:
        """The sweep in a process of its own, to be killed."""
        program = self.program(file, command=command, engine=engine)
        return subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    @staticmethod
    def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        """Wait until `condition()` is true; a generous limit, so that a slow machine fails nothing."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            time.sleep(0.02)
        pytest.fail(f"{what}: not within {seconds:g} s")

    @staticmethod
    def alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        stat = Path(f"/proc/{pid}/stat")
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return Toys(tmp_path)
