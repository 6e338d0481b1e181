"""Training in stages: one configuration file, several runs, each starting from the weights of the one before."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError
from jrt_eval.settings import apply_overrides, build, read_settings, shown
from jrt_eval.training.config import Config

_WHAT = "training configuration"


def load_stages(path: Path, overrides: Iterable[str] = ()) -> list[Config]:
    """The runs of a configuration file, checked.

    A file with the key `stages`, a list of mappings, describes one run for each: the file's other keys, updated by the
    keys of the stage; nested mappings are merged. Each stage starts from the weights of the one before. The last stage
    writes to `output`, the earlier ones to `output`/stage-1, stage-2, ... Overrides apply to every stage.
    """
    if not path.is_file():
        raise UserError(f"no training configuration at {path}; shipped ones are in configs/paper and configs/mini")
    content = read_settings(path, what=_WHAT)
    stages = content.pop("stages", [{}])
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise UserError(f"{path}: stages: expected a list of keys and values, got {shown(stages)}")
    configs = []
    for number, stage in enumerate(stages, 1):
        here = f"{path}: stage {number}" if len(stages) > 1 else str(path)
        if number > 1 and "init_from" in stage:
            raise UserError(f"{here}: init_from: a stage starts from the weights of the one before")
        merged = _merged(content, stage)
        apply_overrides(merged, overrides)
        config = build(Config, merged, here)
        if number < len(stages):
            config = replace(config, output=f"{config.output}/stage-{number}")
        try:
            config.check()
        except UserError as error:
            raise UserError(f"{here}: {error}") from None
        configs.append(config)
    return configs


def train_stages(configs: list[Config], *, progress: bool = True) -> Path:
    """Train all stages, resuming where an earlier call stopped. Returns the folder of the last checkpoint."""
    from jrt_eval.training.trainer import train

    last: Path | None = None
    for config in configs:
        last = train(config if last is None else replace(config, init_from=str(last)), progress=progress)
    assert last is not None
    return last


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` updated by `changes`; where both have a mapping, it is merged."""
    merged = deepcopy(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else deepcopy(value)
    return merged
