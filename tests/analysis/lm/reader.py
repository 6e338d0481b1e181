"""Run lm-eval, any version from 0.4.9, with a model that needs no weights: `python reader.py --model reader ...`.

The reader looks its answer up in the prompt, and misses it more often the further back it stands. Once it
has read the question it misses less. What it says is a function of the prompt and its arguments alone.
"""

from __future__ import annotations

import hashlib
import re
import sys
from typing import Any

import transformers

# lm-eval 0.4.9 looks up a class that transformers 5 has no longer. Its module replaces itself, so setting it there is
# not enough.
_getattr = type(transformers).__getattr__
type(transformers).__getattr__ = lambda module, name: _getattr(  # type: ignore[method-assign]
    module, "AutoModelForImageTextToText" if name == "AutoModelForVision2Seq" else name
)

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402


def draw(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts."""
    return int(hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:8], 16) / 2**32


@register_model("reader")
class Reader(LM):
    """name: as results call it; memory: characters after which half of what was read is forgotten."""

    def __init__(self, pretrained: str, memory: float = 400.0, parameters: int = 1_000_000, **_: Any) -> None:
        super().__init__()
        self.name, self.memory, self.parameters = pretrained, float(memory), int(parameters)

    def get_model_info(self) -> dict[str, Any]:
        return {
            "model_num_parameters": self.parameters,
            "model_dtype": "float32",
            "model_revision": "main",
            "model_sha": "",
            "model_state_bytes": int(self.memory * 64),
        }

    def answer(self, prompt: str) -> str:
        body, cue = re.match(r"(.*?)([^.\n]*)$", prompt, re.DOTALL).groups()  # type: ignore[union-attr]
        cue = cue.strip()
        told = re.findall(r"[^.?\n]+ is [^.?\n]+\.", body)
        facts = " ".join(sorted({fact.strip() for fact in told}))  # the same read once and twice
        copies = list(re.finditer(re.escape(cue) + r" ([^.?\n]+)\.", body, re.IGNORECASE))
        slips = draw(self.name, "slip", prompt) < 0.04
        for copy, found in enumerate([] if slips else reversed(copies)):
            distance = len(body) - found.end()
            memory = 4 * self.memory if f"{cue}?" in body[: found.start()] else self.memory  # it knows what to look for
            if draw(self.name, cue, facts, str(copy)) < 0.5 ** (distance / memory):
                return f" {found[1].strip()}."
        kind = draw(self.name, "kind", facts)
        values = re.findall(r" is ([A-Za-z0-9]+)\.", body)
        if kind < 0.15 or not values:
            return ""
        if kind < 0.3:
            return " the same the same the same the same the same"
        if kind < 0.75:
            return f" {values[int(draw(self.name, 'other', facts) * len(values))]}."
        return " nobody knows"

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self.answer(request.args[0]) for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-10 * draw(self.name, *request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        return [-float(len(request.args[0])) for request in requests]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    # several runs in one process: arguments, `--next`, arguments
    runs: list[list[str]] = [[]]
    for argument in sys.argv[1:]:
        if argument == "--next":
            runs.append([])
        else:
            runs[-1].append(argument)
    for arguments in runs:
        sys.argv = ["lm_eval", *arguments]
        cli_evaluate()
