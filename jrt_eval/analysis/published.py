"""Numbers that papers published, and which of them belong to a user's models.

A number belongs to a measurement if the model and the protocol are the same. The model is the same checkpoint
(`models.csv` lists released ones), or one whose name spells architecture, size and training tokens as the paper does
(`gla-1.3B-100B`). The protocol is named by `protocols.task_protocol`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from jrt_eval.analysis.protocols import length_protocol
from jrt_eval.errors import UserError

JRT = "JRT"  # the name of "Just read twice" in the column `paper`
COLUMNS = [
    "paper", "arxiv", "table", "architecture", "params", "tokens", "corpus", "protocol", "dataset", "variant",
    "context_length", "value",
]  # fmt: skip

_DATASETS = {"nq": "nq_1024", "trivia": "triviaqa"}
_SAME = {"Transformer(++)": "Transformer++", "Transformer": "Transformer++"}
_JRT_TABLES = {1: "table1_jrt_prompt.csv", 2: "table2_jrt_rnn.csv", 3: "table3_prefill_2k.csv"}


def published_folder() -> Path:
    """The folder of the CSV files: in the installed package, or at the root of the checkout (editable install)."""
    package = Path(__file__).parent
    installed = package / "published"
    folder = installed if installed.is_dir() else package.parents[1] / "results" / "published"
    if not folder.is_dir():
        raise UserError(f"the published numbers are missing at {folder}: install jrt-eval again")
    return folder


def published_scores() -> pd.DataFrame:
    """All published recall scores, with COLUMNS; averages are left out.

    paper, arxiv, table: where the number is from. params, tokens: as the paper writes them. corpus: the training data,
    empty where the table does not name it. value: a fraction. context_length: tokens, missing for whole documents.
    """
    frames = [_jrt_table(number) for number in _JRT_TABLES]
    others = pd.read_csv(published_folder() / "recall.csv", dtype={"arxiv": "string", "table": "string"})
    lengths = others["protocol"].map({"2K tokens": 2048}).astype("Int64")
    others = others.assign(value=others["accuracy"] / 100, variant="once", context_length=lengths)
    return pd.concat([*frames, others[COLUMNS]], ignore_index=True)[COLUMNS]


def published_for(models: Iterable[str]) -> pd.DataFrame:
    """The published rows of these models; the column `model` has the user's name. Empty where there are none.

    What follows a model's name in brackets is ignored, and so is its organisation or folder.
    """
    frame = published_scores()
    keys = [_key(*row) for row in frame[["architecture", "params", "tokens"]].itertuples(index=False, name=None)]
    known = pd.Series(keys, index=frame.index)
    found = []
    for model in models:
        wanted = _released().get(_last(model)) or _spelled(_last(model))
        found.append(frame[known.isin(wanted)].assign(model=model))
    return pd.concat(found, ignore_index=True) if found else frame.iloc[:0].assign(model="")


def _jrt_table(number: int) -> pd.DataFrame:
    """One of the tables of "Just read twice"."""
    frame = pd.read_csv(published_folder() / _JRT_TABLES[number], dtype={"context_tokens": "string"})
    frame = frame[frame["task"] != "avg"].rename(columns={"task": "dataset"})
    frame["architecture"] = frame["architecture"].replace(_SAME)
    if number == 1:
        frame["dataset"] = frame["dataset"].replace(_DATASETS)
        frame["variant"] = frame["variant"].replace({"default": "once"})
        frame["context_length"] = pd.array([1000] * len(frame), dtype="Int64")
    else:
        frame["variant"] = "once"
        frame["context_length"] = pd.to_numeric(frame["context_tokens"], errors="coerce").astype("Int64")
        natural = frame["dataset"] + "_" + frame["context_tokens"].fillna("")
        frame["dataset"] = frame["dataset"].replace("trivia", "triviaqa").where(frame["dataset"] != "nq", natural)
    protocols = [length_protocol(None if pd.isna(length) else int(length)) for length in frame["context_length"]]
    known = {"paper": JRT, "arxiv": "2407.05483", "table": str(number), "corpus": ""}
    return frame.assign(**known, protocol=protocols, value=frame["accuracy"] / 100)[COLUMNS]


Key = tuple[str, str, str]


def _key(architecture: str, params: str, tokens: str) -> Key:
    """What is equal for equal models: lower-case letters, digits and plus signs of the name, size, and tokens."""
    name = re.sub(r"[^a-z0-9+]", "", architecture.lower())
    return name, params.lower(), tokens.lower()


def _spelled(name: str) -> set[Key]:
    """The key that a name like `gla-1.3B-100B` spells; empty if it spells none."""
    match = re.fullmatch(r"(.+?)[-_]?(\d+(?:\.\d+)?[mb])[-_](\d+(?:\.\d+)?b)", name)
    return {_key(match[1], match[2], match[3])} if match else set()


def _last(model: str) -> str:
    return model.split(" (")[0].split(" [")[0].rstrip("/").rsplit("/", 1)[-1].lower()


def _released() -> dict[str, set[Key]]:
    """Released checkpoints: the last part of the name -> keys of the rows that are about it."""
    frame = pd.read_csv(published_folder() / "models.csv")
    keys: dict[str, set[Key]] = {}
    for row in frame.itertuples(index=False):
        key = _key(str(row.architecture), str(row.params), str(row.tokens))
        keys.setdefault(_last(str(row.model)), set()).add(key)
    return keys
