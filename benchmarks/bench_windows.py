"""Documents windowed per second, and the memory that it takes: 3,000 documents of 9,000 tokens, as `jrt_nq_*` has them.

    python benchmarks/bench_windows.py --tokenizer ../shared/data/gpt2 --text ../shared/data/text/wikitext-2.valid.txt

The documents are made of real text: its paragraphs in another order for every document, so that no two are alike.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from pathlib import Path

from tqdm import tqdm

from jrt_eval.prompts.tokenization import load
from jrt_eval.prompts.windows import Budget, UncutDocument, Window, cut


def documents(text: str, number: int, characters: int, seed: int = 0) -> list[UncutDocument]:
    """`number` documents of about `characters` characters each; the answer is a phrase somewhere in the document."""
    rng = random.Random(seed)
    paragraphs = [line.strip() for line in text.splitlines() if len(line) > 200]
    sources = []
    for _ in range(number):
        parts: list[str] = []
        size = 0
        while size < characters:
            parts.append(rng.choice(paragraphs))
            size += len(parts[-1]) + 1
        document = "\n".join(parts)
        at = rng.randrange(len(document) - 40)
        sources.append(UncutDocument(document, (document[at : at + 30].strip() or "the",)))
    return sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="../shared/data/gpt2")
    parser.add_argument("--text", type=Path, default=Path("../shared/data/text/wikitext-2.valid.txt"))
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--characters", type=int, default=42_000)
    parser.add_argument("--context-length", type=int, default=1000)
    args = parser.parse_args()

    tokenizer = load(args.tokenizer)
    sources = documents(args.text.read_text(), args.documents, args.characters)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    with tqdm(total=len(sources), unit=" docs") as bar:
        windows = cut(sources, tokenizer, [Budget(args.context_length)], bar.update)
    seconds = time.perf_counter() - begin
    kept = [window for (window,) in windows if isinstance(window, Window)]
    tokens = sum(window.document_tokens for window in kept)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(sources)} documents of {tokens / len(kept):,.0f} tokens")
    print(f"tokenizer {args.tokenizer}, by pieces: {tokenizer.by_pieces}")
    print(f"{seconds:.1f} s: {len(sources) / seconds:.0f} documents/s, {tokens / seconds / 1e6:.2f} M tokens/s")
    print(f"peak memory {peak / 1024:.0f} MB ({before / 1024:.0f} MB before windowing)")


if __name__ == "__main__":
    main()
