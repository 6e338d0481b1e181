"""Mini checkpoints that ship with the package: `mini-jrt`, `mini-based`, `mini-mamba`, `mini-attn`.

About two million parameters each, trained on procedural documents (jrt_eval.data.documents); every folder holds
a model card with the command, seed and losses. `--model_args pretrained=mini-jrt` finds them by name.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("mini-jrt", "mini-based", "mini-mamba", "mini-attn")
TOKENIZER = FOLDER / "mini-attn"  # all four have the same one


def find(name: str) -> Path | None:
    """The folder of the mini checkpoint `name`, or None if there is none of that name."""
    folder = FOLDER / name
    return folder if name in NAMES and (folder / "config.json").is_file() else None
