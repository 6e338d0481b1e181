"""The whole of a sweep: check, plan, resume, run, report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import yaml

from jrt_eval.errors import UserError, nearest
from jrt_eval.sweep.catalogue import Catalogue, check_model_types
from jrt_eval.sweep.job import LM_EVAL, end_orphans, status_of
from jrt_eval.sweep.local import LocalEngine
from jrt_eval.sweep.plan import Job, make_plan, model_commit, slug
from jrt_eval.sweep.spec import Sweep
from jrt_eval.sweep.store import Folder, read_json, write
from jrt_eval.sweep.watch import Board, snapshot, summary

_SAMPLE_BYTES = 12_000  # a logged sample: the document and its prompt
# Hub checkpoints of the papers, to suggest in place of a misspelt one.
_SIZES = {"mamba": ("130m", "370m", "1.4b", "2.8b"), "mamba2": ("130m", "370m", "1.3b", "2.7b")}
CHECKPOINTS = [
    *(f"hazyresearch/{name}-360M-30B" for name in ("JRT", "based", "mamba", "attn")),
    *(f"hazyresearch/{name}" for name in ("JRT-1B-50B", "based-1b-50b", "mamba-1b-50b", "attn-1b-50bn")),
    *(f"state-spaces/{family}-{size}" for family, sizes in _SIZES.items() for size in sizes),
    *("fla-hub/gla-1.3B-100B", "fla-hub/gla-2.7B-100B"),
]


class Engine(Protocol):
    """What places jobs: `check` refuses what could never run, `run` runs to the end."""

    def check(self, jobs: Sequence[Job]) -> None: ...

    def run(
        self, jobs: Sequence[Job], folder: Folder, tick: Any, command: Sequence[str] = LM_EVAL
    ) -> dict[str, str]: ...


def plan(sweep: Sweep, folder: Path) -> list[Job]:
    """Check what can be known before anything is loaded, and lay out the jobs."""
    source = Path(sweep.source).name
    check_model_types((model.type, f"model {model.name!r} of {source}") for model in sweep.models)
    jobs = make_plan(sweep, Catalogue(sweep.include_path), folder)
    if not jobs:
        raise UserError(f"{source} makes no jobs: no setting has both models and tasks")
    _check_checkpoints(sweep)
    return jobs


def run_sweep(
    sweep: Sweep,
    folder: Path | str,
    *,
    engine: Engine | None = None,
    resume: bool = True,
    command: Sequence[str] = LM_EVAL,
) -> int:
    """Run what is missing of a sweep in `folder`. Returns 0 when every result is there, else 1.

    `command` starts lm_eval; it is an argument for whoever must wrap it (a container, a profiler).
    """
    engine = engine or LocalEngine()
    place = Folder(folder)
    jobs = plan(sweep, place.path)
    with place.lock(), _terminate_as_interrupt():
        missing = find_missing(place, sweep, jobs, resume=resume)
        if missing:
            engine.check(missing)
            place.check_space(sum(job.prompts or 0 for job in missing) * _SAMPLE_BYTES)
        prepare(place, sweep, jobs, missing, resume=resume)
        units, total = sum(len(job.units) for job in missing), sum(len(job.units) for job in jobs)
        print(f"{sweep.name}: {total} results, {total - units} there already, {units} to make in {len(missing)} jobs")
        broken: dict[str, str] = {}
        began = time.monotonic()
        if missing:
            with Board(place, jobs, f"{sweep.name} in {place.path}") as board:
                broken = engine.run(missing, place, board.tick, command)
        return report(place, sweep, jobs, broken, time.monotonic() - began)


def find_missing(place: Folder, sweep: Sweep, jobs: Sequence[Job], *, resume: bool = True) -> list[Job]:
    """The jobs with the units that are not there, or not by these settings and versions. Changes nothing."""
    before = read_json(place.plan)
    if before is not None and before.get("name") != sweep.name:
        raise UserError(
            f"{place.path} holds the sweep {before.get('name')!r}, not {sweep.name!r}: give another folder with -o"
        )
    missing = []
    for job in jobs:
        keys = {unit.key for unit in job.units if not resume or not place.done(unit, job.commit)}
        missing += [job.only(keys)] if keys else []
    return missing


def prepare(place: Folder, sweep: Sweep, jobs: Sequence[Job], missing: Sequence[Job], *, resume: bool = True) -> None:
    """Make the folder say what this sweep is, end what a killed one left, set aside what other settings made."""
    for path in (place.results, place.jobs):
        path.mkdir(parents=True, exist_ok=True)
    ended = end_orphans(place.path)
    if ended:
        print(f"ended {ended} processes that an earlier, killed sweep left running here")
    place.clean()
    for job in missing:
        for unit in job.units:
            if (place.results / unit.key).exists():
                why = "made by other settings or versions" if resume else "--no-resume"
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
        print(f"{len(others)} results here are of an earlier form of this sweep file, e.g. {others[0]}; they stay")
    write(place.path / "sweep.yaml", yaml.safe_dump(sweep.raw, sort_keys=False, allow_unicode=True))
    write(
        place.plan,
        json.dumps(
            {"name": sweep.name, "table": sweep.table, "source": sweep.source, "jobs": [asdict(job) for job in jobs]},
            indent=1,
            default=str,
        ),
    )


def report(place: Folder, sweep: Sweep, jobs: Sequence[Job], broken: dict[str, str], seconds: float) -> int:
    """Say what failed and why, print the final table, and return the exit status."""
    views = snapshot(place, jobs, alive=False)
    failed = 0
    for job, view in zip(jobs, views, strict=True):
        if view.state == "done":
            continue
        failed += 1
        status = status_of(place, job)
        print(f"\n{view.job}: {view.state}: {broken.get(job.id) or view.error or 'was not run'}")
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
            write(place.path / "table.md", markdown)
    except UserError as error:
        print(f"\nno final table: {error}")
    print(f"\n{summary(views)} ({seconds:.0f} s). Read them with: jrt-eval collect {_shown(place.path)}")
    if failed:
        print(f"Run the same command again to go on with what is missing: {failed} of {len(jobs)} jobs")
    return 1 if failed else 0


def dry_run(sweep: Sweep, folder: Path | str) -> None:
    """List the jobs with what they would read, and what is there already; nothing is written."""
    place = Folder(folder)
    jobs = plan(sweep, place.path)
    width = max(len(job.id) for job in jobs)
    tokens = missing_tokens = 0
    print(f"{'job':<{width}}  results  there  prompts  tokens (estimated)  resources")
    for job in jobs:
        there = sum(place.done(unit, job.commit) for unit in job.units)
        missing = job.only({unit.key for unit in job.units if not place.done(unit, job.commit)})
        tokens += job.tokens or 0
        missing_tokens += missing.tokens or 0
        wanted = job.resources
        memory = f", {wanted.memory / 1e9:.0f} GB" if wanted.memory else ""
        print(
            f"{job.id:<{width}}  {len(job.units):>7}  {there:>5}  {_short(job.prompts):>7}  {_short(job.tokens):>18}  "
            f"{wanted.gpus:g} GPU, {wanted.cpus:g} CPU{memory}"
        )
    unknown = "" if all(job.tokens is not None for job in jobs) else ", and those of unknown tasks"
    print(f"\n{len(jobs)} jobs, about {_short(tokens)} tokens{unknown}; {_short(missing_tokens)} of them still to do")
    for key, value in sweep.expected.items():
        print(f"{key}: {' '.join(str(value).split())}")


def load_plan(folder: Path | str) -> tuple[Folder, dict[str, Any], list[Job]]:
    """The plan of a folder in which a sweep has begun."""
    place = Folder(folder)
    found = read_json(place.plan)
    if found is None:
        raise UserError(f"{folder} holds no sweep: no .plan.json in it")
    return place, found, [Job.from_dict(job) for job in found["jobs"]]


def _check_checkpoints(sweep: Sweep) -> None:
    """Refuse a local folder that is not there, and, where the hub can be asked, a repository that is not."""
    reachable = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("1", "true", "yes")
    reachable = reachable and os.environ.get("TRANSFORMERS_OFFLINE", "0") != "1"
    for model in sweep.models:
        name = model.args.get("pretrained") or model.args.get("checkpoint_name")
        if not isinstance(name, str) or Path(name).exists():
            continue
        where = f"model {model.name!r} of {Path(sweep.source).name}"
        if name.startswith(("/", "~", ".")) or name.count("/") != 1:
            parent = Path(name).parent
            beside = [str(p) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
            if name.startswith(("/", "~", ".")):
                raise UserError(f"no checkpoint folder {name} ({where}){nearest(name, beside)}")
            continue
        if reachable and model_commit(model.args) is None:
            reachable = _ask_hub(name, model.args.get("revision"), where)


def _ask_hub(name: str, revision: Any, where: str) -> bool:
    """Whether the hub could be asked at all."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(name, revision=revision, timeout=5)
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r} on the hub ({where})") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name} is not on the hub, or not open to you ({where}){nearest(name, CHECKPOINTS)}") from None
    except HfHubHTTPError:
        return True
    except Exception:  # noqa: BLE001 - no network, in whatever words: the job will say so itself
        return False
    return True


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM ends the jobs and closes the folder, as Ctrl-C does."""

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
