"""What makes two runs one thing: settings, seeds, models; and which documents are a pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import write_run

from jrt_eval.analysis import collect, compare_models, compare_variants, load_results, prompt_table, scores_table
from jrt_eval.errors import UserError

ONCE = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
TWICE = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
BOTH = {"jrt_fda": ONCE, "jrt_fda_twice": TWICE}


@pytest.mark.parametrize(
    ("changed", "label"),
    [
        ({"config__gen_kwargs": {"temperature": 1.5, "do_sample": True}}, "m [do_sample=True, temperature=1.5]"),
        ({"config__gen_kwargs": "temperature=1.5"}, "m [temperature=1.5]"),
        ({"system_instruction": "Be brief."}, "m [system: Be brief.]"),
        ({"chat_template": "{{ messages }}", "chat_template_sha": "abcdef" * 9}, "m [chat template]"),
        ({"fewshot_as_multiturn": True}, "m [multi-turn]"),
        (
            {"config__gen_kwargs": {"chat_template_kwargs": {"enable_thinking": True}}},
            "m [chat_template_kwargs={'enable_thinking': True}, thinking]",
        ),
        ({"n-shot": {"jrt_fda": 5, "jrt_fda_twice": 5}}, "m [5-shot]"),
        ({"versions": {"jrt_fda": 2.0, "jrt_fda_twice": 2.0}}, "m [version 2.0]"),
    ],
)
def test_a_setting_is_part_of_the_run(tmp_path: Path, changed: dict[str, Any], label: str) -> None:
    write_run(tmp_path, "m", BOTH)
    write_run(tmp_path, "m", {"jrt_fda": TWICE, "jrt_fda_twice": TWICE}, **changed)
    done = collect(tmp_path)
    assert done.superseded == 0
    results = load_results(tmp_path / "collected")
    rows = prompt_table(results).flat().set_index("model")
    assert label in rows.index
    assert len(rows) == 2
    assert rows.loc[label, "fda_once"] == pytest.approx(700 / 12)
    table = compare_variants(results).table.set_index("model")
    assert table.loc[label, "gain"] == 0
    assert table.drop(index=label)["gain"].tolist() == [pytest.approx(3 / 12)]
    assert label in scores_table(results).flat()["model"].tolist()


@pytest.mark.parametrize(
    ("given", "thinking"),
    [
        ({"model_args": {"pretrained": "m", "enable_thinking": True}}, True),
        ({"model_args": 'pretrained=m,chat_template_args={"enable_thinking": false}'}, False),
        ({"gen_kwargs": {"chat_template_kwargs": {"enable_thinking": False}}}, False),
        ({"gen_kwargs": {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}}, True),
        ({"gen_kwargs": {"extra_body": {"enable_thinking": True}}}, True),
        ({"gen_kwargs": 'chat_template_kwargs={"enable_thinking": false}'}, False),
        ({"gen_kwargs": {"temperature": 1.0}}, None),
        ({"gen_kwargs": {"chat_template_kwargs": "[1"}}, None),
    ],
)
def test_thinking_that_was_asked_for(tmp_path: Path, given: Any, thinking: bool | None) -> None:
    write_run(tmp_path, "m", BOTH, **{f"config__{name}": value for name, value in given.items()})
    found = load_results(tmp_path).scores["thinking"]
    assert found.isna().all() if thinking is None else (found == thinking).all()


def test_other_settings_are_not_paired(tmp_path: Path) -> None:
    write_run(tmp_path, "m", {"jrt_fda": ONCE})
    write_run(tmp_path, "m", {"jrt_fda_twice": TWICE}, config__gen_kwargs={"temperature": 1.5})
    with pytest.raises(UserError, match="no model has a data set both once and twice"):
        compare_variants(load_results(tmp_path))


def test_other_seeds_are_repeats(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        shifted = TWICE[seed:] + TWICE[:seed]
        write_run(tmp_path, "m", {"jrt_fda": ONCE, "jrt_fda_twice": shifted}, config__random_seed=seed)
    assert collect(tmp_path).superseded == 0
    results = load_results(tmp_path)
    assert "mean of 3 runs with different seeds: m" in prompt_table(results).notes
    row = compare_variants(results).table.iloc[0]
    assert (row["n"], row["gain"]) == (12, pytest.approx(3 / 12))
    flat = scores_table(results).flat().set_index("task")
    assert flat.loc["jrt_fda_twice", "contains_percent_stderr"] == pytest.approx(0)  # the same mean each time


def test_equal_runs_replace_each_other(tmp_path: Path) -> None:
    write_run(tmp_path, "m", BOTH)
    write_run(tmp_path, "m", {"jrt_fda": TWICE, "jrt_fda_twice": TWICE})
    assert collect(tmp_path).superseded == 2


def test_a_subset_does_not_replace_the_whole(tmp_path: Path) -> None:
    write_run(tmp_path, "m", BOTH)
    counts = {"original": 12, "effective": 4}
    part = {task: scores[:4] for task, scores in BOTH.items()}
    write_run(tmp_path, "m", part, **{"n-samples": {"jrt_fda": counts, "jrt_fda_twice": counts}})
    assert collect(tmp_path).superseded == 0
    assert compare_variants(load_results(tmp_path)).table["n"].tolist() == [12]


def test_a_hash_recorded_in_one_run_only_is_the_same_model(tmp_path: Path) -> None:
    write_run(tmp_path, "m", {"jrt_fda": ONCE}, config__model_sha="abc")
    write_run(tmp_path, "m", {"jrt_fda_twice": TWICE})
    assert load_results(tmp_path).scores["model"].unique().tolist() == ["m"]
    write_run(tmp_path, "m", {"jrt_fda": ONCE}, config__model_sha="def")
    names = set(load_results(tmp_path).scores["model"])
    assert names == {"m (revision=abc)", "m (revision=def)", "m"}


def test_an_argument_that_one_run_lacks_is_another_model(tmp_path: Path) -> None:
    write_run(tmp_path, "m", BOTH)
    write_run(tmp_path, "m", BOTH, config__model_args={"pretrained": "m", "short_prompt": "left_pad"})
    assert set(load_results(tmp_path).scores["model"]) == {"m", "m (short_prompt=left_pad)"}


def test_documents_are_paired_by_what_they_are(tmp_path: Path) -> None:
    docs = [{"question": f"q{i}", "value": "a"} for i in range(12)]
    order = [5, 2, 9, 0, 11, 1, 3, 4, 6, 7, 8, 10]
    shuffled = {"jrt_fda_twice": [docs[i] for i in order]}
    write_run(tmp_path, "m", {"jrt_fda": ONCE}, documents={"jrt_fda": docs})
    write_run(tmp_path, "m", {"jrt_fda_twice": [ONCE[i] for i in order]}, documents=shuffled)
    row = compare_variants(load_results(tmp_path)).table.iloc[0]
    assert (row["n"], row["better"], row["worse"]) == (12, 0, 0)


def test_our_row_comes_before_the_hash(tmp_path: Path) -> None:
    documents = {
        task: [{"question": f"{task} {i}", "value": "a", "jrt_row": i} for i in range(12)] for task in BOTH
    }  # the variants' documents differ, so their hashes do
    write_run(tmp_path, "m", BOTH, documents=documents)
    assert compare_variants(load_results(tmp_path)).table["n"].tolist() == [12]


def test_position_is_the_last_resort_and_is_said(tmp_path: Path) -> None:
    documents = {task: [{"question": f"{task} {i}", "value": "a"} for i in range(12)] for task in BOTH}
    write_run(tmp_path, "m", BOTH, documents=documents)
    comparison = compare_variants(load_results(tmp_path))
    assert comparison.table["n"].tolist() == [12]
    assert any("paired by their position" in line for line in comparison.warnings)


def test_a_document_that_occurs_twice(tmp_path: Path) -> None:
    docs = [{"question": f"q{i // 2}", "value": "a"} for i in range(12)]
    write_run(tmp_path, "m", BOTH, documents=dict.fromkeys(BOTH, docs))
    path = next(tmp_path.rglob("samples_jrt_fda_2*"))
    path.write_text(path.read_text() * 2)  # and a file that was written twice
    comparison = compare_variants(load_results(tmp_path))
    assert comparison.table["n"].tolist() == [12]
    assert any("12 documents twice in one file: counted once" in line for line in comparison.warnings)


def test_filters_one_rule_and_a_label(tmp_path: Path) -> None:
    for name in ("strict", "flexible"):
        write_run(tmp_path, "m", BOTH, filters=("strict", "flexible"), name=name)
    results = load_results(tmp_path)
    assert compare_variants(results).table["dataset"].tolist() == ["fda (flexible)"]
    assert "fda (flexible)_once" in " ".join(map("_".join, prompt_table(results).columns()))
    assert compare_variants(results, filter_name="strict").table["n"].tolist() == [12]
    with pytest.raises(UserError, match="did you mean 'strict'"):
        compare_variants(results, filter_name="stict")
    with pytest.raises(UserError, match="did you mean 'strict'"):
        prompt_table(results, filter_name="stict")


def test_lower_is_better(tmp_path: Path) -> None:
    write_run(
        tmp_path, "a", {"jrt_fda": [-30.0] * 12, "jrt_fda_twice": [-20.0 - i for i in range(12)]}, metric="perplexity"
    )
    for path in tmp_path.rglob("results_*"):
        data = json.loads(path.read_text())
        data["higher_is_better"] = {task: {"perplexity": False} for task in BOTH}
        data["results"]["jrt_fda"]["perplexity,none"] = 12.5
        data["results"]["jrt_fda_twice"]["perplexity,none"] = 7.25
        path.write_text(json.dumps(data))
    results = load_results(tmp_path)
    table = prompt_table(results, metric="perplexity")
    assert table.title == "perplexity: read once and twice"
    assert table.flat()["fda_once"].tolist() == [12.5]
    assert table.lowest_is_best
    comparison = compare_variants(results)  # samples hold log-likelihoods
    assert comparison.metric == "log2_perplexity"
    row = comparison.table.iloc[0]
    assert row["gain"] < 0
    assert (row["better"], row["worse"]) == (10, 1)
    assert not comparison.higher_is_better


def test_weighted_perplexities_are_bits(tmp_path: Path) -> None:
    pairs = {"jrt_fda": [[-20.0, 10], [-30.0, 30]], "jrt_fda_twice": [[-10.0, 10], [-24.0, 30]]}
    write_run(tmp_path, "a", pairs, metric="word_perplexity")
    row = compare_variants(load_results(tmp_path)).table.iloc[0]
    assert row["first"] == pytest.approx(50 / 40 / 0.6931471805599453)
    assert row["second"] == pytest.approx(34 / 40 / 0.6931471805599453)


def test_lists_are_not_dropped_in_silence(tmp_path: Path) -> None:
    write_run(tmp_path, "a", {"jrt_fda": [[1, 2]] * 12}, metric="mcc", result={"mcc,none": [1, 2], "acc,none": 0.5})
    results = load_results(tmp_path)
    _ = results.units
    assert "metrics that are lists, not numbers, are left out: jrt_fda: mcc" in results.notes
    assert "metrics that are not one number per document cannot be compared: jrt_fda: mcc" in results.notes


def test_a_stock_task_is_the_once_of_its_variant(tmp_path: Path) -> None:
    write_run(tmp_path, "a", {"arc_easy": ONCE})
    write_run(
        tmp_path, "a", {"arc_easy_twice": TWICE}, task={"metadata": {"variant": "twice", "base_task": "arc_easy"}}
    )
    write_run(
        tmp_path, "a", {"arc_easy_padded": ONCE}, task={"metadata": {"variant": "padded", "base_task": "arc_easy"}}
    )
    results = load_results(tmp_path)
    assert compare_variants(results).table["gain"].tolist() == [pytest.approx(3 / 12)]
    assert compare_variants(results, against="padded").arms == ("padded", "twice")


def test_several_models_against_one(tmp_path: Path) -> None:
    for model, scores in (("a", ONCE), ("b", TWICE), ("c", ONCE)):
        write_run(tmp_path, model, {"jrt_fda": scores})
    table = compare_models(load_results(tmp_path), "a", ["b", "c"]).table.set_index("model")
    assert table.loc["b", "gain"] == pytest.approx(3 / 12)
    assert table.loc["c", "gain"] == 0
    assert table.loc["b", "p_adjusted"] >= table.loc["b", "p"]


def test_clusters_by_column(tmp_path: Path) -> None:
    docs = [{"question": f"q{i}", "value": f"v{i % 3}"} for i in range(12)]
    write_run(tmp_path, "m", BOTH, documents=dict.fromkeys(BOTH, docs))
    table = compare_variants(load_results(tmp_path), cluster="target").table
    assert table["documents"].tolist() == [3]
    with pytest.raises(UserError, match="did you mean 'target'"):
        compare_variants(load_results(tmp_path), cluster="targt")


def test_groups_nested_and_without_subtasks(tmp_path: Path) -> None:
    path = write_run(tmp_path, "m", BOTH)
    data = json.loads(path.read_text())
    data["results"] |= {"outer": {"contains,none": 0.5}, "inner": {"contains,none": 0.5}, "old": {"contains,none": 0.5}}
    data["group_subtasks"] = {"outer": ["inner"], "inner": ["jrt_fda", "jrt_fda_twice"]}
    data["groups"] = {"old": {"contains,none": 0.5}}
    path.write_text(json.dumps(data))
    scores = load_results(tmp_path).scores.set_index("task")
    assert scores.loc["outer", "n"] == scores.loc["inner", "n"] == 24
    assert scores["group"].to_dict() == {
        "jrt_fda": False,
        "jrt_fda_twice": False,
        "outer": True,
        "inner": True,
        "old": True,
    }
    assert "old (group)" in scores_table(load_results(tmp_path)).flat()["task"].tolist()


def test_notes_are_grouped(tmp_path: Path) -> None:
    for i in range(9):
        write_run(tmp_path, f"m{i}", BOTH, config__limit=12)
    notes = prompt_table(load_results(tmp_path)).notes
    assert notes == ["with --limit 12, so not on all documents: m0, m1, m2 and 6 more"]
    assert compare_variants(load_results(tmp_path)).warnings == notes
