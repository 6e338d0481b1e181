"""What README.md and docs/models.md show of the models: the Python runs, and every checkpoint has its command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jrt_eval.models.tokenizers import load_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/models.md"]
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


def test_the_tokens_of_the_example(shared: Path) -> None:
    text = re.search(
        r"\[\[([\d, ]+)\]\]\)  # \"(.*)\" in GPT-2's tokens", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert text is not None
    assert load_tokenizer(shared / "data" / "gpt2").encode(text[2]) == [int(n) for n in text[1].split(",")]


@pytest.mark.parametrize("page", PAGES)
def test_every_released_checkpoint_has_its_command(page: str) -> None:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    known = {task.get("group") for path in (ROOT / "tasks").rglob("*.yaml") if isinstance(task := _yaml(path), dict)}
    for name in RELEASED:
        (row,) = [line for line in lines if line.startswith(f"| {name} |")]
        assert re.search(rf"`.*\bpretrained={re.escape(name)}\b", row), row
        if page == "README.md":
            command = re.search(r"`lm_eval --model jrt --model_args \S+ --tasks (\w+)`", row)
            assert command is not None and command[1] in known, row


def _yaml(path: Path) -> Any:
    """A task file, its `!function` tags unread."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: None)
    return yaml.load(path.read_text(encoding="utf-8"), Loader)
