"""Every recurrent or hybrid class of transformers: a document's result does not depend on the batch it is in.

`tools/tiny_recurrent_models.py` of the shared folder makes a tiny random checkpoint of each class.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from jrt_eval.model_adapters.jrt import JRTLM
from lm_eval.api.instance import Instance

from jrt_eval.models.batching import measure
from jrt_eval.models.cache_size import _cache
from jrt_eval.models.transformers import TransformersModel

TOOL = Path(__file__).parents[3] / "shared" / "tools" / "tiny_recurrent_models.py"


def _tool() -> ModuleType | None:
    if not TOOL.is_file():
        return None
    spec = importlib.util.spec_from_file_location("tiny_recurrent_models", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = _tool()
pytestmark = pytest.mark.skipif(TINY is None, reason="no tool for tiny checkpoints beside the checkout")
CLASSES = list(TINY.SPECS) if TINY is not None else []

# Classes whose padding changes results, in transformers 5.24. All others are padded, and so as fast as `--model hf`.
NOT_PADDED = {
    "deepseek_v4": "equal lengths",
    "minimax": "equal lengths",
    "recurrent_gemma": "equal lengths",
    "rwkv": "alone",
    "xlstm": "equal lengths",
}
PROMPTS = [
    "The eruption of Mount Pinatubo in 1991 was the second-largest of the century.",
    "Tell me: when",
    "Seven eight nine ten eleven",  # no prompt has two likeliest tokens within rounding, in any class
    "It is said, and",
]
CONTEXTS = [("The sky is", " blue and wide"), ("It", " was"), ("A much longer context than the others, so", " there it is"),
            ("One two three", " four five six")]  # fmt: skip
NEW = 8


PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# Classes whose recurrence is written into the class, or which have none: there is no function to replace.
WITHOUT_FUNCTIONS = {"deepseek_v4", "dory", "gpt_neox", "llama", "minimax", "recurrent_gemma", "rwkv", "xlstm", "zaya"}


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module", params=CLASSES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> JRTLM:
    folder = tmp_path_factory.mktemp("tiny") / request.param
    assert TINY is not None
    TINY.build(request.param, folder)
    return JRTLM(str(folder), device="cpu", batch_size=1, arch="transformers")


def test_batches_do_not_change_results(lm: JRTLM) -> None:
    """Greedy text with stop strings, log-likelihoods and rolling ones: batch 1 and batch 4."""
    plain = lm.generate_until(
        requests("generate_until", [(p, {"until": [], "max_gen_toks": NEW}) for p in PROMPTS]), True
    )
    # stop strings that occur: in the middle of the first two rows' own texts
    until = [text[len(text) // 2 :][:3] for text in plain[:2] if len(text) > 6] + ["\n\n"]
    results = []
    for size in (1, 4):
        lm._batch_size = size
        asked = requests("generate_until", [(p, {"until": until, "max_gen_toks": NEW}) for p in PROMPTS])
        results.append(
            (
                lm.generate_until(asked, True),
                lm.loglikelihood(requests("loglikelihood", list(CONTEXTS)), True),
                lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(p,) for p in PROMPTS]), True),
            )
        )
    (texts, scores, rolling), (texts4, scores4, rolling4) = results
    assert texts == texts4
    assert len(set(texts)) == len(texts)
    assert any(text != whole for text, whole in zip(texts, plain, strict=True))
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in scores4]
    torch.testing.assert_close([logp for logp, _ in scores], [logp for logp, _ in scores4], rtol=0, atol=1e-4)
    torch.testing.assert_close(rolling, rolling4, rtol=0, atol=1e-4)


def test_decoding_equals_prefills_without_a_cache(lm: JRTLM) -> None:
    lm._batch_size = 4
    texts = lm.generate_until(
        requests("generate_until", [(p, {"until": [], "max_gen_toks": 5}) for p in PROMPTS[:2]]), True
    )
    model: Any = lm.model
    for prompt, text in zip(PROMPTS, texts, strict=False):
        tokens = lm.tok_encode(prompt)
        start = len(tokens)
        with torch.inference_mode():
            for _ in range(5):
                tokens.append(
                    int(model.inner(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
                )
        assert lm.tok_decode(tokens[start:]) == text


def _operators(model: Any) -> list[str]:
    """Our operators that serve a class, in the order of the table."""
    served = [by.partition(" ")[0].removesuffix("_step") for by in model.kernels.values()]
    return [name for name in ("short_conv", "selective_scan", "ssd", "gated_delta_rule") if name in served]


@torch.inference_mode()
def test_our_kernels_compute_what_plain_transformers_computes(lm: JRTLM) -> None:
    """Logits of a prefill and of decode steps (their deviation is near 1), and greedy tokens."""
    model: Any = lm.model
    plain = TransformersModel(model.inner, batching=model.batching, backend="torch")
    assert bool(_operators(model)) != (model.family in WITHOUT_FUNCTIONS)
    assert set(plain.kernels.values()) <= {"PyTorch"}
    ids = torch.randint(0, 50000, (2, 19), generator=torch.Generator().manual_seed(1))
    theirs, ours = (
        side.generate(ids, 6, output_logits=True, return_dict_in_generate=True, pad_token_id=0, eos_token_id=None)
        for side in (plain, model)
    )
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), rtol=0, atol=1e-4)
    close = 3e-4 if model.family == "zamba" else 1e-4  # transformers' zamba is 2.7e-4 from float64 itself
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=close)


def test_how_a_class_is_batched(lm: JRTLM) -> None:
    family = lm.model.family
    assert lm.model.batching.decode == NOT_PADDED.get(family, "padded"), lm.model.batching.reason
    assert lm.model.batching.score == "padded", lm.model.batching.reason


@pytest.mark.parametrize("name", ["llama", "minimax"])
def test_half_precision_is_batched_as_single(name: str, tmp_path: Path) -> None:
    """A class that padding does not change, and one that it does."""
    assert TINY is not None
    assert measure(TINY.build(name, tmp_path).bfloat16().eval()).decode == NOT_PADDED.get(name, "padded")


def test_state_bytes_are_what_a_cache_has(lm: JRTLM) -> None:
    model: Any = lm.model
    with torch.inference_mode():
        real = sum(size for _, (size, _) in _cache(model.inner, 72))
    assert model.state_bytes(72).total == real > 0


def test_the_table_in_the_docs(lm: JRTLM) -> None:
    """The class's row in docs/models.md; with JRT_EVAL_WRITE_DOCS=1 the row is written."""
    model: Any = lm.model
    size = model.state_bytes(2048)
    cells = [f"`{model.family}`", model.batching.decode, ", ".join(_operators(model)) or "none"]
    row = f"| {' | '.join(cells)} | {size.attention:,} | {size.recurrent:,} | {size.convolution:,} |"
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get("JRT_EVAL_WRITE_DOCS"):
        head, end = "| --- | --- | --- | ---: | ---: | ---: |\n", "\n\n"
        start = page.index(head) + len(head)
        stop = page.index(end, start - 1)  # of an empty table: right behind its head
        rows = {line.split("`")[1]: line for line in page[start:stop].splitlines()} | {model.family: row}
        page = page[:start] + "\n".join(rows[name] for name in sorted(rows)) + page[stop:]
        PAGE.write_text(page, encoding="utf-8")
    assert row in page.splitlines()
