"""`jrt-eval demo`: the main job from end to end, on this machine, with nothing downloaded.

Runs stock `lm_eval` with small local models on a read-once task and its read-twice variant, and shows both side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import click

from jrt_eval.errors import UserError

# A JRT-RNN and a Based model of the released form, small enough for any machine.
_CONFIG = {
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 4,
    "n_inner": 128,
    "n_positions": 0,
    "max_position_embeddings": 0,
    "pad_vocab_size_multiple": 8,
    "activation_function": "swiglu",
    "rms_norm": True,
    "residual_in_fp32": True,
    "layer_norm_epsilon": 1e-5,
    "rotary_emb_fraction": 1,
    "qkv_proj_bias": False,
    "out_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "tie_word_embeddings": True,
    "mixer": {"_target_": "BaseConv", "use_bias": True, "expand_proj": 4, "kernel_sizes": 3},
    "alt_mixer_layers": [1],
    "alt_mixer_2_layers": [2],
    "alt_mixer_2": {"_target_": "SlidingAttention", "window_size": 64, "num_heads": 4, "causal": True},
}
_LINEAR = {
    "random-jrt": {"_target_": "PrefixLinearAttention", "feature_dim": 8, "num_heads": 4, "enc_length": 256},
    "random-based": {"_target_": "LinearAttention", "feature_dim": 8, "num_heads": 4},
}


def build_local_models(folder: Path) -> list[Path]:
    """Write a tiny JRT-RNN and a tiny Based checkpoint with random weights, and a tokenizer, under `folder`.

    They have learnt nothing: they show that the whole path runs, not what a model can recall.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    from jrt_eval.models import from_config, save_pretrained
    from jrt_eval.plugin import task_folder

    tokenizer = ByteLevelBPETokenizer()
    lines = (task_folder() / "jrt_sample" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [value for line in lines for value in json.loads(line).values()]
    tokenizer.train_from_iterator(
        [p for p in passages if isinstance(p, str)], vocab_size=1024, special_tokens=["<|endoftext|>"]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>")

    written = []
    for name, linear in _LINEAR.items():
        torch.manual_seed(0)
        model = from_config({**_CONFIG, "vocab_size": len(fast), "alt_mixer": linear})
        save_pretrained(model, folder / name)
        fast.save_pretrained(folder / name)
        written.append(folder / name)
    return written


def run_lm_eval(model: str, tasks: str, output: Path, metadata: dict[str, str], limit: int | None) -> None:
    """One stock lm_eval process, its output shown as it comes."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "jrt", "--model_args", f"pretrained={model}"]
    command += ["--tasks", tasks, "--batch_size", "8", "--device", "cpu", "--output_path", str(output), "--log_samples"]
    if metadata:
        command += ["--metadata", json.dumps(metadata)]
    if limit:
        command += ["--limit", str(limit)]
    click.secho("$ " + " ".join(["lm_eval", *command[3:]]), bold=True)
    if subprocess.run(command).returncode != 0:
        raise UserError(f"lm_eval failed on {model}; its last lines stand above")


def show(runs: Path) -> None:
    """Print `contains` in percent, once against twice, a row per model and data set."""
    from jrt_eval.results import load_results

    scores = load_results(runs).scores
    groups = scores["task"].isin(["jrt_once", "jrt_twice"])  # their means, not tasks of their own
    scores = scores[(scores["metric"] == "contains") & scores["variant"].isin(["once", "twice"]) & ~groups]
    wide = (
        scores.assign(model=[Path(str(model)).name for model in scores["model"]])
        .astype({"dataset": str, "variant": str})
        .pivot_table(index=["model", "dataset"], columns="variant", values=["value", "stderr", "n"])
    )
    click.echo(f"\n{'model':<16}{'documents':<14}{'n':>5}{'once':>14}{'twice':>14}{'gain':>8}")
    for key, row in wide.iterrows():
        model, dataset = cast("tuple[str, str]", key)
        once, twice = 100 * row["value", "once"], 100 * row["value", "twice"]
        errors = 100 * row["stderr", "once"], 100 * row["stderr", "twice"]
        cells = f"{once:6.1f} ± {errors[0]:4.1f}", f"{twice:6.1f} ± {errors[1]:4.1f}"
        click.echo(f"{model:<16}{dataset:<14}{row['n', 'once']:5.0f}{cells[0]:>14}{cells[1]:>14}{twice - once:+8.1f}")
    click.echo("(% of answers that contain the gold one ± standard error; `jrt-eval compare` has paired intervals)")


@click.command()
@click.option("-o", "--output", default="runs/demo", show_default=True, help="Folder for models and lm-eval output.")
@click.option("--data-dir", help="Real documents instead: <data-dir>/<dataset>/validation.jsonl (docs/tasks.md).")
@click.option("--limit", type=click.IntRange(1), help="Only so many documents of each task.")
def demo(output: str, data_dir: str | None, limit: int | None) -> None:
    """Run lm_eval on read-once and read-twice tasks with small local models, and show both side by side.

    Without --data-dir it reads the passages that ship with jrt-eval. Nothing is downloaded.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"--data-dir {data_dir}: no such folder")
    folder = Path(output)
    click.echo("These models are built here with random weights: they show the way, not what a model recalls.\n")
    models = build_local_models(folder / "models")
    tasks = "jrt_sample,jrt_sample_twice" if data_dir is None else "jrt_prompt"
    metadata = {} if data_dir is None else {"data_dir": data_dir}
    for model in models:
        run_lm_eval(str(model), tasks, folder / "runs", metadata, limit)
    show(folder / "runs")
    click.echo(f"\nEverything that was written is under {folder}. Next: jrt-eval collect {folder / 'runs'}")
