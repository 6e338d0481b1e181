"""Metrics files are cut back to the step that a run resumes from, and a full disk is one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jrt_eval.errors import UserError
from jrt_eval.training.metrics import MetricsFile


def test_rows_after_the_resumed_step_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ("step", "loss"), 0)
    for step in range(1, 6):
        file.add(step=step, loss=1 / step)
    with path.open("a") as text:
        text.write("6,0.1\nx,1\n,\n\x00\xff7,")  # what a power cut may leave
    MetricsFile(path, ("step", "loss"), 3)
    assert path.read_text() == "step,loss\n1,1\n2,0.5\n3,0.333333\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ("step", "loss"), 0)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*No space left on device; the checkpoints are unchanged"):
        file.add(step=1, loss=1.0)
