"""docs/writing-a-task.md: exactly the files that the page shows, run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from jrt_eval.plugin import task_folder

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-task.md"


@pytest.fixture
def shown() -> dict[str, list[str]]:
    """The page's fenced blocks by language."""
    blocks: dict[str, list[str]] = {}
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        blocks.setdefault(language, []).append(text)
    return blocks


def test_the_page_runs(shown: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # lm-eval's dummy looks for a tokenizer on the hub, again and again.
    monkeypatch.setattr("lm_eval.models.dummy.DummyLM.tokenizer", None, raising=False)
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = tmp_path / "my_data" / "handbook"
    data.mkdir(parents=True)
    (data / "validation.jsonl").write_text(shown["json"][0])
    tasks = tmp_path / "my_tasks"
    shutil.copytree(task_folder() / "template", tasks / "template")
    (yaml,) = shown["yaml"]
    (tasks / "handbook.yaml").write_text(yaml)
    assert len(yaml.splitlines()) <= 10

    metadata = {"data_dir": str(tmp_path / "my_data"), "context_length": None}
    manager = TaskManager(include_path=[str(tasks)], include_defaults=False, metadata=metadata)
    names = ["handbook", "handbook_twice"]
    out = lm_eval.simple_evaluate("dummy", model_args={}, tasks=names, task_manager=manager, log_samples=True)
    assert out is not None
    prompts = {name: out["samples"][name][0]["arguments"][0][0] for name in names}
    row = json.loads(shown["json"][0].splitlines()[0])
    cue = 'The answer to "Who changes the filters?" is'
    assert prompts["handbook"] == f"{row['section']} {cue}"
    assert prompts["handbook_twice"] == f"{row['ask']} {row['section']}\n{row['section']} {cue}"
    pattern = re.escape(shown["text"][0].strip()).replace(re.escape("[...]"), ".*")
    assert re.fullmatch(pattern, prompts["handbook_twice"])


def test_the_page_names_every_column_and_count(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    text = PAGE.read_text()
    manager = TaskManager(include_path=[str(task_folder())], include_defaults=False, metadata={})
    task = manager.load(["jrt_sample"])["tasks"]["jrt_sample"]
    for column in task.eval_docs.column_names:
        assert not column.startswith("jrt_") or f"`{column}`" in text, column
    for count in task.config.metadata["jrt"]:
        assert f"`{count}`" in text, count
