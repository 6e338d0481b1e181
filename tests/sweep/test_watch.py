"""What a sweep shows: plain lines, the table, `status` from another shell, the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jrt_eval.cli.sweep import sweep as command
from jrt_eval.errors import UserError
from jrt_eval.sweep import watch
from jrt_eval.sweep.run import load_plan, run_sweep
from jrt_eval.sweep.store import last_lines

JRT_EVAL = (sys.executable, "-c", "from jrt_eval.cli import main; main()", "sweep")


def test_status_from_another_shell_while_it_runs_and_after_a_kill(toys: Any) -> None:
    running = toys.spawn(toys.file(metadata={"answers": 1000, "delay": 0.05}))
    try:
        log = toys.wait_for(lambda: next((toys.out / "jobs").glob("*/log.txt"), None), "a log")
        toys.wait_for(lambda: b"| 12/1000" in log.read_bytes(), "twelve answers")
        seen = subprocess.run([*JRT_EVAL, "status", str(toys.out)], capture_output=True, text=True)
        assert seen.returncode == 3
        assert "(running)" in seen.stdout
        assert "running     0/3 results" in seen.stdout
        assert "9.50 prompts/s" in seen.stdout
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    seen = subprocess.run([*JRT_EVAL, "status", str(toys.out)], capture_output=True, text=True)
    assert seen.returncode == 1
    assert "(not running)" in seen.stdout
    assert "interrupted" in seen.stdout


def test_status_of_a_finished_sweep_and_of_no_sweep(toys: Any, tmp_path: Path) -> None:
    run_sweep(toys.sweep(), toys.out, command=toys.stand_in)
    seen = CliRunner().invoke(command, ["status", str(toys.out)])
    assert seen.exit_code == 0
    assert "3 of 3 results; jobs: 1 done" in seen.output
    lost = subprocess.run([*JRT_EVAL, "status", str(tmp_path)], capture_output=True, text=True)
    assert lost.returncode == 1
    assert lost.stderr == f"jrt-eval: error: {tmp_path} contains no sweep: it has no .plan.json\n"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"jobs": 3}', '{"jobs": [{"id": 1}]}', '{"jobs": [null]}'])
def test_status_of_a_damaged_plan(toys: Any, text: str) -> None:
    toys.out.mkdir()
    (toys.out / ".plan.json").write_text(text)
    with pytest.raises(UserError, match="is damaged: run the sweep again"):
        load_plan(toys.out)


def test_escape_sequences_of_a_log_do_not_reach_the_terminal(toys: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"\x1b]0;title\x07one\x1b[31m red\n\x9b31mtwo\r  3%\r100%|#| 4/4\n\xff\n")
    for line in last_lines(log):
        assert line.isprintable()
    assert last_lines(log)[1] == "100%|#| 4/4"


def test_plain_lines_when_not_a_terminal(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_sweep(toys.sweep(), toys.out, command=toys.stand_in)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "toys: 3 results, 0 finished already, 3 to run in 1 jobs" in out
    assert "3 of 3 results; jobs: 1 done" in out
    assert "jrt-eval collect" in out


def test_the_table_names_states_and_errors(toys: Any) -> None:
    rich = pytest.importorskip("rich.console", reason="rich is not installed: pip install 'jrt-eval[sweep]'")
    two = [{"name": name, "type": "dummy", "args": {"pretrained": f"a/{name}"}} for name in ("first", "second")]
    settings = [{"models": ["first"], "metadata": {"trouble": {"toy_b": "crash"}}}, {"models": ["second"]}]
    run_sweep(toys.sweep(models=two, settings=settings), toys.out, command=toys.stand_in)
    place, _, jobs = load_plan(toys.out)
    console = rich.Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.table(watch.snapshot(place, jobs), "toys", "caption"))
    text = console.export_text()
    assert "failed" in text
    assert "2/3" in text
    assert "this task is broken" in text
    assert "3/3" in text


def test_dry_run_lists_jobs_and_tokens_and_writes_nothing(toys: Any) -> None:
    file = toys.file(settings=[{"context_length": 512}, {"context_length": 1024}], tasks=["toy_a"])
    seen = CliRunner().invoke(command, [str(file), "-o", str(toys.out), "--dry-run"])
    assert seen.exit_code == 0, seen.output
    assert "first__512-" in seen.output
    assert "first__1024-" in seen.output
    assert "2 jobs" in seen.output
    assert not toys.out.exists()


def test_the_files_that_come_along_can_be_listed_and_named(toys: Any) -> None:
    seen = CliRunner().invoke(command, ["list"])
    assert seen.exit_code == 0
    for name in ("table1_hazy", "table1_hf", "table2", "table4", "superglue", "smoke"):
        assert name in seen.output
    seen = CliRunner().invoke(command, ["--help"])
    assert "status" in seen.output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Running generate_until requests:  37%|###  | 412/1102 [00:10<00:20,  3.21it/s]", (412 / 1102, 3.21)),
        ("Running loglikelihood requests:   5%|#    | 1/20 [00:10<03:20,  4.00s/it]", (0.05, 0.25)),
        ("Fetching 3 files:  33%|###  | 1/3 [00:00<00:01,  1.00it/s]", (0.0, None)),
    ],
    ids=["generation", "slow scoring", "something else"],
)
def test_progress_is_read_from_lm_evals_own_bar(toys: Any, text: str, shown: tuple[float, float | None]) -> None:
    run_sweep(toys.sweep(tasks=["toy_a"]), toys.out, command=toys.stand_in)
    place, _, (job,) = load_plan(toys.out)
    (place.results / "first__toy_a" / ".record.json").unlink()
    status = place.job(job) / ".status.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    (place.job(job) / "log.txt").write_text(f"loading\n\rRunning generate_until requests: 0%|\r{text}")
    (view,) = watch.snapshot(place, [job])
    assert (pytest.approx(view.share), view.rate) == shown
