"""The final table of a sweep, in the paper's form and with the published numbers.

Forms and numbers come from `jrt_eval.analysis`; this module uses the sweep's names for models and settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jrt_eval.errors import UserError
from jrt_eval.sweep.plan import Job
from jrt_eval.sweep.store import Folder

if TYPE_CHECKING:
    from jrt_eval.analysis import Results
    from jrt_eval.analysis.table import Table

_STRATEGIES = {"Left-pad": "left_pad", "Read-2x": "read_twice", "Iterate": "iterate"}
_JRT = {"360M": "JRT-360M-30B", "1.3B": "JRT-1B-50B"}


def final_table(place: Folder, jobs: Sequence[Job], form: str | None) -> tuple[str, str]:
    """The table as text for a terminal and as Markdown; empty if nothing is finished.

    form: `table1`, `table2` or `table4` with the paper's numbers. None: Table 1's form for one context length, Table 2's for several, and a
    list of scores for tasks that are not read twice.
    """
    if not any(place.done(unit, job.commit) for job in jobs for unit in job.units):
        return "", ""
    try:
        table = _table(_results(place, jobs), form)
    except UserError:  # it has no read-twice tasks: SuperGLUE, or a user's own
        text = _scores(place, jobs)
        return text, text
    markdown = table.markdown()
    return table.terminal() if find_spec("rich") else markdown, markdown


def _table(results: Results, form: str | None) -> Table:
    from jrt_eval.analysis.tables import length_table, prompt_table

    if form == "table4":
        return _table4(results)
    lengths = results.scores["context_length"].nunique(dropna=False)
    make = length_table if form == "table2" or (form is None and lengths > 1) else prompt_table
    table = make(results, published=form is not None)
    if form == "table2":
        table.notes.append("NQ is shown under the length of its data set; its prompts were cut at 2,000 tokens")
    return table


def _results(place: Folder, jobs: Sequence[Job]) -> Results:
    """The scores of the finished units of these jobs, with the sweep's model names, strategies and context lengths."""
    from jrt_eval.analysis import load_results

    results = load_results(place.path, keep="all")  # two names for one checkpoint are two models
    names = {unit.key: (job, unit) for job in jobs for unit in job.units if place.done(unit, job.commit)}
    keys = results.scores["file"].astype(str).str.split("/").str[1]
    scores = results.scores[keys.isin(list(names))].copy()
    units = [names[key] for key in keys[keys.isin(list(names))]]
    scores["model"] = [unit.model for _, unit in units]
    scores["strategy"] = [job.config.get("model_args", {}).get("short_prompt", "") for job, _ in units]
    lengths = scores["dataset"].astype(str).str.extract(r"^nq_(\d+)$")[0].astype("Int64")
    # Table 2 shows Natural Questions under the length of the data set, although its prompts have a wider window.
    scores["context_length"] = lengths.where(scores["context_length"] == 2000).fillna(scores["context_length"])
    results.scores = scores
    return results


def _table4(results: Results) -> Table:
    """Table 4's form: a row per model and strategy, measured and published."""
    import pandas as pd

    from jrt_eval.analysis.published import published_folder
    from jrt_eval.analysis.table import Table
    from jrt_eval.analysis.tables import OURS, PAPER, dataset_name

    ours = results.scores[results.scores["metric"] == "contains"]
    rows = [
        (str(row["model"]), str(row["strategy"]), OURS, str(row["dataset"]).partition("_")[0], 100 * row["value"])
        for row in ours.to_dict("records")
    ]
    paper = pd.read_csv(published_folder() / "table4_short_prompts.csv").to_dict("records")
    rows += [
        (_JRT[row["params"]], _STRATEGIES[row["strategy"]], PAPER, str(row["task"]), float(row["accuracy"]))
        for row in paper
        if _JRT[row["params"]] in set(ours["model"])
    ]
    labels = ["model", "strategy", "source"]
    long = pd.DataFrame(rows, columns=[*labels, "dataset", "value"])
    wide = long.pivot_table(index=labels, columns="dataset", values="value")[["fda", "swde", "nq"]].reset_index()
    columns = [(name, name) for name in labels] + [
        (dataset_name(name), dataset_name(name)) for name in wide.columns[3:]
    ]
    wide.columns = pd.MultiIndex.from_tuples(columns)
    return Table("contains, percent: prompts shorter than the encoder", wide, 3)


def _scores(place: Folder, jobs: Sequence[Job]) -> str:
    """A line with the metrics of each finished unit, for tasks that are not read twice."""
    lines = ["| model | setting | task | score |", "| --- | --- | --- | --- |"]
    for job in jobs:
        for unit in job.units:
            record = place.record(unit)
            if record is not None and place.done(unit, job.commit):
                values = {k.partition(",")[0]: v for k, v in record["score"].items() if "," in k and "_stderr" not in k}
                shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                lines.append(f"| {unit.model} | {unit.setting} | {unit.task} | {shown} |")
    return "\n".join(lines) + "\n"
