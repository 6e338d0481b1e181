"""Collecting: frames against what lm-eval wrote, layouts of several versions, duplicates, bad files, reading again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pandas as pd
import pyarrow.parquet as pq
import pytest
from results_files import edit, rerun, result_file, sample_file

import jrt_eval
from jrt_eval.analysis import collect, compare_variants, load_results, scores_table
from jrt_eval.analysis.runs import parse_args, split_task
from jrt_eval.analysis.samples import Part, read_batches, write_part
from jrt_eval.analysis.schema import PREDICTIONS, SCORES, markdown
from jrt_eval.errors import UserError

FROZEN = Path(__file__).parent / "frozen"
DOCS = Path(__file__).parents[2] / "docs" / "analysis.md"
RUN = dict.fromkeys(("run_id", "model", "task", "dataset", "variant"), "x") | {"context_length": 1000}


def test_scores_are_lm_evals(runs: Path) -> None:
    scores = load_results(runs).scores
    for model in ("acme__reader-small", "acme__reader-large"):
        data = json.loads(result_file(runs, model).read_text())
        ours = scores[scores["model"] == model.replace("__", "/")]
        for task, values in data["results"].items():
            for key, value in values.items():
                metric, _, name = key.partition(",")
                if not name or metric.endswith("_stderr"):
                    continue
                row = ours[(ours["task"] == task) & (ours["metric"] == metric)].iloc[0]
                assert row["value"] == value
                assert row["stderr"] == values[f"{metric}_stderr,{name}"]
                assert row["n"] == (240 if task == "facts" else 60)
    assert len(scores) == 11 + 9
    row = scores[(scores["task"] == "jrt_towns_twice") & (scores["metric"] == "contains")].iloc[0]
    assert (row["dataset"], row["variant"], row["context_length"], row["answer_length"]) == ("towns", "twice", 1000, 50)
    assert row["higher_is_better"]
    assert not row["group"]
    assert (row["num_fewshot"], row["random_seed"], row["batch_size"], row["dtype"]) == (0, 0, "1", "float32")
    assert row["time"].tzinfo is not None
    assert set(scores.loc[scores["group"], "task"]) == {"facts"}
    assert pd.isna(scores.loc[scores["task"] == "colours_choice", "variant"]).all()


def test_predictions_are_the_samples_and_join(runs: Path) -> None:
    results = load_results(runs)
    path = sample_file(runs, "jrt_colours_twice")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    frame = results.predictions
    ours = frame[(frame["task"] == "jrt_colours_twice") & (frame["model"] == "acme/reader-small")]
    assert ours["prompt"].tolist() == [s["arguments"]["gen_args_0"]["arg_0"] for s in samples]
    assert ours["prompt_hash"].tolist() == [s["prompt_hash"] for s in samples]
    assert ours["generation"].tolist() == [s["filtered_resps"][0] for s in samples]
    assert ours["metric_contains"].tolist() == [s["contains"] for s in samples]
    assert [list(t) for t in ours["targets"]] == [[s["doc"]["value"]] for s in samples]
    assert ours["question"].tolist() == [s["doc"]["question"] for s in samples]
    for row in ours.itertuples():
        end = len(row.prompt) - row.answer_distance
        assert row.prompt[:end].lower().endswith(row.target)
    means = frame.astype({"run_id": str, "task": str}).groupby(["run_id", "task"])["metric_contains"].mean().dropna()
    scores = results.scores.astype({"run_id": str, "task": str})
    scores = scores[(scores["metric"] == "contains") & ~scores["group"]].set_index(["run_id", "task"])["value"]
    assert (means.sort_index() - scores.sort_index()).abs().max() < 1e-12


def test_multiple_choice_prediction_is_the_preferred_choice(runs: Path) -> None:
    frame = load_results(runs).predictions
    ours = frame[frame["task"] == "colours_choice"]
    assert ((ours["generation"].str.strip() == ours["target"]) == (ours["metric_acc"] == 1)).all()


@pytest.mark.parametrize("version", ["0.4.9", "0.4.10", "0.4.12"])
def test_older_layouts(version: str) -> None:
    results = load_results(FROZEN / f"lm_eval-{version}")
    assert not results.skipped
    assert results.scores["lm_eval_version"].unique().tolist() == [version]
    assert results.scores["model"].unique().tolist() == [f"acme/reader-{version}"]
    assert results.scores["n"].tolist() == [24 if group else 6 for group in results.scores["group"]]
    assert len(results.scores) == 11
    assert len(results.predictions) == 30
    assert results.scores["stderr"].notna().all()


def test_types_and_columns(runs: Path) -> None:
    results = jrt_eval.load_results(runs)
    assert results.scores.columns.tolist() == [c.name for c in SCORES]
    assert results.predictions.columns.tolist()[: len(PREDICTIONS)] == [c.name for c in PREDICTIONS]
    for columns, frame in ((SCORES, results.scores), (PREDICTIONS, results.predictions)):
        for column in columns:
            dtype = str(frame[column.name].dtype)
            expected = {"category": "category", "int": "Int64", "bool": "boolean", "float": "float64", "str": "string"}
            assert dtype == expected.get(column.kind, dtype), column.name
    assert str(results.scores["time"].dtype).startswith("datetime64")
    assert markdown(SCORES) in DOCS.read_text(encoding="utf-8")
    assert markdown(PREDICTIONS) in DOCS.read_text(encoding="utf-8")


def test_collected_equals_loaded(runs: Path, tmp_path: Path) -> None:
    done = collect(runs, tmp_path / "out")
    raw, stored = load_results(runs), load_results(tmp_path / "out")
    keys = ["run_id", "task", "doc_id"]
    plain = dict.fromkeys(("run_id", "model", "task", "dataset", "variant", "filter"), object)
    left = raw.predictions.astype(plain).sort_values(keys, ignore_index=True)
    right = stored.predictions.astype(plain).sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(left, right)
    pd.testing.assert_frame_equal(raw.scores, stored.scores)
    assert (done.runs, done.predictions) == (2, len(left))
    by_pandas = pd.read_parquet(tmp_path / "out" / "predictions")
    assert set(by_pandas.columns) == set(right.columns)  # every part's metrics, whichever part comes first
    assert len(by_pandas) == len(right)
    assert pd.read_csv(tmp_path / "out" / "scores.csv")["value"].tolist() == raw.scores["value"].tolist()
    assert load_results(tmp_path / "out", columns=["doc_id", "metric_acc"]).predictions.shape == (len(left), 2)


def test_incremental(runs: Path) -> None:
    assert collect(runs).read == 2 + 9
    again = collect(runs)
    assert (again.read, again.reused) == (0, 11)
    before = {p.name: p.stat().st_mtime_ns for p in (runs / "collected" / "predictions").glob("*-*.parquet")}
    rerun(runs, "acme__reader-large", model_name="acme/reader-new")
    third = collect(runs)
    assert (third.read, third.reused, third.runs) == (1 + 4, 11, 3)
    after = {p.name: p.stat().st_mtime_ns for p in (runs / "collected" / "predictions").glob("*-*.parquet")}
    assert all(after[name] == time for name, time in before.items() if not name.startswith("000"))
    (runs / "acme__reader-small").rename(runs.parent / "gone")
    assert collect(runs).runs == 2
    assert set(load_results(runs / "collected").predictions["model"]) == {"acme/reader-large", "acme/reader-new"}


def test_workers_and_ranges_give_the_same(runs: Path, tmp_path: Path) -> None:
    path = sample_file(runs, "jrt_towns")
    whole = pd.concat([t.to_pandas() for t in read_batches(path, RUN, Part())])
    size = path.stat().st_size
    for step in (1000, 1357, size):
        starts = list(range(0, size, step))
        parts = []
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            part = write_part(path, tmp_path / "p.parquet", RUN, start, end)
            if part.rows:
                parts.append(pq.read_table(tmp_path / "p.parquet").to_pandas())
        assert pd.concat(parts)["prompt"].tolist() == whole["prompt"].tolist()
    big = runs / "big"
    big.mkdir()
    shutil.copy(result_file(runs), big)
    line = json.loads(path.read_text().splitlines()[0])
    line["padding"] = "x" * 700_000
    lines = [json.dumps({**line, "doc_id": i}) for i in range(110)]
    (big / path.name).write_text("\n".join(lines) + "\n")
    edit(next(big.glob("results*")), model_name="acme/big")
    one, two = collect(big, tmp_path / "one", workers=1), collect(big, tmp_path / "two", workers=2)
    assert one.predictions == two.predictions == 110
    pd.testing.assert_frame_equal(load_results(one.out).predictions, load_results(two.out).predictions)


def test_metric_that_appears_late(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jrt_eval.analysis.samples.BATCH", 10)
    path = sample_file(runs, "jrt_towns")
    lines = path.read_text().splitlines()
    last = json.loads(lines[-1])
    lines[-1] = json.dumps({**last, "metrics": [*last["metrics"], "late"], "late": 0.5})
    path.write_text("\n".join(lines) + "\n")
    assert write_part(path, tmp_path / "p.parquet", RUN).numbers == {
        "metric_contains",
        "metric_exact_match",
        "metric_late",
    }
    assert pq.read_table(tmp_path / "p.parquet")["metric_late"].null_count == len(lines) - 1


def test_newest_wins_and_keep_all(runs: Path) -> None:
    newer = rerun(runs)
    done = collect(runs, keep="newest")
    assert done.superseded == 6  # tasks and group
    scores = load_results(done.out).scores
    assert set(scores.loc[scores["model"] == "acme/reader-small", "file"]) == {newer.relative_to(runs).as_posix()}
    both = collect(runs, keep="all")
    assert (both.runs, both.superseded) == (3, 0)
    assert len(load_results(both.out).predictions) == 300 + 240 + 300
    assert collect(runs, keep="newest").predictions == 540


def test_limited_run_does_not_replace_the_full_one(runs: Path) -> None:
    rerun(runs, config__limit=10)
    assert collect(runs).superseded == 0


def test_a_copied_tree_counts_once(runs: Path) -> None:
    shutil.copytree(runs / "acme__reader-small", runs / "copy")
    done = collect(runs, keep="all")
    assert done.runs == 2
    assert [r for r in done.skipped.values() if r.startswith("a copy of ")]


def test_two_models_with_one_name_are_kept_apart(runs: Path) -> None:
    first = collect(runs)
    assert not first.notes
    rerun(runs, config__model_num_parameters=7_000_000)
    done = collect(runs)
    assert len(done.notes) == 1
    assert "2 different models have the name acme/reader-small" in done.notes[0]
    loaded = load_results(done.out)
    names = {"acme/reader-small (parameters=1000000)", "acme/reader-small (parameters=7000000)", "acme/reader-large"}
    assert set(loaded.scores["model"]) == set(loaded.predictions["model"]) == names
    assert set(pd.read_parquet(done.out / "predictions")["model"]) == names


def test_bad_files_are_listed_and_the_rest_is_kept(runs: Path) -> None:
    cut = sample_file(runs, "jrt_colours")
    cut.write_bytes(cut.read_bytes()[:-30])
    short = sample_file(runs, "jrt_towns")
    short.write_text("".join(short.read_text().splitlines(keepends=True)[:7]))
    nameless = sample_file(runs, "jrt_towns_twice")
    nameless.write_text(nameless.read_text().replace('"doc_id": 0, ', "").replace('"doc_hash": ', '"hash": '))
    orphan = runs / "samples_jrt_x_2026-01-01T00-00-00.000000.jsonl"
    shutil.copy(sample_file(runs, "colours_choice"), orphan)
    (runs / "config.json").write_text('{"model_type": "gpt2"}')
    (runs / "notes.jsonl").write_text("{}\n")
    torn = runs / "acme__reader-large" / "results_2030-01-01T00-00-00.000000.json"
    torn.write_bytes(result_file(runs).read_bytes()[:2000])
    (runs / "empty_2030-01-01T00-00-00.json").write_text("")
    done = collect(runs)
    reasons = {Path(path).name: reason for path, reason in done.skipped.items()}
    assert reasons[cut.name] == "half-written: its last line is cut"
    assert reasons[short.name] == "half-written: 7 of 60 documents"
    assert reasons[nameless.name].startswith("1 line of it left out (the line at byte 0 has neither doc_id nor")
    assert reasons[orphan.name] == "no usable result file of the same folder and date"
    assert reasons["config.json"].startswith("foreign")
    assert reasons["notes.jsonl"].startswith("foreign")
    assert reasons[torn.name] == "half-written: the JSON ends early"
    assert len(reasons) == 8
    assert (done.runs, done.scores) == (2, 20)
    assert done.predictions == 60 * 2 + 59 + 240
    assert load_results(done.out).skipped == done.skipped
    tree = load_results(runs)
    assert len(tree.predictions) == done.predictions
    assert tree.skipped == done.skipped
    assert collect(runs).skipped == done.skipped  # known from the manifest


@pytest.mark.parametrize("break_it", ["samples", "results"])
def test_strict_is_an_error_and_changes_nothing(runs: Path, break_it: str) -> None:
    out = collect(runs).out
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    bad = sample_file(runs, "jrt_colours") if break_it == "samples" else result_file(runs)
    bad.write_bytes(bad.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"half-written.*without --strict"):
        collect(runs, strict=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in runs.iterdir() if p.name.startswith(".")] == []


def test_a_failure_while_writing_leaves_the_old(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = collect(runs).out
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    rerun(runs)
    monkeypatch.setattr(
        "jrt_eval.analysis.collecting._write_csv", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(UserError, match="disk full; nothing was changed"):
        collect(runs)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_unreadable_manifest_means_a_fresh_start(runs: Path) -> None:
    out = collect(runs).out
    manifest = orjson.loads((out / "manifest.json").read_bytes())
    (out / "manifest.json").write_bytes(orjson.dumps({**manifest, "format": 0}))
    assert collect(runs).reused == 0
    (out / "scores.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        load_results(out)


def test_output_path_that_names_a_file(runs: Path, tmp_path: Path) -> None:
    old = result_file(runs)
    date = old.stem.removeprefix("results_")
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(old, flat / f"my_run_{date}.json")
    for path in old.parent.glob("samples_*"):
        shutil.copy(path, flat)
    results = load_results(flat)
    assert len(results.predictions) == 300
    assert not results.skipped


def test_names_and_arguments() -> None:
    assert split_task("jrt_nq_512_twice") == ("nq_512", "twice")
    assert split_task("based_fda") == ("fda", "once")
    assert split_task("mine_twice") == ("mine", "twice")
    assert split_task("hellaswag") == ("hellaswag", None)
    assert split_task("mine", {"document": {"variant": "once"}}) == ("mine", "once")
    assert split_task("_twice") == ("_twice", None)
    assert parse_args("pretrained=a/b,dtype=float32") == {"pretrained": "a/b", "dtype": "float32"}
    assert parse_args({"pretrained": "x"}) == {"pretrained": "x"}


def test_collecting_imports_neither_torch_nor_lm_eval(runs: Path) -> None:
    code = (
        "import sys; from jrt_eval.cli import cli\n"
        f"try: cli(['collect', {str(runs)!r}])\nexcept SystemExit: pass\n"
        "import jrt_eval; jrt_eval.load_results(sys.argv[1])\n"
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_an_older_version_collected_can_be_read(runs: Path, tmp_path: Path) -> None:
    collect(runs, tmp_path / "out")
    now = load_results(tmp_path / "out")
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    older = ["windows", "document_seconds", "chat_template"]
    pq.write_table(scores.drop_columns(older), tmp_path / "out" / "scores.parquet")
    for part in (tmp_path / "out" / "predictions").glob("*.parquet"):
        pq.write_table(pq.read_table(part).drop_columns(["prompt_tokens", "answer_depth"]), part)
    results = load_results(tmp_path / "out")
    assert results.scores.columns.tolist() == now.scores.columns.tolist()
    assert scores_table(results).cells() == scores_table(now).cells()
    assert compare_variants(results).table["gain"].tolist() == compare_variants(now).table["gain"].tolist()
