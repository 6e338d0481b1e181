"""A sweep file: read, checked key by key, defaults filled in. Imports neither torch nor lm_eval."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from jrt_eval.errors import UserError, nearest

FILES = Path(__file__).parent / "files"
TABLES = ("table1", "table2", "table4")  # the paper's forms that jrt_eval.sweep.tables knows
RANDOM = ("gpt2", "mamba", "jrt")  # what jrt_eval.sweep.random_models can make


@dataclass(frozen=True)
class Resources:
    """What a job is given: `gpus` may be a fraction below 1 (several jobs on one); `memory` in bytes, 0: undeclared."""

    gpus: float = 1
    cpus: float = 1
    memory: int = 0


@dataclass(frozen=True)
class Model:
    """A row of the table: an lm-eval model type and its arguments."""

    name: str
    type: str
    args: dict[str, Any] = field(default_factory=dict)
    params: float | None = None  # parameters, for whoever plans GPU time
    random: str | None = None  # a small random model of this family is made in the folder, for trying a sweep out
    overrides: dict[str, Any] = field(default_factory=dict)  # keys of `Setting` that this model changes


@dataclass(frozen=True)
class Setting:
    """All that one lm_eval process shares beside the model: the file's top level, a setting and a model."""

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
    table: str | None = None  # the published table to print beside the results
    source: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    def resolved(self, setting: Setting, model: Model) -> Setting:
        """`setting` with what `model` changes of it; resources merge key by key, model_args stay the setting's."""
        if not model.overrides:
            return setting
        return _setting({**model.overrides}, setting, f"model {model.name!r}")


# Keys that may stand at the top level, in a setting and, but for the first two, in a model.
_SETTING_KEYS = [f.name for f in fields(Setting) if f.name not in ("name", "models")] + ["context_length"]
_MODEL_OVERRIDES = [key for key in _SETTING_KEYS if key not in ("tasks", "model_args")]
_TOP_KEYS = [
    *("name", "description", "expected", "models", "settings", "include_path", "job", "table"),
    *_SETTING_KEYS,
]
_MODEL_KEYS = ["name", "type", "args", "params", "random", *_MODEL_OVERRIDES]


def shipped() -> dict[str, Path]:
    """Short name -> path of the sweep files that come with the package."""
    return {path.stem: path for path in sorted(FILES.glob("*.yaml"))}


def find(name: str) -> Path:
    """A path to a sweep file, or the short name of a shipped one."""
    path = Path(name)
    if path.is_file():
        return path
    known = shipped()
    short = name.removesuffix(".yaml")
    if short in known and "/" not in name:
        return known[short]
    siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    raise UserError(
        f"no sweep file {name!r}{nearest(name, [*known, *siblings])}; "
        f"give a path, or one of those that come along: {', '.join(known)}"
    )


def load(name: str, overrides: Iterable[str] = ()) -> Sweep:
    """Read and check a sweep file; `overrides` are what `--set` gives: `key=value`, `a.b=value`, values in YAML."""
    path = find(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path} is no YAML: {line}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold keys and values ('models:', 'tasks:', ...), not a {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return parse(raw, path)


def parse(raw: dict[str, Any], source: Path) -> Sweep:
    """The checked form of a sweep file's contents. Relative paths in it are resolved beside `source`."""
    where = source.name
    _only(raw, _TOP_KEYS, where)
    base = _setting({k: v for k, v in raw.items() if k in _SETTING_KEYS}, Setting(name="", tasks=()), where)

    models = [_model(entry, where) for entry in _list(raw.get("models"), f"'models' in {where}")]
    if not models:
        raise UserError(f"{where} names no models: add 'models:' with 'name', 'type' and 'args' each")
    names = [model.name for model in models]
    _unique(names, "model", where)

    settings = []
    for number, entry in enumerate(_list(raw.get("settings", [{}]), f"'settings' in {where}"), 1):
        here = f"setting {number} of {where}"
        _mapping(entry, here)
        _only(entry, ["name", "models", *_SETTING_KEYS], here)
        if "name" not in entry and "context_length" in entry:
            length = entry["context_length"]
            entry = {"name": "whole" if length is None else str(length), **entry}
        settings.append(_setting(entry, base, here))
        if not settings[-1].tasks:
            raise UserError(f"{here} names no tasks: add 'tasks:' there or at the top of the file")
        for model in settings[-1].models or ():
            if model not in names:
                raise UserError(f"{here}: no model {model!r} under 'models'{nearest(model, names)}")
    # Two settings may share a name where they are the same thing for different models (Table 2's short prompts).
    for model in names:
        _unique([s.name for s in settings if s.models is None or model in s.models], f"setting of {model}", where)

    if raw.get("table") not in (None, *TABLES):
        raise UserError(f"'table' in {where} must be one of {', '.join(TABLES)}, not {raw['table']!r}")
    job = raw.get("job", "model")
    if job not in ("model", "task"):
        raise UserError(f"'job' in {where} is {job!r}; it must be 'model' (one process for all tasks) or 'task'")
    name = raw.get("name", source.stem)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"'name' in {where} must be letters, digits, '_', '-' and '.', not {name!r}")
    beside = source.resolve().parent
    return Sweep(
        name=name,
        models=tuple(_resolve_paths(model, beside) for model in models),
        settings=tuple(_resolve_metadata(setting, beside) for setting in settings),
        description=" ".join(str(raw.get("description", "")).split()),
        expected=dict(raw.get("expected") or {}),
        include_path=tuple(str((beside / path).resolve()) for path in _list(raw.get("include_path"), "'include_path'")),
        job=job,
        table=raw.get("table"),
        source=str(source),
        raw=raw,
    )


def parse_memory(value: object, where: str) -> int:
    """Bytes of `24GB`, `512MiB` or a number of bytes."""
    found = re.fullmatch(r"\s*([\d.]+)\s*(?:([kmgt])(i?)b?|b)?\s*", str(value).lower())
    if not found:
        raise UserError(f"'memory' in {where} is {value!r}; write it as '24GB' or '512MiB'")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(unit) if unit else 0))


def parse_duration(value: object, where: str) -> float:
    """Seconds of `12h`, `1h30m`, `90s` or a number of seconds."""
    text = str(value).strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
        if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*[dhms]\s*", "", text):
            raise UserError(f"'time_limit' in {where} is {value!r}; write it as '12h', '1h30m' or '90s'")
        seconds = sum(float(n) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit] for n, unit in parts)
    if seconds <= 0:
        raise UserError(f"'time_limit' in {where} must be more than nothing")
    return seconds


def _setting(raw: Mapping[str, Any], base: Setting, where: str) -> Setting:
    """`base` with the keys of `raw`; mappings merge, everything else is replaced."""
    values: dict[str, Any] = {f.name: getattr(base, f.name) for f in fields(Setting)}
    for key, value in raw.items():
        if key == "tasks":
            values[key] = tuple(_strings(value, f"'tasks' in {where}"))
        elif key == "models":
            values[key] = tuple(_strings(value, f"'models' in {where}"))
        elif key == "context_length":
            if value is not None and (not _is_int(value) or value < 1):
                raise UserError(
                    f"'context_length' in {where} must be a number of tokens, or null for whole documents, "
                    f"not {value!r}"
                )
            values["metadata"] = {**values["metadata"], "context_length": value}
        elif key in ("metadata", "gen_kwargs", "model_args"):
            values[key] = {**values[key], **_mapping(value or {}, f"'{key}' in {where}")}
        elif key == "resources":
            values[key] = _resources(_mapping(value or {}, f"'resources' in {where}"), base.resources, where)
        elif key == "time_limit":
            values[key] = parse_duration(value, where)
        elif key == "batch_size":
            if not (_is_int(value) and value > 0) and not re.fullmatch(r"auto(:\d+)?|[1-9]\d*", str(value)):
                raise UserError(f"'batch_size' in {where} must be a number, 'auto' or 'auto:N', not {value!r}")
            values[key] = value if str(value).startswith("auto") else int(value)
        elif key in ("num_fewshot", "max_batch_size", "seed"):
            if value is not None and (not _is_int(value) or value < 0):
                raise UserError(f"'{key}' in {where} must be a whole number, not {value!r}")
            values[key] = value
        elif key == "limit":
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
                raise UserError(f"'limit' in {where} must be a number of documents, or a share below 1, not {value!r}")
            values[key] = value
        else:
            values[key] = value
    values["name"] = str(values["name"])
    return Setting(**values)


def _model(entry: Any, where: str) -> Model:
    _mapping(entry, f"a model in {where}")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"a model in {where} has no 'name': {entry!r}")
    here = f"model {name!r} in {where}"
    _only(entry, _MODEL_KEYS, here)
    args = _mapping(entry.get("args") or {}, f"'args' of {here}")
    kind = entry.get("type", "jrt")
    if not isinstance(kind, str):
        raise UserError(f"'type' of {here} must be an lm-eval model type, e.g. jrt or hf, not {kind!r}")
    params = entry.get("params")
    overrides = {key: entry[key] for key in _MODEL_OVERRIDES if key in entry}
    _setting(overrides, Setting(name="", tasks=()), here)  # refuse what is wrong in it now
    try:
        number = None if params is None else float(params)
    except (TypeError, ValueError):
        raise UserError(f"'params' of {here} must be a number, e.g. 1.3e9, not {params!r}") from None
    random = entry.get("random")
    if random is not None and random not in RANDOM:
        raise UserError(f"'random' of {here} must be one of {', '.join(RANDOM)}, not {random!r}")
    if random is None and not args.get("pretrained") and not args.get("checkpoint_name") and kind != "dummy":
        raise UserError(f"{here} has no checkpoint: add 'args: {{pretrained: ...}}'")
    return Model(name, kind, dict(args), number, random, overrides)


def _resources(raw: Mapping[str, Any], base: Resources, where: str) -> Resources:
    _only(raw, ["gpus", "cpus", "memory"], f"'resources' in {where}")
    gpus, cpus = raw.get("gpus", base.gpus), raw.get("cpus", base.cpus)
    for key, value in (("gpus", gpus), ("cpus", cpus)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise UserError(f"'{key}' in {where} must be a number, not {value!r}")
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"'gpus' in {where} is {gpus}: a fraction below 1, or a whole number")
    return Resources(gpus, cpus, parse_memory(raw.get("memory", base.memory), where))


def _resolve_paths(model: Model, beside: Path) -> Model:
    """A model folder written `./x` or `../x` stands beside the sweep file; anything else is lm-eval's to resolve."""
    args = {
        key: str((beside / value).resolve()) if isinstance(value, str) and value.startswith(("./", "../")) else value
        for key, value in model.args.items()
    }
    return replace(model, args=args)


def _resolve_metadata(setting: Setting, beside: Path) -> Setting:
    metadata = {
        key: str((beside / value).resolve()) if isinstance(value, str) and value.startswith(("./", "../")) else value
        for key, value in setting.metadata.items()
    }
    return replace(setting, metadata=metadata)


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set takes key=value, not {text!r}")
    *parents, last = key.strip().split(".")
    target: Any = raw
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise UserError(f"--set {text!r}: {parent!r} holds no keys")
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {text!r}: {value!r} is no YAML value") from None


def _only(raw: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in raw:
        if key not in known:
            raise UserError(
                f"unknown key {key!r} in {where}{nearest(str(key), known)}; known: {', '.join(sorted(known))}"
            )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be keys and values, not {value!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list, not {value!r}")
    return value


def _strings(value: Any, where: str) -> list[str]:
    items = _list(value, where)
    for item in items:
        if not isinstance(item, str):
            raise UserError(f"{where} must be names, not {item!r}")
    return [part.strip() for item in items for part in item.split(",") if part.strip()]


def _unique(names: list[str], what: str, where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where} has {what} {name!r} twice: give each a 'name' of its own")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
