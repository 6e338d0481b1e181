"""Tables: numbers against scores, every format read back, the published numbers, and the plots."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from made_runs import write_run
from results_files import edit, rerun, result_file

from jrt_eval.analysis import (
    compare_variants,
    gain_table,
    length_table,
    load_results,
    plots,
    prompt_table,
    published_scores,
)
from jrt_eval.analysis.published import published_folder, published_for
from jrt_eval.analysis.table import Table
from jrt_eval.errors import UserError


def test_prompt_table_holds_the_scores(runs: Path) -> None:
    results = load_results(runs)
    frame = prompt_table(results).flat().set_index("model")
    scores = results.scores[results.scores["metric"] == "contains"].astype({"model": str, "task": str})
    value = scores.set_index(["model", "task"])["value"]
    for model in ("acme/reader-small", "acme/reader-large"):
        row = frame.loc[model]
        assert row["colours_once"] == pytest.approx(100 * value[model, "jrt_colours"])
        assert row["towns_twice"] == pytest.approx(100 * value[model, "jrt_towns_twice"])
        assert row["average_once"] == pytest.approx((row["colours_once"] + row["towns_once"]) / 2)
        assert row["gain"] == pytest.approx(row["average_twice"] - row["average_once"])
    assert frame.loc["acme/reader-large", "size"] == "3M"
    assert prompt_table(results).notes == ["without contains, so left out: colours_choice"]


def test_a_missing_task_leaves_the_average_out(runs: Path) -> None:
    path = result_file(runs)
    data = json.loads(path.read_text())
    del data["results"]["jrt_towns"]
    path.write_text(json.dumps(data))
    row = prompt_table(load_results(runs)).flat().set_index("model").loc["acme/reader-small"]
    assert pd.isna(row["average_once"])
    assert pd.isna(row["gain"])
    assert row["average_twice"] > 0
    assert "–" in prompt_table(load_results(runs)).markdown()


@pytest.mark.parametrize("make", [prompt_table, length_table, lambda r: gain_table(compare_variants(r))])
def test_formats_read_back(runs: Path, tmp_path: Path, make: object) -> None:
    table: Table = make(load_results(runs))  # type: ignore[operator]
    flat = table.flat()
    for ending in (".csv", ".parquet", ".md", ".tex", ".txt"):
        table.write(tmp_path / f"t{ending}")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), flat, check_dtype=False)
    assert next(csv.reader(io.StringIO((tmp_path / "t.csv").read_text()))) == flat.columns.tolist()
    rows = [line for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) == len(flat) + 2
    cells = [[html.unescape(c).strip().strip("*") for c in row.strip("|").split("|")] for row in rows[2:]]
    assert cells == table.cells()
    tex = (tmp_path / "t.tex").read_text()
    body = tex[tex.index("\\midrule") : tex.index("\\bottomrule")].strip().splitlines()[1:]
    assert len(body) == len(flat)
    assert all(line.count("&") == len(table.columns()) - 1 for line in body)
    for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
        assert tex.count(rule) == 1
    text = (tmp_path / "t.txt").read_text()
    assert all(cell in text for row in table.cells() for cell in row)
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.name.startswith("t")) == sorted(
        [".csv", ".parquet", ".md", ".tex", ".txt"]
    )


def test_best_is_bold_and_text_is_escaped() -> None:
    frame = pd.DataFrame(
        [["a_b|c<i>", 50.0, 1.0], ["100%", 49.96, 2.0], ["c", 1.0, 1.0]],
        columns=pd.MultiIndex.from_tuples([("model", "model"), ("x", "once"), ("x", "twice")]),
    )
    table = Table("t_1 & more", frame, 1, [("x", "once"), ("x", "twice")])
    assert table.is_best() == [[False, True, False], [False, True, True], [False] * 3]  # 49.96 shows as 50.0: a tie
    assert "\\textbf{2.0}" in table.latex()
    assert "a\\_b\\textbar{}c\\textless{}i\\textgreater{} &" in table.latex()
    assert "\\multicolumn{2}{c}{x}" in table.latex()
    assert "| a_b\\|c&lt;i> | **50.0** |" in table.markdown()
    with pytest.raises(UserError, match="did you mean 'latex'"):
        table.render("latx")
    with pytest.raises(UserError, match="a table's file ends in"):
        table.write("x.docx")


def test_no_best_where_all_are_equal() -> None:
    frame = pd.DataFrame(
        [["a", 0.0, 1.0], ["b", 0.0, 2.0]], columns=pd.MultiIndex.from_product([["m", "x", "y"], [""]])
    )
    assert Table("t", frame, 1, [("x", ""), ("y", "")]).is_best() == [[False] * 3, [False, False, True]]


def test_length_table_has_a_column_per_window(runs: Path) -> None:
    path = rerun(runs, "acme__reader-large")
    data = json.loads(path.read_text())
    for config in data["configs"].values():
        config["metadata"]["context_length"] = 512
    path.write_text(json.dumps(data))
    results = load_results(runs)
    columns = length_table(results).flat().columns.tolist()
    assert columns == ["model", "read", "colours_512", "colours_1000", "towns_512", "towns_1000", "average"]
    rows = prompt_table(results).flat()["model"].tolist()
    assert rows == ["acme/reader-large @1000", "acme/reader-large @512", "acme/reader-small @1000"]
    figure = plots.length_plot(results)
    assert figure is not None
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["512", "1000"]


def test_published_copy_is_the_reference(shared: Path) -> None:
    for path in (shared / "reference").glob("*.csv"):
        assert (published_folder() / path.name).read_text() == path.read_text()


def test_published_numbers() -> None:
    every = published_scores()
    assert not every.duplicated(
        ["paper", "table", "architecture", "params", "tokens", "dataset", "variant", "context_length"]
    ).any()
    assert every["value"].between(0, 1).all()
    first = every[(every["paper"] == "JRT") & (every["table"] == "1")]
    raw = pd.read_csv(published_folder() / "table1_jrt_prompt.csv")
    averages = raw[raw["task"] == "avg"].set_index(["architecture", "params", "tokens", "variant"])["accuracy"]
    keys = ["architecture", "params", "tokens", "variant"]
    means = 100 * first.assign(variant=first["variant"].replace("once", "default")).groupby(keys)["value"].mean()
    assert ((means - averages).abs() < 0.6).mean() > 0.8  # the paper's averages, as far as they are of these columns


@pytest.mark.parametrize(
    ("model", "papers"),
    [
        ("/ckpt/JRT-1B-50B (jrt)", {"JRT"}),
        ("hazyresearch/mamba-1b-50b [temperature=1]", {"JRT"}),
        ("fla-hub/gla-1.3B-100B", {"JRT", "MoM"}),
        ("me/Gated-DeltaNet-1.3B-100B", {"Gated DeltaNet", "Gated DeltaNet-2", "MoM"}),
        ("me/mamba-1.3B", set()),
        ("gla", set()),
        ("", set()),
    ],
)
def test_published_rows_are_those_of_the_model(model: str, papers: set[str]) -> None:
    found = published_for([model])
    assert set(found["paper"]) == papers
    assert set(found["model"]) == ({model} if papers else set())


@pytest.mark.parametrize(
    ("length", "sources"),
    [(1000, ["measured", "JRT, Table 1"]), (2048, ["measured", "MoM, Table 2"]), (2000, ["measured", "MoM, Table 2"]), (500, ["measured"])],
)  # fmt: skip
def test_published_rows_are_those_of_the_protocol(length: int, sources: list[str], tmp_path: Path) -> None:
    metadata = {"jrt": {"context_length": length, "answer_length": 50}}
    tasks = {"jrt_fda": [1.0, 0.0], "jrt_swde": [1.0, 1.0]}
    write_run(tmp_path, "fla-hub/gla-1.3B-100B", tasks, task={"metadata": metadata})
    for make in (prompt_table, length_table):
        table = make(load_results(tmp_path), published=True)
        wanted = sources if make is prompt_table or length != 1000 else ["measured", "JRT, Table 1"]
        assert table.flat()["source"].tolist() == wanted
        if len(sources) == 1:
            assert table.notes == [
                "no paper has these models and data sets in the protocols of these runs; "
                "they are in 1000 tokens, 2K tokens"
            ]


def test_lm_evals_own_task_is_not_shown_next_to_windowed_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, "fla-hub/gla-1.3B-100B", {"fda": [1.0, 0.0], "fda_twice": [1.0, 1.0]})
    table = prompt_table(load_results(tmp_path), published=True)
    assert table.flat()["source"].tolist() == ["measured"]


def test_published_numbers_next_to_the_users(runs: Path) -> None:
    for model in ("acme__reader-small", "acme__reader-large"):
        path = result_file(runs, model)
        text = path.read_text().replace("jrt_colours", "jrt_fda").replace("jrt_towns", "jrt_swde")
        path.write_text(text)
        for sample in (runs / model).glob("samples_*"):
            sample.rename(sample.with_name(sample.name.replace("colours", "fda").replace("towns", "swde")))
    edit(result_file(runs), model_name="hazyresearch/mamba-1b-50b")
    table = prompt_table(load_results(runs), published=True)
    frame = table.flat()
    assert frame["source"].tolist() == ["measured", "measured", "JRT, Table 1"]
    paper = frame[frame["source"] == "JRT, Table 1"].iloc[0]
    assert paper["model"] == "hazyresearch/mamba-1b-50b"
    assert paper["size"] == "1.3B 50B"
    raw = pd.read_csv(published_folder() / "table1_jrt_prompt.csv").query("architecture == 'Mamba' and tokens == '50B'")
    expected = raw.set_index(["task", "variant"])["accuracy"]
    assert paper["fda_once"] == pytest.approx(expected["fda", "default"])
    assert paper["swde_twice"] == pytest.approx(expected["swde", "twice"])


def test_plots_are_files_of_column_width(runs: Path, tmp_path: Path) -> None:
    results = load_results(runs)
    comparison = compare_variants(results)
    figure = plots.gain_plot(comparison, "paper")
    assert figure.get_figwidth() == 3.15
    assert figure.axes[0].get_xlabel() == "gain in contains, points: twice − once"
    for ending in (".png", ".svg", ".pdf"):
        plots.save(figure, tmp_path / f"gain{ending}")
        assert (tmp_path / f"gain{ending}").stat().st_size > 3000
    assert (tmp_path / "gain.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"ends in \.png"):
        plots.save(figure, tmp_path / "gain.gif")
    assert plots.length_plot(results) is None
    cost = plots.cost_plot(results, "state_bytes")
    assert cost is not None
    assert len(cost.axes[0].collections) == 4
    assert plots.cost_plot(results, "tokens_per_second") is None
    with pytest.raises(UserError, match="did you mean 'paper'"):
        plots.gain_plot(comparison, "papers")


def test_plots_with_many_long_names_fit_a_column(runs: Path) -> None:
    comparison = compare_variants(load_results(runs))
    one = comparison.table[comparison.table["model"] == "acme/reader-small"]
    names = [f"acme/a-model-with-a-rather-long-name-{i}" for i in range(9)]
    many = dataclasses.replace(comparison, table=pd.concat([one.assign(model=name) for name in names]))
    figure = plots.gain_plot(many, "paper")
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in figure.axes[0].containers}
    assert len(looks) == 9
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [name.removeprefix("acme/") for name in names]
    assert plots.short_names(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}  # without its owner neither is told apart


def test_inline_svg_has_the_page_ink_and_ids_of_its_own(runs: Path) -> None:
    figure = plots.gain_plot(compare_variants(load_results(runs)))
    svg = plots.inline_svg(figure, "one")
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert plots._INK not in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert all(name.startswith("one-") for name in ids)
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg)) <= {(i, "") for i in ids} | {("", i) for i in ids}
