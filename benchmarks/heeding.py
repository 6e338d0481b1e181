"""Whether a mini uses the question before the first reading: accuracy once, twice, and twice with another key in that question.

    python benchmarks/heeding.py mini-mamba [--documents 192]

Teacher-forced: an answer is correct if each of its tokens is the most likely one. Evaluation documents of seed 3, 28 facts each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from jrt_eval import load_model, minis
from jrt_eval.data.documents import EVALUATION_SHAPE, make_document, prompt
from jrt_eval.data.text import load_tokenizer
from jrt_eval.training.checkpoint import load_weights
from jrt_eval.training.mamba import MambaLM

SEED, APART = 3, 14  # the other key comes this many keys later


def logits_of(name: str) -> Callable[[Tensor], Tensor]:
    """input_ids (1, length) -> logits; Mamba by its training form, since transformers' takes one token at a time."""
    folder = minis.find(name)
    if folder is None:
        raise SystemExit(f"{name}: no such mini; there are {', '.join(minis.NAMES)}")
    if name != "mini-mamba":
        model = load_model(name, device="cpu")
        return lambda ids: model(ids).logits
    mamba = MambaLM(json.loads((folder / "config.json").read_text()))
    load_weights(folder, mamba)
    return lambda ids: mamba.logits(mamba.hidden(ids)[0])


@torch.no_grad()
def right(logits: Callable[[Tensor], Tensor], documents: int, kind: str) -> float:
    tokenizer = load_tokenizer("mini")

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    count = 0
    for index in tqdm(range(documents), desc=kind, leave=False):
        document = make_document("evaluation", SEED, index, EVALUATION_SHAPE)
        keys = list(document.facts)
        key, other = keys[index % len(keys)], keys[(index + APART) % len(keys)]
        text = prompt(document.text, key, asked=kind != "once", readings=1 if kind == "once" else 2)
        if kind == "other":
            text = text.replace(f"Information about {key}.", f"Information about {other}.", 1)
        answer = encode(f" {document.facts[key]}\n")
        ids = torch.tensor([encode(text) + answer])
        count += logits(ids[:, :-1])[0, -len(answer) :].argmax(-1).tolist() == answer
    return count / documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["mini-based", "mini-mamba", "mini-attn"])
    parser.add_argument("--documents", type=int, default=192)
    args = parser.parse_args()
    logits = logits_of(args.name)
    for kind in ("once", "twice", "other"):
        print(f"{args.name} {kind}: {right(logits, args.documents, kind):.3f}", flush=True)


if __name__ == "__main__":
    main()
