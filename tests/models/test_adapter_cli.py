"""The whole of lm-eval around the adapter: its command line, one process and two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
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


def run(place: Path, out: str, *launcher: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    model_args = {"pretrained": place / "model"} | arguments
    command = [sys.executable, "-m", *launcher, "lm_eval", "--model", "jrt", "--include_path", str(place),
               "--tasks", "toy", "--batch_size", "2", "--device", "cpu", "--output_path", str(place / out), "--log_samples",
               "--model_args", ",".join(f"{k}={v}" for k, v in model_args.items())]  # fmt: skip
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(place / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet, cwd=place, check=False)


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


def test_a_mistake_is_one_line(place: Path) -> None:
    done = run(place, "none", short_prompt="left-pad")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "did you mean 'left_pad'" in done.stderr.strip().splitlines()[-1]
