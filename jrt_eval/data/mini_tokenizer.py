"""A byte-level BPE tokenizer in GPT-2's form, trained on generated documents.

Like GPT-2's, its first 256 ids are the bytes in GPT-2's order. So the token that left-pads JRT-RNN's short prompts is a
space in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterator[str], vocab_size: int, folder: Path) -> None:
    """Train on `texts` and write `tokenizer.json` and `tokenizer_config.json` to `folder`.

    `vocab_size` counts the end-of-text token, which gets the last id.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from jrt_eval.models.recurrent.model import PAD_TOKEN

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.id_to_token(PAD_TOKEN) != "Ġ":
        raise AssertionError(f"token {PAD_TOKEN} is {tokenizer.id_to_token(PAD_TOKEN)!r}, not a space")
    tokenizer.add_special_tokens([END_OF_TEXT])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def document_texts(documents: int, seed: int = 0) -> Iterator[str]:
    """The texts that the minis' tokenizer was trained on: training documents with answered questions."""
    from random import Random

    from jrt_eval.data.documents import make_document, training_text

    for index in range(documents):
        document = make_document("train", seed, index)
        head, pairs = training_text(document, Random(index), "once", 4)
        yield head + "".join(question + answer for question, answer in pairs)
