"""What docs/models.md shows of the models: the Python runs, and every checkpoint has its command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = ["docs/models.md"]
RELEASED = [
    *(f"hazyresearch/{name}" for name in ("JRT-360M-30B", "JRT-1B-50B", "based-360M-30B", "based-1b-50b", "mamba-360M-30B",
                                           "mamba-1b-50b", "attn-360M-30B", "attn-1b-50bn")),
    *(f"state-spaces/{name}" for name in ("mamba-130m", "mamba-370m", "mamba-1.4b", "mamba-2.8b", "mamba2-130m",
                                           "mamba2-370m", "mamba2-1.3b", "mamba2-2.7b")),
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_the_python_runs(page: str, checkpoint: Callable[..., Path]) -> None:
    """On a small local checkpoint instead of the hub's, without a GPU."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    folder = checkpoint("jrt", vocab_size=50257)
    assert code.count('"hazyresearch/JRT-1B-50B"') == 1
    code = code.replace('"hazyresearch/JRT-1B-50B"', repr(str(folder))).replace('"cuda"', '"cpu"')
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 5, 50264)
    new = int(re.findall(r"max_new_tokens=(\d+)", code)[0])
    assert names["tokens"].shape == (1, 5 + new)
    assert torch.equal(names["tokens"][:, :5], names["input_ids"])


@pytest.mark.parametrize("page", PAGES)
def test_every_released_checkpoint_has_its_command(page: str) -> None:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for name in RELEASED:
        (row,) = [line for line in lines if line.startswith(f"| {name} |")]
        assert re.search(rf"`.*\bpretrained={re.escape(name)}\b", row), row
