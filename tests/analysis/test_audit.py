"""`jrt-eval audit`: the protocol of each task, and warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jrt_eval.analysis.audit import audit
from jrt_eval.cli import cli
from jrt_eval.errors import UserError

DATE = "2026-01-02T03-04-05.678901"


def ours(length: int | None, answer: int = 50, **record: Any) -> dict[str, Any]:
    return {"document": {}, "jrt": {"context_length": length, "answer_length": answer, "variant": "once", **record}}


def write(
    folder: Path, tasks: dict[str, dict[str, Any]], prompts: dict[str, list[str]] | None = None, **more: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    configs = {task: {"task": task, "metadata": metadata} for task, metadata in tasks.items()}
    data = {"results": {task: {} for task in tasks}, "configs": configs, "versions": {}, **more}
    (folder / f"results_{DATE}.json").write_text(json.dumps(data))
    for task, texts in (prompts or {}).items():
        lines = [json.dumps({"arguments": {"gen_args_0": {"arg_0": text}}}) for text in texts]
        (folder / f"samples_{task}_{DATE}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("task", "metadata", "protocol"),
    [
        ("jrt_fda", ours(1000), "the paper's Table 1 (window of 950 tokens)"),
        ("jrt_fda_twice", ours(1000, variant="twice", base_task="jrt_fda"), "the paper's Table 1 (window of 950 tokens), variant twice"),
        ("jrt_2k_fda", ours(2048), "2,048 tokens (window of 1,998 tokens)"),
        ("jrt_2k_fda", ours(2048, 48), "2,048 tokens as MoM ran it (window of 2,000 tokens)"),
        ("handbook", ours(500), "a window of 500 - 50 tokens"),
        ("jrt_mini", ours(None), "whole documents"),
        ("fda", {"version": 0}, "lm-eval's own task on whole documents"),
        ("arc_easy_padded", {"jrt": {"variant": "padded", "base_task": "arc_easy"}}, "lm-eval's arc_easy, variant padded"),
        ("arc_easy", {}, "lm-eval's arc_easy"),
    ],
)  # fmt: skip
def test_protocols(task: str, metadata: dict[str, Any], protocol: str, tmp_path: Path) -> None:
    (entry,) = audit(write(tmp_path, {task: metadata}))
    assert (entry.task, entry.protocol, entry.warnings) == (task, protocol, [])


@pytest.mark.parametrize(
    ("task", "metadata", "warning"),
    [
        ("nq_open", {}, "this measures knowledge, not recall"),
        ("triviaqa_twice", {"jrt": {"variant": "twice", "base_task": "triviaqa"}}, "not recall"),
        ("jrt_fda", ours(512), "context_length 512, answer_length 50: no paper's protocol"),
        ("jrt_2k_fda", ours(1000), "context_length is 1000, but this task's protocol has 2048"),
        ("jrt_fda", ours(1000, truncated=3, prompts=9), "3 of 9 prompts were cut from the left and lost their beginning"),
        ("jrt_fda_twice", ours(1000, variant="twice", truncated=1, prompts=9), "lost their question"),
        ("fda", {"jrt": {"costs": {"truncated": 4, "requests": 5}}}, "4 of 5 prompts were cut"),
    ],
)  # fmt: skip
def test_warnings(task: str, metadata: dict[str, Any], warning: str, tmp_path: Path) -> None:
    (entry,) = audit(write(tmp_path, {task: metadata}))
    assert len(entry.warnings) == 1
    assert warning in entry.warnings[0]


def test_blanks_at_the_end_of_prompts(tmp_path: Path) -> None:
    (entry,) = audit(write(tmp_path, {"arc": {}}, {"arc": ["Q: x\nA: ", "Q: y\nA:", "Q: z\n"]}))
    assert entry.warnings == ["1 of 3 prompts end with a blank, which can cost many points"]


def test_closed_book_beside_recall(tmp_path: Path) -> None:
    tasks = {"fda": {}, "nq_open": {}}
    both = audit(write(tmp_path, tasks, group_subtasks={"recall": list(tasks)}))
    assert ["do not report it in their table" in " ".join(entry.warnings) for entry in both] == [False, True]


def test_broken_files_are_passed_over_and_nothing_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "good", {"jrt_fda": ours(1000)})
    (tmp_path / f"results_{DATE}.json").write_text("{")
    (tmp_path / "results_x.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    assert [entry.task for entry in audit(tmp_path)] == ["jrt_fda"]
    with pytest.raises(UserError, match="no lm-eval results"):
        audit(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        audit(tmp_path / "nowhere")


def test_results_without_configs_are_named_by_their_tasks(tmp_path: Path) -> None:
    data = {"results": {"arc": {"acc": 0.5}, "g": {"acc": 0.5}}, "versions": {}, "group_subtasks": {"g": ["arc"]}}
    (tmp_path / f"results_{DATE}.json").write_text(json.dumps(data))
    assert [(entry.task, entry.protocol) for entry in audit(tmp_path)] == [("arc", "lm-eval's arc")]


def test_hidden_folders_links_and_bare_literals_of_python_are_read_as_collect_reads_them(tmp_path: Path) -> None:
    path = write(tmp_path / "runs" / ".__ckpt", {"jrt_fda": ours(1000)}, {"jrt_fda": ["Q: \n"]})
    result = next(path.glob("results_*"))
    result.write_text(result.read_text().replace('"versions": {}', '"versions": {"jrt_fda": NaN}'))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "there").symlink_to(tmp_path / "runs", target_is_directory=True)
    (entry,) = audit(tmp_path / "linked")
    assert (entry.file, entry.task) == (f"there/.__ckpt/{result.name}", "jrt_fda")
    assert entry.warnings == []


def test_the_command_prints_no_escape_sequences(tmp_path: Path) -> None:
    write(tmp_path, {"evil\x1b[31m": {}, "nq_open": {}})
    result = CliRunner().invoke(cli, ["audit", str(tmp_path)])
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "nq_open: closed-book questions\n    warning: no document is shown" in result.output
