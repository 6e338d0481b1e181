"""Small random models with a byte-level tokenizer, to try a sweep out without a download.

Their answers mean nothing. They are loaded, prompted and recorded like any other model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SEED = 0
_WIDTH = 32


def make(kind: str, folder: Path) -> None:
    """Write a random model of the family `kind` (spec.RANDOM) to `folder`, always the same, unless the folder has one."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

    building = folder.with_name(f".{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    tokenizer = _tokenizer()
    size, end = len(tokenizer), tokenizer.eos_token_id
    torch.manual_seed(SEED)
    if kind == "jrt":
        _jrt(building, size)
    elif kind == "mamba":
        shape = {"hidden_size": _WIDTH, "num_hidden_layers": 2, "state_size": 8}
        MambaForCausalLM(MambaConfig(vocab_size=size, eos_token_id=end, bos_token_id=end, **shape)).save_pretrained(
            building
        )
    else:
        shape = {"n_embd": _WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 4096}
        GPT2LMHeadModel(GPT2Config(vocab_size=size, eos_token_id=end, bos_token_id=end, **shape)).save_pretrained(
            building
        )
    tokenizer.save_pretrained(building)
    building.rename(folder)


def _tokenizer() -> Any:
    """One token per byte, and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def _jrt(folder: Path, size: int) -> None:
    """A JRT-RNN in the release's form, with one layer of each mixer."""
    from jrt_eval.models.recurrent.checkpoint import save_pretrained
    from jrt_eval.models.recurrent.config import parse_config
    from jrt_eval.models.recurrent.model import JRTModel

    raw: dict[str, Any] = {
        "mixer": {"_target_": "BaseConv", "use_bias": True, "expand_proj": 4, "kernel_sizes": 3},
        "alt_mixer": {
            "_target_": "PrefixLinearAttention",
            "feature_dim": 8,
            "feature_name": "taylor_exp",
            "num_heads": 2,
            "enc_length": 64,
        },
        "alt_mixer_layers": [1],
        "alt_mixer_2": {"_target_": "SlidingAttention", "window_size": 16, "num_heads": 2, "causal": True},
        "alt_mixer_2_layers": [2],
        "n_embd": _WIDTH,
        "n_head": 2,
        "n_inner": 2 * _WIDTH,
        "n_layer": 3,
        "n_positions": 0,
        "max_position_embeddings": 0,
        "vocab_size": size,
        "pad_vocab_size_multiple": 8,
        "activation_function": "swiglu",
        "rms_norm": True,
        "residual_in_fp32": True,
        "layer_norm_epsilon": 1e-5,
        "rotary_emb_fraction": 1,
        "tie_word_embeddings": True,
        "qkv_proj_bias": False,
        "out_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "enc_length": 64,
    }
    save_pretrained(JRTModel(parse_config(raw, "random jrt"), raw), folder)
