"""Every relative path that the documentation names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tasks/**/*.md"), *ROOT.glob("results/**/*.md")]
)
# A path in backticks counts if it begins with a folder of the repository.
FOLDERS = "benchmarks|configs|csrc|docs|jrt_eval|model_adapters|results|tasks|tests"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*[\w/*])")


def links(text: str) -> set[str]:
    return {link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")}


def named(text: str) -> set[str]:
    text = re.sub(r"https?://\S+", "", text)
    return {path.rstrip(".") for path in NAMED.findall(LINK.sub("", text))}


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages are in the checkout only")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page: Path) -> None:
    text = page.read_text()
    missing = [link for link in links(text) if not (page.parent / link).exists()]
    missing += [path for path in named(text) if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing


def test_what_counts_as_a_path() -> None:
    text = (
        "[a](docs/x.md#y) [b](https://e.org/docs/z) `docs/models.md`, tests/kernels/*.py. my-tasks/no jrt_eval.prompts"
    )
    assert links(text) == {"docs/x.md"}
    assert named(text) == {"docs/models.md", "tests/kernels/*.py"}
