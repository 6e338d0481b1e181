"""The jobs of a sweep: one lm_eval process per model and setting, each with a unit per task."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jrt_eval._version import __version__
from jrt_eval.sweep import estimate
from jrt_eval.sweep.catalogue import Catalogue
from jrt_eval.sweep.spec import Model, Resources, Setting, Sweep

_LONGEST_NAME = 120


@dataclass(frozen=True)
class Unit:
    """A model, a task and a setting: the smallest result that is recorded."""

    model: str
    task: str
    setting: str
    fingerprint: str  # a hash of everything that may change the result
    prompts: int | None = None
    tokens: int | None = None
    answers: int | None = None  # prompts after which the model generates

    @property
    def key(self) -> str:
        """The name of its folder under `results/`."""
        return slug(self.model, self.setting, self.task)


@dataclass(frozen=True)
class Job:
    """One lm_eval process and its retries: units of one model and setting."""

    id: str
    model: str
    setting: str
    units: tuple[Unit, ...]
    config: dict[str, Any]  # for lm_eval --config; tasks, batch size and output are added for each attempt
    batch_size: int | str
    resources: Resources
    time_limit: float
    commit: str | None = None  # of the model; None if unknown

    @property
    def tokens(self) -> int | None:
        known = [unit.tokens for unit in self.units]
        return None if None in known else sum(tokens or 0 for tokens in known)

    @property
    def prompts(self) -> int | None:
        known = [unit.prompts for unit in self.units]
        return None if None in known else sum(prompts or 0 for prompts in known)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        """The inverse of `dataclasses.asdict`, for jobs in .plan.json."""
        return cls(
            **{
                **values,
                "units": tuple(Unit(**unit) for unit in values["units"]),
                "resources": Resources(**values["resources"]),
            }
        )

    def only(self, keys: set[str]) -> Job:
        """The same job with the units named by `keys`."""
        return replace(self, units=tuple(unit for unit in self.units if unit.key in keys))


def make_plan(sweep: Sweep, catalogue: Catalogue, folder: Path) -> list[Job]:
    """All jobs of a sweep, in the order of the file, finished or not. `folder`/.models is where random models will be."""
    versions = installed_versions()
    jobs = []
    for setting in sweep.settings:
        tasks = catalogue.expand(setting.tasks, Path(sweep.source).name)
        for model in sweep.models:
            if setting.models is None or model.name in setting.models:
                job = _job(sweep, model, sweep.resolved(setting, model), tasks, catalogue, versions, folder)
                jobs += [job] if sweep.job == "model" else _one_each(job)
    return jobs


def installed_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"jrt-eval": __version__}
    for name in ("lm_eval", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def model_identity(args: dict[str, Any]) -> Any:
    """Configs, sizes and times of the files of a local checkpoint, to notice when they change; None if it is not local."""
    path = _checkpoint(args)
    if path is None or not os.path.isdir(path):
        return None
    return [
        (file.name, file.read_text(errors="replace"))
        if file.suffix == ".json" and file.stat().st_size < 1 << 20
        else (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(path.iterdir())
        if file.is_file()
    ]


def model_commit(args: dict[str, Any]) -> str | None:
    """The commit of a hub checkpoint in the local cache, without asking the hub; None if unknown."""
    name = args.get("pretrained") or args.get("checkpoint_name")
    if not isinstance(name, str) or os.path.exists(name):
        return None
    revision = str(args.get("revision", "main"))
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    ref = Path(HF_HUB_CACHE) / ("models--" + name.replace("/", "--")) / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


def slug(*parts: str) -> str:
    """A readable file name of at most 120 characters; two different lists of parts never share one."""
    text = "__".join(re.sub(r"[^\w.-]+", "-", part, flags=re.ASCII) for part in parts if part).lstrip(
        "."
    )  # readers skip hidden folders
    if len(text) <= _LONGEST_NAME and all(
        re.fullmatch(r"(?!\.)[\w.-]*", part, re.ASCII) and "__" not in part for part in parts
    ):
        return text
    return f"{text[: _LONGEST_NAME - 7]}-{_hash(parts)[:6]}"


def _job(
    sweep: Sweep,
    model: Model,
    setting: Setting,
    tasks: list[str],
    catalogue: Catalogue,
    versions: dict[str, str],
    folder: Path,
) -> Job:
    made = {"pretrained": str(folder / ".models" / slug(model.name))} if model.random else {}
    device = setting.device or ("cuda:0" if setting.resources.gpus else "cpu")
    config: dict[str, Any] = {
        "model": model.type,
        "model_args": {**made, **model.args, **setting.model_args},
        "metadata": setting.metadata,
        "num_fewshot": setting.num_fewshot,
        "limit": setting.limit,
        "gen_kwargs": setting.gen_kwargs,
        "device": device,
        "seed": None if setting.seed is None else [setting.seed] * 4,
        "apply_chat_template": setting.apply_chat_template,
        "include_path": sweep.include_path[0] if len(sweep.include_path) == 1 else list(sweep.include_path) or None,
    }
    base = {
        "config": {key: value for key, value in config.items() if key != "include_path"},
        "versions": versions,
        "checkpoint": model.random or model_identity(config["model_args"]),
        "data": _data_identity(setting.metadata),
    }
    if setting.max_batch_size:
        config["max_batch_size"] = setting.max_batch_size
    units = []
    for task in tasks:
        size = estimate.task_size(task, setting.metadata, setting.num_fewshot, setting.limit)
        fingerprint = _hash({**base, "task": task, "digest": catalogue.digest(task)})
        units.append(Unit(model.name, task, setting.name, fingerprint, size.prompts, size.tokens, size.answers))
    return Job(
        id=f"{slug(model.name, setting.name)}-{_hash(base)[:8]}",
        model=model.name,
        setting=setting.name,
        units=tuple(units),
        config={key: value for key, value in config.items() if value is not None and value != {}},
        batch_size=setting.batch_size,
        resources=setting.resources,
        time_limit=setting.time_limit,
        commit=model_commit(config["model_args"]),
    )


def _one_each(job: Job) -> list[Job]:
    return [replace(job, id=f"{slug(job.model, job.setting, u.task)}-{job.id[-8:]}", units=(u,)) for u in job.units]


def _checkpoint(args: dict[str, Any]) -> Path | None:
    name = args.get("pretrained") or args.get("checkpoint_name")
    return Path(name) if isinstance(name, str) else None


def _data_identity(metadata: dict[str, Any]) -> Any:
    """Digests of local documents, since the files at a path may change."""
    root = metadata.get("data_dir") or os.environ.get("JRT_EVAL_DATA_DIR")
    if not root or not os.path.isdir(str(root)):
        return root
    return [
        (str(path.relative_to(str(root))), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(Path(str(root)).glob("*/validation.*"))
    ]


def _hash(value: Any) -> str:
    if not isinstance(value, (dict, list, tuple)):
        value = asdict(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
