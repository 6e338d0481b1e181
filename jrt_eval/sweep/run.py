"""Runs a sweep: checks it, plans the jobs, runs what is missing, and reports."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import yaml

from jrt_eval.errors import UserError
from jrt_eval.files import write_text
from jrt_eval.sweep import estimate
from jrt_eval.sweep.catalogue import Catalogue, check_model_types
from jrt_eval.sweep.checkpoints import check_checkpoints
from jrt_eval.sweep.job import LM_EVAL, end_orphans, status_of
from jrt_eval.sweep.local import LocalEngine
from jrt_eval.sweep.plan import Job, make_plan, slug
from jrt_eval.sweep.spec import Sweep
from jrt_eval.sweep.store import Folder, read_json
from jrt_eval.sweep.watch import LiveStatus, snapshot, summary

_SAMPLE_BYTES = 12_000  # a logged sample: the document and its prompt


class Engine(Protocol):
    """Runs jobs. `check` raises `UserError` for a job that could never run; `run` returns when all have ended."""

    def check(self, jobs: Sequence[Job]) -> None: ...

    def run(
        self, jobs: Sequence[Job], folder: Folder, tick: Any, command: Sequence[str] = LM_EVAL
    ) -> dict[str, str]: ...


def plan(sweep: Sweep, folder: Path) -> list[Job]:
    """The jobs of a sweep, after all checks that need no model."""
    source = Path(sweep.source).name
    check_model_types((model.type, f"model {model.name!r} of {source}") for model in sweep.models)
    jobs = make_plan(sweep, Catalogue(sweep.include_path), folder)
    if not jobs:
        raise UserError(f"{source} makes no jobs: no setting has both models and tasks")
    check_checkpoints(sweep)
    return jobs


def run_sweep(
    sweep: Sweep,
    folder: Path | str,
    *,
    engine: Engine | None = None,
    resume: bool = True,
    command: Sequence[str] = LM_EVAL,
) -> int:
    """Run the missing parts of a sweep in `folder`. Returns 0 if every result is there at the end, 130 if stopped by Ctrl-C or
    SIGTERM, else 1.

    command: starts lm_eval; change it to wrap lm_eval in a container or a profiler.
    """
    engine = engine or LocalEngine()
    place = Folder(folder)
    jobs = plan(sweep, place.path)
    try:
        with place.lock(), _terminate_as_interrupt():
            return _run_locked(sweep, place, jobs, engine, resume, command)
    except KeyboardInterrupt:
        print("\nstopped: run the same command again to continue", file=sys.stderr)
        return 130


def _run_locked(
    sweep: Sweep, place: Folder, jobs: list[Job], engine: Engine, resume: bool, command: Sequence[str]
) -> int:
    missing = find_missing(place, sweep, jobs, resume=resume)
    if missing:
        engine.check(missing)
        place.check_space(sum(job.prompts or 0 for job in missing) * _SAMPLE_BYTES)
    prepare(place, sweep, jobs, missing, resume=resume)
    units, total = sum(len(job.units) for job in missing), sum(len(job.units) for job in jobs)
    print(f"{sweep.name}: {total} results, {total - units} finished already, {units} to run in {len(missing)} jobs")
    broken: dict[str, str] = {}
    began = time.monotonic()
    if missing:
        with LiveStatus(place, jobs, f"{sweep.name} in {place.path}") as live:
            broken = engine.run(missing, place, live.tick, command)
    return report(place, sweep, jobs, broken, time.monotonic() - began)


def find_missing(place: Folder, sweep: Sweep, jobs: Sequence[Job], *, resume: bool = True) -> list[Job]:
    """The jobs, each with its units that are missing, damaged, or from other settings or versions. Changes nothing."""
    before = read_json(place.plan)
    if before is not None and before.get("name") != sweep.name:
        raise UserError(
            f"{place.path} contains the sweep {before.get('name')!r}, not {sweep.name!r}: give another folder with -o"
        )
    missing = []
    for job in jobs:
        keys = {unit.key for unit in job.units if not resume or not place.done(unit, job.commit, thorough=True)}
        missing += [job.only(keys)] if keys else []
    return missing


def prepare(place: Folder, sweep: Sweep, jobs: Sequence[Job], missing: Sequence[Job], *, resume: bool = True) -> None:
    """Write the plan, end what a killed sweep left running, and set aside the results of other settings."""
    for path in (place.results, place.jobs):
        path.mkdir(parents=True, exist_ok=True)
    ended = end_orphans(place.path)
    if ended:
        print(f"ended {ended} processes that an earlier, killed sweep had left running")
    place.clean()
    for job in missing:
        for unit in job.units:
            if (place.results / unit.key).exists():
                why = "made by other settings or versions, or damaged" if resume else "--no-resume"
                place.set_aside(unit.key, why)
        (place.job(job) / ".status.json").unlink(missing_ok=True)
        if not resume:
            shutil.rmtree(place.job(job), ignore_errors=True)
    wanted = {job.model for job in missing}
    for model in sweep.models:
        if model.random and model.name in wanted:
            from jrt_eval.sweep.random_models import make

            make(model.random, place.path / ".models" / slug(model.name))
    planned = {unit.key for job in jobs for unit in job.units}
    others = [path.name for path in place.results.iterdir() if path.name not in planned and path.name[0] != "."]
    if others:
        print(
            f"{len(others)} results here belong to an earlier version of this sweep file, e.g. {others[0]}; they are kept"
        )
    write_text(place.path / "sweep.yaml", yaml.safe_dump(sweep.raw, sort_keys=False, allow_unicode=True))
    write_text(
        place.plan,
        json.dumps(
            {"name": sweep.name, "table": sweep.table, "source": sweep.source, "jobs": [asdict(job) for job in jobs]},
            indent=1,
            default=str,
        ),
    )


def report(place: Folder, sweep: Sweep, jobs: Sequence[Job], broken: dict[str, str], seconds: float) -> int:
    """Print what failed and why, and the final table. Returns the exit status."""
    views = snapshot(place, jobs, alive=False)
    failed = 0
    for job, view in zip(jobs, views, strict=True):
        if view.state == "done":
            continue
        failed += 1
        status = status_of(place, job)
        print(f"\n{view.job}: {view.state}: {broken.get(job.id) or view.error or 'did not run'}")
        for task, error in status.get("errors", {}).items():
            print(f"  {task}: {error}")
        for line in status.get("tail", []):
            print(f"  | {line}")
        print(f"  log: {place.job(job) / 'log.txt'}")
    from jrt_eval.sweep.tables import final_table

    try:
        shown, markdown = final_table(place, jobs, sweep.table)
        if shown:
            print(f"\n{shown.strip()}")
            write_text(place.path / "table.md", markdown)
    except UserError as error:
        print(f"\nno final table: {error}")
    print(f"\n{summary(views)} ({seconds:.0f} s). Read them with: jrt-eval collect {_shown(place.path)}")
    if failed:
        print(f"{failed} of {len(jobs)} jobs are not finished: run the same command again to continue")
    return 1 if failed else 0


def dry_run(sweep: Sweep, folder: Path | str) -> None:
    """Print the jobs, their estimated tokens, and how many of their results are there. Writes nothing."""
    place = Folder(folder)
    jobs = plan(sweep, place.path)
    width = max(len(job.id) for job in jobs)
    tokens = missing_tokens = 0
    print(f"{'job':<{width}}  results  there  prompts  tokens (estimated)  resources")
    for job in jobs:
        missing = job.only({unit.key for unit in job.units if not place.done(unit, job.commit, thorough=True)})
        there = len(job.units) - len(missing.units)
        tokens += job.tokens or 0
        missing_tokens += missing.tokens or 0
        wanted = job.resources
        memory = f", {wanted.memory / 1e9:.0f} GB" if wanted.memory else ""
        print(
            f"{job.id:<{width}}  {len(job.units):>7}  {there:>5}  {_short(job.prompts):>7}  {_short(job.tokens):>18}  "
            f"{wanted.gpus:g} GPU, {wanted.cpus:g} CPU{memory}"
        )
    unknown = "" if all(job.tokens is not None for job in jobs) else ", without tasks of unknown size"
    print(f"\n{len(jobs)} jobs, about {_short(tokens)} tokens{unknown}; {_short(missing_tokens)} of them still to do")
    hours = _gpu_hours(sweep, jobs)
    if hours:
        print(hours)
    for key, value in sweep.expected.items():
        print(f"{key}: {' '.join(str(value).split())}")


def _gpu_hours(sweep: Sweep, jobs: Sequence[Job]) -> str | None:
    """One line with the estimated GPU hours of all jobs; None if a model's size or a task's is unknown."""
    models = {model.name: model for model in sweep.models}
    prefill = decoding = 0.0
    for job in jobs:
        model = models[job.model]
        for unit in job.units:
            if model.params is None or unit.tokens is None or unit.answers is None:
                return None
            hours = estimate.gpu_hours(model.params, unit.tokens, unit.answers, model.speed)
            prefill, decoding = prefill + hours[0], decoding + hours[1]
    speeds = {model.speed for model in sweep.models}
    assumed = "; ".join(f"{each.prefill_tflops:g} TFLOP/s, {each.step_ms:g} ms per decode step" for each in speeds)
    return (
        f"GPU hours: {prefill:.1f} of prefill and {decoding:.1f} of decoding, plus loading and padding "
        f"(estimated for {assumed} of {estimate.BATCH} prompts; a model's `speed` changes this)"
    )


def load_plan(folder: Path | str) -> tuple[Folder, dict[str, Any], list[Job]]:
    """The folder, plan and jobs of a sweep that has been started."""
    place = Folder(folder)
    if not place.plan.is_file():
        raise UserError(f"{folder} contains no sweep: it has no .plan.json")
    found = read_json(place.plan)
    try:
        return place, found or {}, [Job.from_dict(job) for job in (found or {})["jobs"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{place.plan} is damaged: run the sweep again, which writes it anew") from None


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM stops the sweep as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _short(number: int | None) -> str:
    if number is None:
        return "unknown"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 10 or (unit != "k" and number >= size):
            return f"{number / size:.1f}{unit}"
    return str(number)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
