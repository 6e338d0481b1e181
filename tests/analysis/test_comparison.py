"""Paired statistics against direct calls of scipy and statsmodels, and against counts made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_files import rerun, sample_file
from scipy.stats import binomtest, bootstrap

from jrt_eval.analysis import compare_models, compare_variants, load_results
from jrt_eval.analysis.comparison import POOLED, gain_by
from jrt_eval.analysis.failures import MODES, failure_mode, failure_table
from jrt_eval.analysis.pairing import document_numbers
from jrt_eval.analysis.select import paired_metric
from jrt_eval.errors import UserError


def scores_of(runs: Path, task: str, model: str = "acme__reader-small") -> dict[int, float]:
    lines = sample_file(runs, task, model).read_text().splitlines()
    return {s["doc_id"]: s["contains"] for s in map(json.loads, lines)}


def rewrite(path: Path, change: object) -> None:
    """Replace each sample of a file by `change(sample)`, dropping those that become None."""
    samples = [change(json.loads(line)) for line in path.read_text().splitlines()]  # type: ignore[operator]
    path.write_text("".join(json.dumps(s) + "\n" for s in samples if s is not None))


def test_gain_interval_and_p_per_task(runs: Path) -> None:
    table = compare_variants(load_results(runs)).table
    for model in ("acme__reader-small", "acme__reader-large"):
        for name in ("colours", "towns"):
            once, twice = scores_of(runs, f"jrt_{name}", model), scores_of(runs, f"jrt_{name}_twice", model)
            pairs = np.array([(once[i], twice[i]) for i in once])
            row = table[(table["model"] == model.replace("__", "/")) & (table["dataset"] == name)].iloc[0]
            fixed = int(((pairs[:, 0] == 0) & (pairs[:, 1] == 1)).sum())
            broken = int(((pairs[:, 0] == 1) & (pairs[:, 1] == 0)).sum())
            assert (row["n"], row["documents"], row["better"], row["worse"]) == (60, 60, fixed, broken)
            assert row["gain"] == pytest.approx(np.mean(pairs[:, 1] - pairs[:, 0]))
            assert row["p"] == pytest.approx(binomtest(fixed, fixed + broken).pvalue)  # exact McNemar
            direct = bootstrap(
                (pairs[:, 0], pairs[:, 1]), lambda a, b, axis: np.mean(b - a, axis=axis), paired=True, vectorized=True,
                method="percentile", random_state=np.random.default_rng(1),
            ).confidence_interval  # fmt: skip
            assert row["low"] == pytest.approx(direct.low, abs=0.05)  # the bootstrap is narrower, in steps of 1/60
            assert row["high"] == pytest.approx(direct.high, abs=0.05)


def test_pooled_is_the_mean_of_tasks_and_its_interval_is_stratified(runs: Path) -> None:
    rewrite(sample_file(runs, "jrt_towns"), lambda s: s if s["doc_id"] < 30 else None)
    comparison = compare_variants(load_results(runs.parent / "runs"))
    # the cut file is incomplete, so only colours is left for that model: nothing to pool
    small = comparison.table[comparison.table["model"] == "acme/reader-small"]
    assert small["dataset"].tolist() == ["colours"]
    large = comparison.table[comparison.table["model"] == "acme/reader-large"].set_index("dataset")
    assert large.loc[POOLED, "gain"] == pytest.approx(large.loc[["colours", "towns"], "gain"].mean())
    widths = (large["high"] - large["low"])[["colours", "towns"]].to_numpy()
    assert large.loc[POOLED, "high"] - large.loc[POOLED, "low"] == pytest.approx(np.hypot(*widths) / 2, rel=0.15)
    assert large.loc[POOLED, "better"] == large.loc[["colours", "towns"], "better"].sum()


def test_rows_of_one_document_are_resampled_together(runs: Path) -> None:
    once, twice = (scores_of(runs, f"jrt_colours{v}", "acme__reader-large") for v in ("", "_twice"))

    def share(sample: dict) -> dict:
        sample["doc"]["doc_id"] = f"gain {twice[sample['doc_id']] - once[sample['doc_id']]}"
        return sample

    free = compare_variants(load_results(runs)).table.iloc[0]
    for task in ("jrt_colours", "jrt_colours_twice"):
        rewrite(sample_file(runs, task, "acme__reader-large"), share)
    tied = compare_variants(load_results(runs)).table.iloc[0]
    assert (tied["documents"], tied["n"]) == (2, 60)  # all that are fixed, and all others
    assert tied["gain"] == free["gain"]
    assert tied["high"] - tied["low"] > 2 * (free["high"] - free["low"])


def test_questions_that_share_a_name_are_of_one_document() -> None:
    names = [["a", "text"], ["b", "text"], ["b", "other"], ["c"], None, ["a"], ["a", "text"]]
    rows = pd.DataFrame({"stratum": ["x"] * 5 + ["y", "x"], "key": [0, 1, 2, 3, 4, 0, 0], "names": names})
    found = document_numbers(rows)
    assert found[0] == found[1] == found[2] == found[6]  # by way of "text" and "b"; the last is the first, read again
    assert len(set(found[[0, 3, 4, 5]])) == 4  # another data set's names mean nothing here


def test_the_interval_with_several_questions_on_a_document_is_the_cluster_bootstraps(runs: Path) -> None:
    for task in ("jrt_towns", "jrt_towns_twice"):
        rewrite(
            sample_file(runs, task),
            lambda s: {**s, "doc": {**s["doc"], "jrt_document": [f"id {s['doc_id']}", f"text {s['doc_id'] // 6}"]}},
        )
    row = compare_variants(load_results(runs), models=["acme/reader-small"]).table.set_index("dataset").loc["towns"]
    once, twice = scores_of(runs, "jrt_towns"), scores_of(runs, "jrt_towns_twice")
    gains = np.array([twice[i] - once[i] for i in range(60)]).reshape(10, 6).mean(axis=1)
    direct = bootstrap((gains,), np.mean, method="percentile", random_state=np.random.default_rng(3))
    assert row["documents"] == 10
    warnings = compare_variants(load_results(runs)).warnings
    assert warnings == ["without contains, so left out: colours_choice"]
    width = direct.confidence_interval.high - direct.confidence_interval.low
    assert 1.1 * width < row["high"] - row["low"] < 1.6 * width  # a bootstrap of ten documents is too narrow


def test_models_on_the_same_documents(runs: Path) -> None:
    table = compare_models(load_results(runs), "acme/reader-small", "acme/reader-large").table.set_index("dataset")
    small, large = scores_of(runs, "jrt_towns_twice"), scores_of(runs, "jrt_towns_twice", "acme__reader-large")
    assert table.loc["jrt_towns_twice", "gain"] == pytest.approx(np.mean([large[i] - small[i] for i in small]))
    assert table.loc[POOLED, "n"] == 240
    assert table.loc[POOLED, "documents"] == 120  # read once and twice, a document is drawn with both
    with pytest.raises(UserError, match=r"no model 'acme/reader-smal' \(did you mean 'acme/reader-small'\?\)"):
        compare_models(load_results(runs), "acme/reader-smal", "acme/reader-large")
    with pytest.raises(UserError, match="compared with itself"):
        compare_models(load_results(runs), "acme/reader-small", "acme/reader-small")


def test_unequal_documents_are_left_out_with_a_warning(runs: Path) -> None:
    path = sample_file(runs, "jrt_towns")
    rewrite(path, lambda s: {**s, "doc_id": s["doc_id"] + 100} if s["doc_id"] < 10 else s)

    def other(sample: dict) -> dict:
        if sample["doc_id"] in (20, 21, 22):
            sample["target"] = "elsewhere"
        return sample

    rewrite(path, other)
    comparison = compare_variants(load_results(runs), models=["acme/reader-small"])
    assert comparison.table.set_index("dataset").loc["towns", "n"] == 60 - 3  # paired by hash, not by position
    text = "\n".join(comparison.warnings)
    assert "3 documents left out because the two sides have other gold answers: acme/reader-small, towns" in text


def test_warnings_for_limit_lengths_and_reruns(runs: Path) -> None:
    rerun(runs, config__limit=10)
    warnings = compare_variants(load_results(runs)).warnings
    assert "runs with --limit left out where a run on all documents exists: acme/reader-small" in warnings
    path = next((runs / "acme__reader-large").glob("results_*.json"))
    data = json.loads(path.read_text())
    data["configs"]["jrt_towns_twice"]["metadata"]["context_length"] = 512
    data["config"]["limit"] = 60
    path.write_text(json.dumps(data))
    comparison = compare_variants(load_results(runs))
    large = comparison.table[comparison.table["model"] == "acme/reader-large"]
    assert large["dataset"].tolist() == ["colours"]
    text = "\n".join(comparison.warnings)
    assert "several context lengths (512, 1000): only equal ones are compared: acme/reader-large, towns" in text
    assert "with --limit 60, so not on all documents: acme/reader-large" in text


def test_identical_answers(runs: Path) -> None:
    once = {s["doc_id"]: s for s in map(json.loads, sample_file(runs, "jrt_towns").read_text().splitlines())}
    rewrite(sample_file(runs, "jrt_towns_twice"), lambda s: {**s, "contains": once[s["doc_id"]]["contains"]})
    row = compare_variants(load_results(runs), models=["acme/reader-small"]).table.set_index("dataset").loc["towns"]
    assert (row["gain"], row["p"]) == (0, 1)
    assert -0.06 < row["low"] < -0.03 and 0.03 < row["high"] < 0.06  # sixty equal answers do not prove equality


def test_a_metric_between_zero_and_one_has_a_p(runs: Path) -> None:
    for task in ("jrt_towns", "jrt_towns_twice"):
        rewrite(sample_file(runs, task), lambda s: {**s, "metrics": [*s["metrics"], "f1"], "f1": s["contains"] * 0.5})
    results = load_results(runs)
    row = compare_variants(results, metric="f1").table.iloc[0]
    whole = compare_variants(results, models=["acme/reader-small"]).table.set_index("dataset").loc["towns"]
    assert row["p"] == pytest.approx(whole["p"])  # half the size, the same signs
    assert row["first"] == pytest.approx(np.mean(list(scores_of(runs, "jrt_towns").values())) / 2)


def test_metric_choice(runs: Path) -> None:
    results = load_results(runs)
    assert paired_metric(results, None) == "contains"
    with pytest.raises(UserError, match=r"no metric 'contain' in the samples \(did you mean 'contains'\?\)"):
        paired_metric(results, "contain")
    only = results.predictions.drop(columns=["metric_contains", "metric_exact_match", "metric_acc"])
    only = only.rename(columns={"metric_acc_norm": "metric_mine"})
    assert paired_metric(results.with_predictions(only), None) == "mine"
    with pytest.raises(UserError, match="choose one with --metric: mine, other"):
        paired_metric(results.with_predictions(only.assign(metric_other=1.0)), None)


def test_gain_by_bins_cover_all_pairs(runs: Path) -> None:
    comparison = compare_variants(load_results(runs))
    for column in ("prompt_chars", "answer_depth", "answer_distance"):
        frame = pd.concat(gain_by(comparison, column).values())
        assert frame["n"].sum() == len(comparison.pairs) == 240
        assert np.average(frame["gain"], weights=frame["n"]) == pytest.approx(
            (comparison.pairs["second"] - comparison.pairs["first"]).mean()
        )
        for bins in gain_by(comparison, column).values():
            assert (bins["low_edge"].iloc[1:].to_numpy() >= bins["high_edge"].iloc[:-1].to_numpy()).all()
    # the reader forgets what is far away, and a second reading brings it back
    for bins in gain_by(comparison, "answer_distance").values():
        assert bins["gain"].iloc[-1] > bins["gain"].iloc[0]
    assert not gain_by(comparison, "doc_tokens")


@pytest.mark.parametrize(
    ("generation", "mode"),
    [
        ("Paris", "correct"),
        ("", "empty"),
        (" \n. !", "empty"),
        ("no no no", "repetition"),
        ("the same the same the same", "repetition"),
        ("well the same the same the same end", "repetition"),
        ("the same the same", "not_in_document"),
        ("Lyon.", "from_document"),
        (" lyon and then", "not_in_document"),
        ("\nLyon. It is in France", "from_document"),
        ("Lyo", "not_in_document"),
        ("St. Paul", "not_in_document"),
        ("Berlin", "not_in_document"),
    ],
)
def test_failure_rules(generation: str, mode: str) -> None:
    assert failure_mode(generation, "Anna lives in Lyon, not in Berline. Where?", mode == "correct") == mode


def test_failure_counts_sum_to_n(runs: Path) -> None:
    results = load_results(runs)
    table = failure_table(results, "contains")
    assert len(table) == 8
    assert (table[list(MODES)].sum(axis=1) == 60).all()
    assert (table["correct"] / 60).sum() / 8 == pytest.approx(results.predictions["metric_contains"].mean())
    assert (table[list(MODES[1:])].sum() > 0).all()  # the reader makes every kind of mistake
