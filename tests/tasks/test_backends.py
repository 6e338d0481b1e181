"""Our tasks through lm-eval's own models, to its standard files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jrt_eval.plugin import task_folder


@pytest.fixture(scope="module")
def checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with random weights and the real tokenizer, as transformers saves it."""
    torch = pytest.importorskip("torch")
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=1024, vocab_size=50257)
    GPT2LMHeadModel(config).save_pretrained(folder)
    gpt2 = shared / "data" / "gpt2"
    backend = ByteLevelBPETokenizer(str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt"))._tokenizer
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's dummy looks for a tokenizer on the hub, again and again."""
    monkeypatch.setattr("lm_eval.models.dummy.DummyLM.tokenizer", None, raising=False)


def evaluate(tasks: list[str], **arguments: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    metadata = {**arguments.pop("metadata", {}), **arguments.get("model_args", {})}
    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    result = lm_eval.simple_evaluate(
        tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=10, device="cpu", **arguments
    )
    assert result is not None
    return dict(result)


def test_hf_in_batches(checkpoint: Path, shared: Path) -> None:
    out = evaluate(
        ["jrt_swde_twice", "jrt_squad"],
        model="hf", model_args={"pretrained": str(checkpoint)}, batch_size=4, limit=3,
        metadata={"data_dir": str(shared / "data" / "hub"), "context_length": 600},
    )  # fmt: skip
    row = out["results"]["jrt_swde_twice"]
    for metric in ("contains", "exact_match", "f1"):
        assert 0 <= row[f"{metric},none"] <= 1
        assert isinstance(row[f"{metric}_stderr,none"], float)
    counts = out["configs"]["jrt_swde_twice"]["metadata"]["jrt"]
    assert counts["max_prompt_tokens"] == 1024 - 48
    assert counts["truncated"] == sum(sample["truncated"] for sample in out["samples"]["jrt_swde_twice"]) > 0
    assert row["truncated,none"] == pytest.approx(counts["truncated"] / counts["prompts"])


def test_dummy_and_group_means(shared: Path) -> None:
    metadata = {
        "data_dir": str(shared / "data" / "hub"),
        "tokenizer": str(shared / "data" / "gpt2"),
        "context_length": 150,
    }
    out = evaluate(["jrt_prompt"], model="dummy", model_args={}, metadata=metadata)
    for group, suffix in (("jrt_once", ""), ("jrt_twice", "_twice")):
        six = [f"jrt_{name}{suffix}" for name in ("swde", "fda", "squad", "drop", "triviaqa", "nq_1024")]
        for metric in ("contains", "exact_match", "f1"):
            mean = sum(out["results"][task][f"{metric},none"] for task in six) / 6
            assert out["groups"][group][f"{metric},none"] == pytest.approx(mean)


def test_means_are_unweighted(shared: Path) -> None:
    """With answers for some data sets only, a mean over tasks and one over documents differ."""
    from lm_eval.api.model import LM

    class KnowsDrop(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [r.doc["jrt_answers"][0] if r.task_name.startswith("jrt_drop") else "-" for r in requests]

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise AssertionError

        loglikelihood_rolling = loglikelihood

    metadata = {"data_dir": str(shared / "data" / "hub"), "tokenizer": str(shared / "data" / "gpt2")}
    out = evaluate(["jrt_prompt"], model=KnowsDrop(), metadata=metadata)
    for group in ("jrt_once", "jrt_twice"):
        assert out["groups"][group]["exact_match,none"] == pytest.approx(1 / 6)
        assert out["groups"][group]["f1,none"] == pytest.approx(1 / 6)


def test_command_line_leaves_the_standard_files(checkpoint: Path, shared: Path, tmp_path: Path) -> None:
    metadata = json.dumps({"data_dir": str(shared / "data" / "hub")})
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={checkpoint}"),
        *(
            "--tasks",
            "jrt_drop,jrt_drop_twice,jrt_sample",
            "--metadata",
            metadata,
            "--include_path",
            str(task_folder()),
        ),
        *("--log_samples", "--output_path", str(tmp_path), "--device", "cpu", "--batch_size", "4", "--limit", "2"),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (results,) = tmp_path.rglob("results_*.json")
    out = json.loads(results.read_text())
    assert out["configs"]["jrt_drop"]["metadata"]["jrt"]["truncated"] == 0
    assert out["versions"]["jrt_drop_twice"] == 1.0
    for task in ("jrt_drop", "jrt_drop_twice", "jrt_sample"):
        (samples,) = tmp_path.rglob(f"samples_{task}_2*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        assert [row["doc"]["jrt_row"] for row in rows] == [0, 1]
        assert {"contains", "exact_match", "f1", "truncated"} <= set(rows[0])
