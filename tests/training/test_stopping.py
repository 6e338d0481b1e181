"""SIGTERM and Ctrl-C end a run between two steps, with a checkpoint; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from training_helpers import content, losses, tiny

from jrt_eval.training import checkpoint
from jrt_eval.training.stopping import StopRequest
from jrt_eval.training.trainer import train


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    whole = tiny(tmp_path, output=str(tmp_path / "whole"), steps=200, save_every=200)
    train(whole, progress=False)
    stopped = tiny(tmp_path, output=str(tmp_path / "stopped"), steps=200, save_every=200)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content(tmp_path, output=stopped.output, steps=200, save_every=200)))
    command = [sys.executable, "-m", "jrt_eval", "train", str(path)]
    metrics = Path(stopped.output) / "metrics.csv"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{number.name}: stopped after step " in errors
    assert "Traceback" not in errors
    (folder,) = checkpoint.existing(Path(stopped.output) / "checkpoints")
    assert 3 <= checkpoint.step_of(folder) < 200
    train(stopped, progress=False)
    assert losses(stopped) == losses(whole)


@pytest.fixture
def usual() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a shell turns off for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual")
def test_a_second_signal_acts_as_usual() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_are_left_alone_outside_of_the_main_thread() -> None:
    seen: list[object] = []

    def work() -> None:
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert seen == [before]
