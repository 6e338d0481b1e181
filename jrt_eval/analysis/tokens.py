"""Token counts that lm-eval's files lack, counted afterwards with a tokenizer that the user names."""

from __future__ import annotations

import pandas as pd

from jrt_eval.analysis.load import Results


def count_tokens(results: Results, tokenizer: str) -> Results:
    """Fill `prompt_tokens` and `answer_distance_tokens` of the predictions.

    tokenizer: a folder or a hub id. The distance is that of `answer_distance`: from the end of the answer's last place
    in the document that is read first to the question. Raises UserError.
    """
    from jrt_eval.prompts.tokenization import load

    counter = load(tokenizer)
    frame = results.predictions.copy()
    prompts = frame["prompt"].fillna("").astype(object)
    tails = [
        _tail(prompt, question, distance)
        for prompt, question, distance in zip(
            prompts, frame["question"].fillna("").astype(object), frame["answer_distance"].astype(object), strict=True
        )
    ]
    counts = counter.count(list(prompts))
    after = counter.count([tail or "" for tail in tails])
    recorded = frame["prompt_tokens"]
    frame["prompt_tokens"] = recorded.where(recorded.notna(), pd.array(counts, dtype="Int64"))
    known = [count if tail is not None else None for count, tail in zip(after, tails, strict=True)]
    frame["answer_distance_tokens"] = pd.array(known, dtype="Int64")
    return results.with_predictions(frame)


def _tail(prompt: str, question: str, distance: object) -> str | None:
    """The text between the answer and the question at the prompt's end."""
    if not isinstance(distance, int):
        return None
    body = prompt.rstrip()
    if question and body.endswith(question.strip()):
        body = body[: -len(question.strip())].rstrip()
    return body[max(0, len(body) - distance) :]
