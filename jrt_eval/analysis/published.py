"""The paper's numbers, and which of the user's models they belong to."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from jrt_eval.errors import UserError

_DATASETS = {"nq": "nq_1024", "trivia": "triviaqa"}
_SAME = {"Transformer(++)": "Transformer++", "Transformer": "Transformer++"}


def published_folder() -> Path:
    """The folder of the CSV files: in the installed package, or at the root of the checkout (editable install)."""
    package = Path(__file__).parent
    installed = package / "published"
    folder = installed if installed.is_dir() else package.parents[1] / "results" / "published"
    if not folder.is_dir():
        raise UserError(f"the published numbers are missing at {folder}: install jrt-eval again")
    return folder


def published_scores(table: int = 1) -> pd.DataFrame:
    """A table of the paper: `model, architecture, params, tokens, dataset, variant, context_length, value` (a
    fraction).

    table: 1 (read once and twice, 1k tokens), 2 (by context length) or 3 (2k tokens). model: the released checkpoint,
    else `architecture params tokens`. context_length is missing for whole documents. The paper's averages are left
    out.
    """
    files = {1: "table1_jrt_prompt.csv", 2: "table2_jrt_rnn.csv", 3: "table3_prefill_2k.csv"}
    if table not in files:
        raise UserError(f"there is no frame of the paper's table {table}: only of {', '.join(map(str, files))}")
    frame = pd.read_csv(published_folder() / files[table], dtype={"context_tokens": "string"})
    frame = frame[frame["task"] != "avg"].rename(columns={"task": "dataset"})
    frame["architecture"] = frame["architecture"].replace(_SAME)
    if table == 1:
        frame["dataset"] = frame["dataset"].replace(_DATASETS)
        frame["variant"] = frame["variant"].replace({"default": "once"})
        frame["context_length"] = pd.array([1000] * len(frame), dtype="Int64")
    else:
        frame["variant"] = "once"
        frame["context_length"] = pd.to_numeric(frame["context_tokens"], errors="coerce").astype("Int64")
        natural = frame["dataset"] + "_" + frame["context_tokens"].fillna("")
        frame["dataset"] = frame["dataset"].replace("trivia", "triviaqa").where(frame["dataset"] != "nq", natural)
    names = _checkpoints()
    keys = list(zip(frame["architecture"], frame["params"], frame["tokens"], strict=True))
    frame["model"] = [names.get(key, [" ".join(key)])[0] for key in keys]
    frame["value"] = frame["accuracy"] / 100
    columns = ["model", "architecture", "params", "tokens", "dataset", "variant", "context_length", "value"]
    return frame[columns].reset_index(drop=True)


def published_for(models: list[str], table: int = 1) -> pd.DataFrame:
    """The paper's rows of these models, `model` being the user's name. Empty where the paper has none of them.

    A name matches a released checkpoint (`models.csv`) by its last component, ignoring case and what follows in
    brackets.
    """
    known = {_last(name): key for key, names in _checkpoints().items() for name in names}
    frame = published_scores(table)
    keys = pd.Series(list(zip(frame["architecture"], frame["params"], frame["tokens"], strict=True)), index=frame.index)
    found = [frame[keys == known[_last(model)]].assign(model=model) for model in models if _last(model) in known]
    return pd.concat(found, ignore_index=True) if found else frame.iloc[:0]


def _last(model: str) -> str:
    return model.split(" (")[0].split(" [")[0].rstrip("/").rsplit("/", 1)[-1].lower()


def _checkpoints() -> dict[tuple[str, str, str], list[str]]:
    frame = pd.read_csv(published_folder() / "models.csv")
    names: dict[tuple[str, str, str], list[str]] = {}
    for row in frame.itertuples(index=False):
        names.setdefault((str(row.architecture), str(row.params), str(row.tokens)), []).append(str(row.model))
    return names
