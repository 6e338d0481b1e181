"""Sweep files: a YAML file, checked key by key, becomes a `Sweep`. Imports neither torch nor lm_eval."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError, nearest
from jrt_eval.settings import build, read_settings, shown
from jrt_eval.sweep.estimate import Speed

FILES = Path(__file__).parent / "files"
TABLES = ("table1", "table2", "table4")  # the paper's tables that jrt_eval.sweep.tables can print
RANDOM = ("gpt2", "mamba", "jrt")  # the models that jrt_eval.sweep.random_models can make
_LONGEST = 10 * 365 * 86400  # seconds of a time limit


@dataclass(frozen=True)
class Resources:
    """What a job needs. `gpus` may be a fraction below 1, for several jobs on one GPU; `memory` in bytes, 0 if undeclared."""

    gpus: float = 1
    cpus: float = 1
    memory: int = 0


@dataclass(frozen=True)
class Model:
    """A row of the table: an lm-eval model type and its arguments."""

    name: str
    type: str
    args: dict[str, Any] = field(default_factory=dict)
    params: float | None = None  # number of parameters, for planning GPU time
    random: str | None = None  # family of a small random model that is made for the sweep, to try it out
    speed: Speed = field(default_factory=Speed)  # for the estimate of GPU hours
    overrides: dict[str, Any] = field(default_factory=dict)  # fields of `Setting` that this model changes


@dataclass(frozen=True)
class Setting:
    """The arguments of one lm_eval process apart from the model: the top level of the file, changed by a setting and a model."""

    name: str
    tasks: tuple[str, ...]
    models: tuple[str, ...] | None = None  # None: all
    metadata: dict[str, Any] = field(default_factory=dict)
    num_fewshot: int | None = None
    limit: float | None = None
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    batch_size: int | str = "auto"
    max_batch_size: int | None = None
    device: str | None = None  # None: cuda:0 with a GPU, else cpu
    seed: int | None = None  # None: lm-eval's seeds
    apply_chat_template: bool | str = False
    resources: Resources = Resources()
    time_limit: float = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    name: str
    models: tuple[Model, ...]
    settings: tuple[Setting, ...]
    description: str = ""
    expected: dict[str, Any] = field(default_factory=dict)
    include_path: tuple[str, ...] = ()
    job: str = "model"  # one lm_eval process per "model" (with all its tasks) or per "task"
    table: str | None = None  # the published table to print with the results
    source: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    def resolved(self, setting: Setting, model: Model) -> Setting:
        """`setting` with the changes of `model`. Resources merge key by key; model_args are those of the setting."""
        if not model.overrides:
            return setting
        return _setting({**model.overrides}, setting, f"model {model.name!r}")


# Keys that the top level and a setting may have, and most of them a model.
_SETTING_KEYS = [f.name for f in fields(Setting) if f.name not in ("name", "models")] + ["context_length"]
_MODEL_OVERRIDES = [key for key in _SETTING_KEYS if key not in ("tasks", "model_args")]
_TOP_KEYS = [
    *("name", "description", "expected", "models", "settings", "include_path", "job", "table"),
    *_SETTING_KEYS,
]
_MODEL_KEYS = ["name", "type", "args", "params", "speed", "random", *_MODEL_OVERRIDES]


def shipped() -> dict[str, Path]:
    """Short name -> path of the bundled sweep files."""
    return {path.stem: path for path in sorted(FILES.glob("*.yaml"))}


def find(name: str) -> Path:
    """A path to a sweep file, or the short name of a bundled one."""
    path = Path(name)
    if os.path.isfile(path):
        return path
    known = shipped()
    short = name.removesuffix(".yaml")
    if short in known and "/" not in name:
        return known[short]
    siblings = [str(p) for p in path.parent.glob("*.yaml")] if os.path.isdir(path.parent) else []
    raise UserError(
        f"no sweep file {shown(name)}{nearest(name, [*known, *siblings])}; "
        f"give a path, or the name of a bundled one: {', '.join(known)}"
    )


def load(name: str, overrides: Iterable[str] = ()) -> Sweep:
    """Read and check a sweep file.

    overrides: the values of `--set`, `key=value` or `a.b=value`, in YAML.
    """
    path = find(name)
    return parse(read_settings(path, overrides, "sweep file"), path)


def parse(raw: dict[str, Any], source: Path) -> Sweep:
    """The checked contents of a sweep file. Relative paths in it start at the folder of `source`."""
    where = source.name
    _mapping(raw, where)
    _only(raw, _TOP_KEYS, where)
    models = _models(raw, where)
    settings = _settings(raw, [model.name for model in models], where)
    if raw.get("table") not in (None, *TABLES):
        raise UserError(f"'table' in {where} must be one of {', '.join(TABLES)}, not {shown(raw['table'])}")
    job = raw.get("job", "model")
    if job not in ("model", "task"):
        raise UserError(f"'job' in {where} is {shown(job)}; it must be 'model' (one process for all tasks) or 'task'")
    name = raw.get("name", source.stem)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        raise UserError(
            f"'name' in {where} must be at most 100 letters, digits, '_', '-' and '.', and begin with one of the first three, "
            f"not {shown(name)}"
        )
    beside = source.resolve().parent
    folders = _list(raw.get("include_path"), f"'include_path' in {where}")
    return Sweep(
        name=name,
        models=tuple(replace(model, args=_resolved_paths(model.args, beside)) for model in models),
        settings=tuple(replace(each, metadata=_resolved_paths(each.metadata, beside)) for each in settings),
        description=" ".join(str(raw.get("description", "")).split()),
        expected=_mapping(raw.get("expected") or {}, f"'expected' in {where}"),
        include_path=tuple(str((beside / _text(path, f"'include_path' in {where}")).resolve()) for path in folders),
        job=job,
        table=raw.get("table"),
        source=str(source),
        raw=raw,
    )


def _models(raw: dict[str, Any], where: str) -> list[Model]:
    models = [_model(entry, where) for entry in _list(raw.get("models"), f"'models' in {where}")]
    if not models:
        raise UserError(f"{where} names no models: add 'models:' with 'name', 'type' and 'args' each")
    _unique([model.name for model in models], "model", where)
    return models


def _settings(raw: dict[str, Any], models: list[str], where: str) -> list[Setting]:
    base = _setting({k: v for k, v in raw.items() if k in _SETTING_KEYS}, Setting(name="", tasks=()), where)
    settings = []
    for number, entry in enumerate(_list(raw.get("settings", [{}]), f"'settings' in {where}"), 1):
        here = f"setting {number} of {where}"
        _only(_mapping(entry, here), ["name", "models", *_SETTING_KEYS], here)
        if "name" not in entry and "context_length" in entry:
            length = entry["context_length"]
            entry = {"name": "whole" if length is None else str(length), **entry}
        setting = _setting(entry, base, here)
        if not setting.tasks:
            raise UserError(f"{here} names no tasks: add 'tasks:' there or at the top of the file")
        for model in setting.models or ():
            if model not in models:
                raise UserError(f"{here}: no model {shown(model)} under 'models'{nearest(model, models)}")
        settings.append(setting)
    # Two settings may share a name where they are the same column for different models (Table 2's short prompts).
    for model in models:
        _unique([s.name for s in settings if s.models is None or model in s.models], f"setting of {model}", where)
    return settings


def parse_memory(value: object, where: str) -> int:
    """Bytes of `24GB`, `512MiB` or a number of bytes."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?)b?|b)?\s*", str(value).lower(), re.ASCII)
    if not found:
        raise UserError(f"'memory' in {where} is {shown(value)}; write it as '24GB' or '512MiB'")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(unit) if unit else 0))


def parse_duration(value: object, where: str) -> float:
    """Seconds of `12h`, `1h30m`, `90s` or a number of seconds."""
    text = str(value).strip().lower()
    number = r"(\d{1,12}(?:\.\d{1,9})?)"
    if re.fullmatch(number, text, re.ASCII):
        seconds = float(text)
    elif re.fullmatch(rf"(?:{number}\s*[dhms]\s*)+", text, re.ASCII):
        parts = re.findall(rf"{number}\s*([dhms])", text)
        seconds = sum(float(n) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit] for n, unit in parts)
    else:
        raise UserError(f"'time_limit' in {where} is {shown(value)}; write it as '12h', '1h30m' or '90s'")
    if not 0 < seconds <= _LONGEST:
        raise UserError(f"'time_limit' in {where} must be more than 0 and at most ten years, not {shown(value)}")
    return seconds


def _setting(raw: Mapping[str, Any], base: Setting, where: str) -> Setting:
    """`base` with the keys of `raw`; mappings merge, everything else is replaced."""
    values: dict[str, Any] = {f.name: getattr(base, f.name) for f in fields(Setting)}
    for key, value in raw.items():
        here = f"'{key}' in {where}"
        if key == "context_length":
            if value is not None:
                _whole_number(value, here, 1, "a number of tokens, or null for whole documents")
            values["metadata"] = {**values["metadata"], "context_length": value}
        elif key in ("metadata", "gen_kwargs", "model_args"):
            values[key] = {**values[key], **_mapping(value or {}, here)}
        elif key == "resources":
            values[key] = _resources(_mapping(value or {}, here), base.resources, where)
        elif key == "time_limit":
            values[key] = parse_duration(value, where)
        else:
            values[key] = _checked(key, value, here)
    values["name"] = str(values["name"])
    return Setting(**values)


def _checked(key: str, value: Any, here: str) -> Any:
    """The value of a key of a setting that replaces the former value."""
    if key in ("tasks", "models"):
        return tuple(_strings(value, here))
    if key == "batch_size":
        if not re.fullmatch(r"auto(:\d{1,9})?|[1-9]\d{0,8}", str(value), re.ASCII):
            raise UserError(f"{here} must be a number, 'auto' or 'auto:N', not {shown(value)}")
        return value if str(value).startswith("auto") else int(value)
    if value is None:
        return None
    if key in ("num_fewshot", "max_batch_size", "seed"):
        return _whole_number(value, here, 0, "a whole number of at least 0")
    if key == "limit" and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
        raise UserError(f"{here} must be a number of documents, or a share below 1, not {shown(value)}")
    if key == "apply_chat_template" and not isinstance(value, (bool, str)):
        raise UserError(f"{here} must be true, false or the name of a template, not {shown(value)}")
    if key == "device":
        return _text(value, here)
    if key == "name" and not isinstance(value, (str, int, float)):
        raise UserError(f"{here} must be text, not {shown(value)}")
    return value


def _whole_number(value: Any, here: str, least: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
        raise UserError(f"{here} must be {what}, not {shown(value)}")
    return value


def _model(entry: Any, where: str) -> Model:
    _mapping(entry, f"a model in {where}")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"a model in {where} has no 'name': {shown(entry)}")
    here = f"model {shown(name)} in {where}"
    _only(entry, _MODEL_KEYS, here)
    args = _mapping(entry.get("args") or {}, f"'args' of {here}")
    kind = entry.get("type", "jrt")
    if not isinstance(kind, str):
        raise UserError(f"'type' of {here} must be an lm-eval model type, for example jrt or hf, not {shown(kind)}")
    params = entry.get("params")
    overrides = {key: entry[key] for key in _MODEL_OVERRIDES if key in entry}
    _setting(overrides, Setting(name="", tasks=()), here)  # only to check them now
    if params is not None and (
        isinstance(params, bool) or not isinstance(params, (int, float)) or not isfinite(params)
    ):
        raise UserError(f"'params' of {here} must be a number, for example 1.3e9, not {shown(params)}")
    random = entry.get("random")
    if random is not None and random not in RANDOM:
        raise UserError(f"'random' of {here} must be one of {', '.join(RANDOM)}, not {shown(random)}")
    if random is None and not args.get("pretrained") and not args.get("checkpoint_name") and kind != "dummy":
        raise UserError(f"{here} has no checkpoint: add 'args: {{pretrained: ...}}'")
    speed = build(Speed, entry.get("speed", {}), f"'speed' of {here}")
    if min(speed.prefill_tflops, speed.step_ms) <= 0:
        raise UserError(f"'speed' of {here} must have numbers above 0")
    return Model(name, kind, dict(args), params, random, speed, overrides)


def _resources(raw: Mapping[str, Any], base: Resources, where: str) -> Resources:
    _only(raw, ["gpus", "cpus", "memory"], f"'resources' in {where}")
    gpus, cpus = raw.get("gpus", base.gpus), raw.get("cpus", base.cpus)
    for key, value in (("gpus", gpus), ("cpus", cpus)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise UserError(f"'{key}' in {where} must be a number of at least 0, not {shown(value)}")
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"'gpus' in {where} is {gpus}: a fraction below 1, or a whole number")
    return Resources(gpus, cpus, parse_memory(raw.get("memory", base.memory), where))


def _resolved_paths(values: dict[str, Any], beside: Path) -> dict[str, Any]:
    """`values` with the texts that begin with `./` or `../` as paths from the folder of the sweep file."""
    return {
        key: str((beside / value).resolve()) if isinstance(value, str) and value.startswith(("./", "../")) else value
        for key, value in values.items()
    }


def _only(raw: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in raw:
        if key not in known:
            raise UserError(
                f"unknown key {shown(key)} in {where}{nearest(str(key), known)}; known: {', '.join(sorted(known))}"
            )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """`value`, if it is a mapping whose keys are text, at every depth, and whose texts have no control characters."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be keys and values, not {shown(value)}")
    for key, element in value.items():
        _text(key, f"a key of {where}")
        for part in element if isinstance(element, list) else [element]:
            if isinstance(part, dict):
                _mapping(part, f"'{key}' in {where}")
            elif isinstance(part, str) and key not in ("description", "expected"):
                _text(part, f"'{key}' in {where}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or any(ord(character) < 32 and character not in "\n\t" for character in value):
        raise UserError(f"{where} must be text without control characters, not {shown(value)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list, not {shown(value)}")
    return value


def _strings(value: Any, where: str) -> list[str]:
    items = [_text(item, where) for item in _list(value, where)]
    return [part.strip() for item in items for part in item.split(",") if part.strip()]


def _unique(names: list[str], what: str, where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where} has {what} {shown(name)} twice: give each its own 'name'")
