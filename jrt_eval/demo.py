"""`jrt-eval demo`: the main job from end to end, on this machine, with nothing downloaded.

Runs stock `lm_eval` on a read-once task and its read-twice variant with small local models, and shows both side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    text = (task_folder() / "jrt_sample").glob("*.jsonl")
    passages = [value for file in text for line in file.read_text().splitlines() for value in json.loads(line).values()]
    tokenizer.train_from_iterator([p for p in passages if isinstance(p, str)], vocab_size=1024, special_tokens=["<|endoftext|>"])
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
