"""The report page, in a real headless browser where there is one (Debian: chromium, chromium-driver)."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from results_files import rerun

from jrt_eval.analysis import Results, load_results
from jrt_eval.analysis.comparison import compare_variants
from jrt_eval.analysis.documents import document_data
from jrt_eval.analysis.report import make_parts, write_report

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


@pytest.fixture(scope="module")
def results(made: Path) -> Results:
    return load_results(made / "runs")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver here")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1300,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_script_timeout(60)
    yield chrome
    chrome.quit()


def visit(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    wait(browser, "return window.jrtReport && window.jrtReport.ready")


def wait(browser: Any, script: str, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = browser.execute_script(script)
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"never true: {script}")


def select(browser: Any, name: str, value: str) -> int:
    """Choose an option; the number of items then shown."""
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        name,
        value,
    )
    return int(browser.execute_script("return window.jrtReport.shown()"))


def search(browser: Any, words: str, count: int) -> None:
    browser.execute_script(
        "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        words,
    )
    wait(browser, f"return window.jrtReport.shown() === {count}")


def poisoned(results: Results) -> Results:
    """The same results with HTML in every text that reaches the page."""
    frame = results.predictions.copy()
    for name in ("generation", "question", "doc_key"):
        frame[name] = frame[name].fillna("") + " " + EVIL
    frame["prompt"] = EVIL + frame["prompt"]
    frame["targets"] = [[*targets, EVIL] for targets in frame["targets"]]
    rename = {"acme/reader-small": f"acme/{EVIL}"}
    return Results(
        results.scores.assign(model=results.scores["model"].cat.rename_categories(rename)),
        frame.assign(model=frame["model"].cat.rename_categories(rename)),
        notes=[EVIL],
    )


def test_document_data_holds_every_prediction(results: Results) -> None:
    data = document_data(results, "contains")
    index, chunks = data.index, data.chunks()
    assert (data.shown, data.total) == (480, 480)
    known = results.predictions[results.predictions["metric_contains"].notna()]
    assert len(index["answers"]) == len(known) == 480
    assert len(index["documents"]) == 120
    kinds = [answer[2] for answer in index["answers"]]
    assert kinds == [0, 1] * 240  # once comes before twice
    prompts = [prompts for chunk in chunks for prompts in chunk]
    seen = {
        (index["models"][m], v, d[1], index["tasks"][d[0]]): (score, generation, prompts[at][p])
        for at, m, v, score, generation, p in index["answers"]
        for d in [index["documents"][at]]
    }
    for row in known.itertuples():
        score, generation, prompt = seen[row.model, ["once", "twice"].index(row.variant), row.doc_id, row.dataset]
        assert (score, generation, prompt) == (row.metric_contains, row.generation, row.prompt)


def test_page_is_one_file_without_network(results: Results, tmp_path: Path) -> None:
    write_report(results, tmp_path / "r.html", title="A <b>title</b>")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#)[^"']+""", page.replace("xlink:href", "href"))
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert "A &lt;b&gt;title" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html"]


def test_overview_stands_first(runs: Path, tmp_path: Path) -> None:
    path = rerun(runs, "acme__reader-large", model_name="acme/reader-new", lm_eval_version="0.4.12", config__limit=60)
    data = json.loads(path.read_text())
    data["versions"]["jrt_towns"] = 0.5
    path.write_text(json.dumps(data))
    results = load_results(runs)
    parts = make_parts(results)
    rows = parts.overview.flat().set_index("model")
    pooled = compare_variants(results).table.query("dataset == 'all tasks'").set_index("model")
    for model in rows.index:
        assert rows.loc[model, "once"] == pytest.approx(100 * pooled.loc[model, "first"])
        assert rows.loc[model, "gain"] == pytest.approx(100 * pooled.loc[model, "gain"])
    assert rows.loc["acme/reader-new", ["tasks", "limit", "lm_eval"]].tolist() == ["4", "60", "0.4.12"]
    newest = results.scores.loc[results.scores["model"] == "acme/reader-small", "lm_eval_version"].iloc[0]
    assert f"run with several versions of lm-eval: 0.4.12, {newest}" in parts.notes
    assert "several versions of the task (0.5, 1.0): jrt_towns" in parts.notes
    assert any("with --limit 60" in note for note in parts.notes)
    write_report(results, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    places = [
        page.index(text)
        for text in ('class="conclusions"', 'class="plot lead"', 'class="notes"', 'id="table-overview"')
    ]
    assert places == sorted(places)


def test_report_where_no_model_read_both_ways(runs: Path, tmp_path: Path) -> None:
    results = load_results(runs)
    keep = {"acme/reader-small": "once", "acme/reader-large": "twice"}
    scores, frame = results.scores, results.predictions
    half = Results(
        scores[scores["model"].astype(str).map(keep) == scores["variant"].astype(str)],
        frame[frame["model"].astype(str).map(keep) == frame["variant"].astype(str)],
    )
    parts = make_parts(half)
    assert "no model has a data set both once and twice" in parts.notes[0]
    assert list(parts.tables) == ["prompt", "scores", "failures"]
    write_report(half, tmp_path / "r.html")


def test_texts_are_escaped_in_the_source(results: Results, tmp_path: Path) -> None:
    write_report(poisoned(results), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "window.hacked = 1</script>" not in page
    assert "<img" not in page
    assert "acme/&lt;/script&gt;" in page


def test_filters_search_and_side_by_side(results: Results, tmp_path: Path, browser: Any) -> None:
    write_report(results, tmp_path / "r.html")
    visit(browser, tmp_path / "r.html")
    table = compare_variants(results).table
    assert browser.execute_script("return window.jrtReport.shown()") == 240
    single = table[table["dataset"] != "all tasks"].rename(columns={"better": "fixed", "worse": "broken"})
    assert select(browser, "outcome", "fixed") == single["fixed"].sum()
    assert select(browser, "outcome", "broken") == single["broken"].sum()
    small = single[single["model"] == "acme/reader-small"]
    models = browser.execute_script("return [...document.getElementById('model').options].map(o => o.text)")
    assert select(browser, "model", str(models.index("acme/reader-small") - 1)) == small["broken"].sum()
    assert select(browser, "outcome", "fixed") == small["fixed"].sum()
    tasks = browser.execute_script("return [...document.getElementById('task').options].map(o => o.text)")
    assert select(browser, "task", str(tasks.index("towns") - 1)) == small.set_index("dataset").loc["towns", "fixed"]

    frame = results.predictions
    ours = frame[(frame["model"] == "acme/reader-small") & (frame["dataset"] == "towns")]
    wide = ours.pivot(index="doc_id", columns="variant", values="metric_contains")
    row = int(wide[(wide["once"] == 0) & (wide["twice"] == 1)].index[0])
    pair = ours[ours["doc_id"] == row].set_index("variant")
    browser.execute_script("document.querySelector('.row').click()")
    wait(browser, "return document.querySelectorAll('#detail .prompt').length === 2")
    prompts = browser.execute_script("return [...document.querySelectorAll('#detail .prompt')].map(e => e.textContent)")
    assert prompts == [pair.loc["once", "prompt"], pair.loc["twice", "prompt"]]
    gold = str(pair.loc["once", "target"]).lower()
    marks = browser.execute_script("return [...document.querySelectorAll('.prompt mark')].map(e => e.textContent)")
    assert {m.lower() for m in marks} == {gold}
    assert len(marks) == sum(str(p).lower().count(gold) for p in prompts)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.generations')].map(g => [...g.querySelectorAll('.side')]"
        ".map(s => s.querySelector('p').textContent))"
    )
    assert len(shown) == 2  # both models
    assert shown[0] == [text if text.strip() else "(empty)" for text in pair.loc[["once", "twice"], "generation"]]

    for name in ("task", "model", "outcome"):
        select(browser, name, "")
    said = frame[frame["metric_contains"].notna()]
    hits = said[said["generation"].str.contains("nobody knows", regex=False)]
    search(browser, "NOBODY knows", hits.drop_duplicates(["model", "dataset", "doc_id"]).shape[0])
    search(browser, "surely nowhere", 0)
    assert browser.execute_script("return document.getElementById('count').textContent") == "0 of 240"
    search(browser, "", 240)
    browser.execute_script("document.getElementById('deep').click()")
    once = said[said["variant"] == "once"]
    found = once[once["prompt"].str.contains("colour of Anna is", regex=False)]
    search(browser, "colour of anna is", len(found))
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def test_html_in_documents_and_generations_is_shown_not_run(results: Results, tmp_path: Path, browser: Any) -> None:
    write_report(poisoned(results), tmp_path / "r.html")
    visit(browser, tmp_path / "r.html")
    browser.execute_script("document.querySelector('.row').click()")
    wait(browser, "return document.querySelectorAll('#detail .prompt').length === 2")
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.images.length") == 0
    text = browser.execute_script("return document.getElementById('detail').textContent")
    assert text.count(EVIL) >= 4
    assert EVIL in browser.execute_script("return document.querySelector('.notes').textContent")


def test_keyboard(results: Results, tmp_path: Path, browser: Any) -> None:
    write_report(results, tmp_path / "r.html")
    visit(browser, tmp_path / "r.html")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    rows = browser.find_element(By.ID, "list")
    rows.send_keys(Keys.ARROW_DOWN)
    for _ in range(3):
        rows.send_keys(Keys.PAGE_DOWN)
    wait(browser, "const row = document.querySelector('.row.chosen'); return row && row.dataset.at === '31'")


def test_twenty_thousand_predictions(
    results: Results, tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Responsive: the first paint under 2 s, a filter or a search in a blink, and few rows in the page at any time."""
    known = results.predictions[results.predictions["metric_contains"].notna()]
    copies = []
    for copy in range(42):
        copies.append(known.assign(row=known["doc_id"] + 1000 * copy, doc_key=known["doc_key"] + f"-{copy}"))
    frame = pd.concat(copies, ignore_index=True)
    draw = random.Random(0)
    words = [f"{draw.randrange(16**6):x}" for _ in range(3000)]
    texts = {
        row: " ".join(draw.choices(words, k=600)) for row in frame["row"].unique()
    }  # 4 KB, a window of 1,000 tokens
    frame["prompt"] = [f"{texts[row]} {prompt}" for row, prompt in zip(frame["row"], frame["prompt"], strict=True)]
    many = results.with_predictions(frame)
    assert len(frame) == 20_160
    monkeypatch.setattr("jrt_eval.analysis.documents.BUDGET", 10**9)
    write_report(many, tmp_path / "big.html")
    visit(browser, tmp_path / "big.html")
    paint = browser.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    seconds = browser.execute_async_script(
        "const done = arguments[0], start = performance.now();"
        "const o = document.getElementById('outcome'); o.value = 'fixed'; o.dispatchEvent(new Event('change'));"
        "requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000)))"
    )
    print(json.dumps({"first_paint_ms": paint, "filter_s": seconds, "bytes": (tmp_path / "big.html").stat().st_size}))
    assert (
        browser.execute_script("return window.jrtReport.shown()")
        == 42 * compare_variants(results).table.query("dataset != 'all tasks'")["better"].sum()
    )
    assert browser.execute_script("return document.querySelectorAll('.row').length") < 60
    browser.execute_script("const l = document.getElementById('list'); l.scrollTop = l.scrollHeight")
    last = wait(browser, "return Math.max(...[...document.querySelectorAll('.row')].map(r => +r.dataset.at)) > 100")
    assert last
    assert browser.execute_script("return document.querySelectorAll('.row').length") < 60
    select(browser, "outcome", "")
    search(browser, "towns-7-41", 2)
