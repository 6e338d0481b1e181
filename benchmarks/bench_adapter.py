"""`--model jrt` against the same model called directly: documents per second with 48 new tokens, tokenising and stop strings included.

    python benchmarks/bench_adapter.py [--model jrt-1b] [--documents 256] [--words 1950]

The model has random weights and the tokenizer of the minis; documents are random words. On a GPU in bfloat16; on a CPU in float32, where
`--model jrt-360m --layers 2 --documents 8` is a size to try it out.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from jrt_eval.model_adapters.jrt import JRTLM
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer

from jrt_eval.bench.configs import released_config
from jrt_eval.minis import TOKENIZER
from jrt_eval.models import from_config

NEW, BATCH = 48, 32


def rate(run: Callable[[], object], documents: int) -> float:
    """Documents per second, the better of two runs."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return documents / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="jrt-1b", help="a configuration of configs/paper")
    parser.add_argument("--layers", type=int, help="only the first so many layers")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--words", type=int, default=1950, help="of each document, about as many tokens")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, trust_remote_code=False)
    config = released_config(given.model, given.layers) | {"vocab_size": len(tokenizer), "pad_vocab_size_multiple": 8}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = from_config(config, device=device, dtype=dtype, seed=0).eval()
    lm = JRTLM(model, tokenizer=tokenizer, batch_size=BATCH, device=device)
    dice = random.Random(0)
    words = [word for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()]
    texts = ["".join(dice.choices(words, k=given.words)).replace("Ġ", " ") for _ in range(given.documents)]
    requests = [
        Instance("generate_until", {}, (text, {"until": ["\n\n\n\n"], "max_gen_toks": NEW}), number)
        for number, text in enumerate(texts)
    ]
    prompts = [tokenizer.encode(text) for text in texts]

    def direct() -> None:
        for start in range(0, len(prompts), BATCH):
            model.generate(prompts[start : start + BATCH], max_new_tokens=NEW)

    lm.generate_until(requests[:BATCH], disable_tqdm=True)  # kernels are loaded and the step is recorded
    through = rate(lambda: lm.generate_until(requests, disable_tqdm=True), given.documents)
    called = rate(direct, given.documents)
    mean = sum(map(len, prompts)) / len(prompts)
    print(f"{given.model}, {device}, {given.documents} prompts of {mean:,.0f} tokens on average, batches of {BATCH}")
    print(f"through the adapter {through:.2f} documents/s, called directly {called:.2f}: {through / called:.1%}")


if __name__ == "__main__":
    main()
