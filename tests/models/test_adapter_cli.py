"""The whole of lm-eval around the adapter: its command line, one process and two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, spelled, tiny

from jrt_eval.models import save_pretrained

TASK = """
task: toy
dataset_path: json
dataset_kwargs: {data_files: {validation: DATA}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "x"
generation_kwargs: {until: ["<end>"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    save_pretrained(tiny("jrt"), root / "model")
    byte_tokenizer(251, end=0).save_pretrained(root / "model")
    docs = [{"text": spelled([(7 * i + j) % 250 + 1 for j in range(3 + 9 * i)])} for i in range(7)]
    (root / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (root / "toy.yaml").write_text(TASK.replace("DATA", str(root / "docs.jsonl")))
    return root


def quiet(place: Path) -> dict[str, str]:
    """No network, one thread, no cache of the user's."""
    return {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(place / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(place: Path, out: str, *launcher: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    model_args = {"pretrained": place / "model"} | arguments
    command = [sys.executable, "-m", *launcher, "lm_eval", "--model", "jrt", "--include_path", str(place),
               "--tasks", "toy", "--batch_size", "2", "--device", "cpu", "--output_path", str(place / out), "--log_samples",
               "--model_args", ",".join(f"{k}={v}" for k, v in model_args.items())]  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | quiet(place), cwd=place, check=False
    )


def answers(place: Path, out: str) -> dict[int, str]:
    (file,) = (place / out).rglob("samples_toy_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["doc_id"]: row["resps"][0][0] for row in rows}


def test_two_processes_answer_as_one(place: Path) -> None:
    """Data parallel, as under `accelerate launch`; the tokenizer is the checkpoint's own."""
    one = run(place, "one")
    assert one.returncode == 0, one.stderr[-2000:]
    two = run(place, "two", "torch.distributed.run", "--nproc_per_node", "2", "-m")
    assert two.returncode == 0, two.stderr[-2000:]
    assert answers(place, "one") == answers(place, "two")
    assert len(answers(place, "one")) == 7
    (file,) = (place / "one").rglob("results_*.json")
    config = json.loads(file.read_text())["config"]
    assert (config["model_family"], config["model_encoder_length"]) == ("jrt", 24)


# Every argument list through lm_eval's own entry point, its tasks indexed once; the last one's error is left to the interpreter.
MANY = """
import json, sys
import lm_eval.tasks
from lm_eval.__main__ import cli_evaluate

manager, held = lm_eval.tasks.TaskManager, []
lm_eval.tasks.TaskManager = lambda *args, **kwargs: held[0] if held else held.append(manager(*args, **kwargs)) or held[0]
*first, last = json.loads(sys.argv[1])
for arguments in first:
    sys.argv[1:] = arguments
    try:
        cli_evaluate()
    except Exception:
        sys.excepthook(*sys.exc_info())
    else:
        print("no error", file=sys.stderr)
    print("== next", file=sys.stderr, flush=True)
sys.argv[1:] = last
cli_evaluate()
"""


class Hostile:
    """Unpickled by Python's own means, this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_mistakes_are_one_line_each(place: Path, tmp_path: Path) -> None:
    def damaged(name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
        folder = shutil.copytree(place / "model", tmp_path / name)
        tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        torch.save(edit(tensors) or tensors, folder / "pytorch_model.bin")
        return folder

    norm = "transformer.ln_f.weight"
    truncated = shutil.copytree(place / "model", tmp_path / "truncated")
    os.truncate(truncated / "pytorch_model.bin", 9000)
    hostile = shutil.copytree(place / "model", tmp_path / "target")
    config = json.loads((hostile / "config.json").read_text())
    config["mixer"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'owned'}"}
    (hostile / "config.json").write_text(json.dumps(config))
    large = shutil.copytree(place / "model", tmp_path / "large")
    byte_tokenizer(300, end=0).save_pretrained(large)
    cases: list[tuple[Path | str, str, str]] = [
        (truncated, "", "pytorch_model.bin (9,000 bytes) is truncated"),
        (damaged("whole", lambda t: t.update({norm: t[norm].long()})), "", f"{norm} is int64"),
        (damaged("nan", lambda t: t.update({norm: t[norm] * float("nan")})), "", f"{norm} holds NaN"),
        (damaged("shape", lambda t: t.update({norm: torch.ones(7)})), "", f"{norm} has shape (7,), expected (48,)"),
        (large, "", "256 rows in its vocabulary, the tokenizer"),
        ("hazyresearch/no-such-checkpoint", "", "the Hugging Face hub cannot be reached"),
        ("mini-atn", "", "did you mean 'mini-attn'"),
        (tmp_path / "nowhere", "", "no such folder"),
        (hostile, "", "mixer names 'os.system', known mixers are"),
        (damaged("pickle", lambda t: {norm: Hostile(tmp_path / "owned")}), "", "holds more than tensors"),
        (place / "model", ",dtype=float23", "dtype 'float23' is not known"),
        (place / "model", ",short_prompt=left-pad", "did you mean 'left_pad'"),
    ]
    arguments = [
        ["--model", "jrt", "--model_args", f"pretrained={where}{more}", "--include_path", str(place), "--tasks", "toy",
         "--device", "cpu"]
        for where, more, _ in cases
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", MANY, json.dumps(arguments)], capture_output=True, text=True, check=False,
                          env=os.environ | quiet(place), cwd=place)  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    parts = done.stderr.split("== next\n")
    for part, (_, _, says) in zip(parts, cases, strict=True):
        errors = [line for line in part.splitlines() if line.startswith("jrt-eval: error: ")]
        assert len(errors) == 1, part
        assert says in errors[0]
        assert part.splitlines()[-1] == errors[0]
    assert not (tmp_path / "owned").exists()
