"""Names, groups, protocols, defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jrt_eval.plugin import task_folder

SIX = ["swde", "fda", "squad", "drop", "triviaqa", "nq_1024"]
ALL = [*SIX, "nq_512", "nq_2048"]


@pytest.fixture(scope="module")
def manager(shared: Path) -> Any:
    from lm_eval.tasks import TaskManager

    metadata = {"data_dir": str(shared / "data" / "hub"), "tokenizer": str(shared / "data" / "gpt2")}
    return TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)


def test_every_promised_name_is_there(manager: Any) -> None:
    names = [task + suffix for task in ALL for suffix in ("", "_twice")]
    assert {f"jrt_{name}" for name in names} | {"jrt_sample", "jrt_sample_twice"} <= set(manager.all_subtasks)
    assert {f"based_{name}" for name in names} == set(manager.all_tags)  # the original's names
    assert set(manager.all_groups) == {
        "jrt_once", "jrt_twice", "jrt_prompt", "jrt_2k", "jrt_unwindowed", "jrt_closed_book", "jrt_depth",
    }  # fmt: skip


def test_the_paper_protocol(manager: Any) -> None:
    tasks = manager.load(["jrt_prompt"])["tasks"]
    assert sorted(tasks) == sorted(f"jrt_{task}{suffix}" for task in SIX for suffix in ("", "_twice"))
    for task in tasks.values():
        assert task.config.metadata["jrt"]["context_length"] == 1000
        assert task.config.metadata["jrt"]["answer_length"] == 50
        assert task.config.generation_kwargs == {"until": ["\n"], "max_gen_toks": 48, "do_sample": False}


def test_the_2k_protocol_has_leaves_of_its_own(shared: Path, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    for folder in (shared / "data" / "hub").iterdir():
        (tmp_path / folder.name.replace("1024", "2048")).symlink_to(folder.resolve())
        (tmp_path / folder.name).exists() or (tmp_path / folder.name).symlink_to(folder.resolve())
    metadata = {"data_dir": str(tmp_path), "tokenizer": str(shared / "data" / "gpt2")}
    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata=metadata)
    tasks = manager.load(["jrt_2k", "jrt_once"])["tasks"]
    long = {name for name, task in tasks.items() if task.config.metadata["jrt"]["context_length"] == 2048}
    assert long == {f"jrt_2k_{task}" for task in [*SIX[:5], "nq_2048"]}
    assert set(tasks) - long == {f"jrt_{task}" for task in SIX}


@pytest.mark.parametrize("suffix", ["", "_twice"])
def test_the_originals_names_are_our_tasks(manager: Any, suffix: str) -> None:
    assert list(manager.load([f"based_drop{suffix}"])["tasks"]) == [f"jrt_drop{suffix}"]


def test_metadata_of_the_run_win(shared: Path, load: Callable[..., Any]) -> None:
    metadata = {"data_dir": str(shared / "data" / "hub"), "tokenizer": str(shared / "data" / "gpt-neox-20b")}
    task = load("jrt_swde", context_length="300", answer_length=20, **metadata)
    assert task.config.metadata["jrt"]["context_length"] == 300
    lengths = task._tokenizer.count([doc["text"] for doc in task.eval_docs])
    assert 250 <= max(lengths) <= 285  # decoding and encoding again moves a few


def test_data_dir_and_tokenizer_of_the_model(
    shared: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JRT_EVAL_DATA_DIR", str(shared / "data" / "hub"))
    task = load("jrt_fda", pretrained=str(shared / "data" / "gpt2"))
    assert task.config.metadata["jrt"]["tokenizer"] == str(shared / "data" / "gpt2")


def test_parquet_reads_as_jsonl_does(shared: Path, load: Callable[..., Any], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = shared / "data" / "hub" / "based_nq_1024" / "validation.jsonl"
    table = pa.Table.from_pylist([json.loads(line) for line in source.read_text().splitlines()])
    (tmp_path / "based_nq_1024").mkdir()
    pq.write_table(table, tmp_path / "based_nq_1024" / "validation.parquet")
    tokenizer = str(shared / "data" / "gpt2")
    a = load("jrt_nq_1024", data_dir=str(tmp_path), tokenizer=tokenizer)
    b = load("jrt_nq_1024", data_dir=str(source.parents[1]), tokenizer=tokenizer)
    assert list(a.eval_docs) == list(b.eval_docs)


def test_each_folder_has_a_readme_with_a_changelog() -> None:
    for folder in (path for path in task_folder().iterdir() if list(path.glob("*.yaml"))):
        text = (folder / "README.md").read_text()
        assert "### Changelog" in text, folder
        assert "### Citation" in text, folder
        for file in folder.glob("jrt_*.yaml"):
            assert f"`{file.stem}`" in text, file


def test_yaml_calls_nothing_relative() -> None:
    for file in task_folder().rglob("*yaml"):
        calls = [line for line in file.read_text().splitlines() if "!function" in line]
        assert all("!function jrt_eval." in line for line in calls), file


def test_sample_passages() -> None:
    rows = [json.loads(line) for line in (task_folder() / "jrt_sample" / "validation.jsonl").read_text().splitlines()]
    assert len({row["passage_id"] for row in rows}) == 30
    assert len({row["doc_id"] for row in rows}) == len(rows) == 90
    for row in rows:
        assert 80 <= len(row["passage"].split()) <= 400
        assert row["answers"][0] in row["passage"], row["doc_id"]
        assert row["cue"] == row["cue"].strip()
        assert row["question"].endswith("?")


@pytest.mark.parametrize("variant", ["", "_twice"])
def test_sample_needs_neither_network_nor_tokenizer(variant: str, load: Callable[..., Any]) -> None:
    task = load(f"jrt_sample{variant}")
    task.build_all_requests(rank=0, world_size=1)
    assert len(task.instances) == 90
    prompt = task.instances[0].args[0]
    passage, question, cue = (task.instances[0].doc[f"jrt_{part}"] for part in ("passage", "question", "cue"))
    assert prompt == (f"{question} {passage}\n{passage} {cue}" if variant else f"{passage} {cue}")
    assert task.config.metadata["jrt"]["truncated"] is None


def test_group_files_average_without_weights() -> None:
    for name in ("jrt_once", "jrt_2k"):
        group = yaml.safe_load((task_folder() / "groups" / f"{name}.yaml").read_text())
        assert [item["metric"] for item in group["aggregate_metric_list"]] == ["contains", "exact_match", "f1"]
        assert not any(item["weight_by_size"] for item in group["aggregate_metric_list"])
