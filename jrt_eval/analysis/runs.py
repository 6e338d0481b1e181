"""Reading lm-eval's result files. One `results_*.json` is one run; it gives the rows of `scores`.

lm-eval writes `OUTPUT/<model>/results_<date>.json` and `samples_<task>_<date>.jsonl` in the same folder, or
`<stem>_<date>.json` if `--output_path` named a file. Folder and date tie samples to their run.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any

from jrt_eval.analysis import lenient_json
from jrt_eval.analysis.metrics import is_higher_better
from jrt_eval.analysis.schema import DEPTH, LENGTH

DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
RESULT_NAME = re.compile(rf"^(?:.*_)?({DATE})\.json$", re.DOTALL)
SAMPLE_NAME = re.compile(rf"^samples_(.+)_({DATE})\.jsonl$", re.DOTALL)

VARIANTS = ("once", "twice", "thrice", "question_first", "padded", "verbose")
"""How a document can be read; `jrt_fda_twice` is the variant `twice` of the data set `fda`."""

# Model arguments that do not change what the model is. Any other argument tells two models of one name apart.
_NEUTRAL_ARGS = {
    "pretrained",
    "checkpoint_name",
    "model",
    "path",
    "engine",
    "device",
    "batch_size",
    "max_batch_size",
    "parallelize",
    "device_map",
    "dtype",
    "revision",
    "trust_remote_code",
    "cache_dir",
    "num_concurrent",
    "tensor_parallel_size",
    "data_parallel_size",
    "gpu_memory_utilization",
    "context_length",
    "answer_length",
    "data_dir",
}
_FAMILIES = (
    "jrt",
    "based",
    "mamba2",
    "mamba",
    "gla",
    "rwkv",
    "retnet",
    "hgrn",
    "deltanet",
    "pythia",
    "gpt2",
    "llama",
)
_NO_GENERATION = {"multiple_choice", "loglikelihood", "loglikelihood_rolling"}
_COUNTS = {"sample_len", "samples"}  # written among the metrics


class NotAResult(ValueError):
    """The file is no usable lm-eval result; the message is the reason, in a few words."""


def split_task(task: str, metadata: dict[str, Any] | None = None) -> tuple[str, str | None]:
    """`(dataset, variant)` of a task: `jrt_fda_twice` -> `("fda", "twice")`.

    The variant is what the task's metadata records (`variant`, in `document` for our tasks); else it is read from the
    name: `..._twice`, and `once` for any other name that begins with `jrt_` or `based_`. `base_task` in the metadata
    names the data set of a derived task.
    """
    metadata = metadata or {}
    places = (_dict(metadata.get("document")), _dict(metadata.get("jrt")), metadata)
    variant = next((place["variant"] for place in places if place.get("variant") in VARIANTS), None)
    base = next((place["base_task"] for place in places if isinstance(place.get("base_task"), str)), None)
    ours = re.match(r"^(?:jrt|based)_(?=.)", base or task)
    name = (base or task)[ours.end() :] if ours else base or task
    for known in VARIANTS[1:]:
        if base is None and known in {variant, "twice"} and name.endswith(f"_{known}") and name != f"_{known}":
            return name.removesuffix(f"_{known}"), variant or known
    return name, variant or ("once" if ours else None)


def read_run(raw: bytes, file: str) -> dict[str, Any]:
    """One result file as `{"run_id", "args", "recorded", "rows", "unread"}`.

    raw: the file's bytes; file: its path relative to the collected folder. args: model arguments that tell models
    apart. recorded: what the run says of its model. rows: rows of scores without `model`. unread: `task: metric` of
    values that are not numbers. Raises NotAResult.
    """
    data = parse_result(raw)
    try:
        return _read(data, hashlib.sha256(raw).hexdigest()[:12], file)
    except RecursionError:
        raise NotAResult("not JSON (it is nested too deeply)") from None


def parse_result(raw: bytes) -> dict[str, Any]:
    """The JSON of a result file. Raises NotAResult."""
    try:
        data = lenient_json.loads(raw)
    except ValueError as error:
        cut = not raw.rstrip().endswith(b"}")
        raise NotAResult("half-written: the JSON ends early" if cut else f"not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise NotAResult("foreign: no lm-eval result (no 'results' in it)")
    if not isinstance(data.get("config"), dict) and "lm_eval_version" not in data and "versions" not in data:
        raise NotAResult("foreign: no lm-eval result (no 'config' in it)")
    return data


def _read(data: dict[str, Any], run_id: str, file: str) -> dict[str, Any]:
    config = _dict(data.get("config"))
    args = parse_args(config.get("model_args"))
    run = {"run_id": run_id, **_run_columns(data, config, args, file)}
    rows: list[dict[str, Any]] = []
    unread: list[str] = []
    results = {**_dict(data.get("groups")), **data["results"]}
    for task, values in results.items():
        if isinstance(values, dict):
            shared = {**run, **_task_columns(data, config, str(task), values)}
            rows += _metric_rows(data, shared, values)
            unread += [f"{task}: {metric}" for metric in _unread(values)]
    if not rows:
        raise NotAResult("no task in it has a metric" if not unread else "no metric in it is a number")
    shared_version = next((row["jrt_eval_version"] for row in rows if row["jrt_eval_version"]), None)
    for row in rows:
        row["jrt_eval_version"] = row["jrt_eval_version"] or shared_version
    return {
        "run_id": run_id,
        "args": {k: str(v) for k, v in args.items() if k not in _NEUTRAL_ARGS},
        "recorded": {k: str(run[k]) for k in ("model_source", "revision", "parameters", "dtype") if run[k] is not None},
        "rows": rows,
        "unread": unread,
    }


def parse_args(args: Any) -> dict[str, Any]:
    """`--model_args` as a dictionary; lm-eval writes the string, or a dictionary in newer versions."""
    if isinstance(args, dict):
        return args
    parts = [part.partition("=") for part in str(args or "").split(",") if "=" in part]
    return {key.strip(): value.strip() for key, _, value in parts}


def _run_columns(data: dict[str, Any], config: dict[str, Any], args: dict[str, Any], file: str) -> dict[str, Any]:
    source = data.get("model_source") or config.get("model")
    name = str(data.get("model_name") or _name_from(args) or source or PurePosixPath(file).parent.name)
    return {
        "model_name": name,
        "model_source": _text(source),
        "family": _family(config, args, name),
        "parameters": _positive(config.get("model_num_parameters")),
        "revision": _text(config.get("model_sha") or config.get("model_revision") or args.get("revision") or None),
        "system_instruction": _text(data.get("system_instruction") or config.get("system_instruction") or None),
        "chat_template": _chat_template(data),
        "thinking": _thinking(config, args),
        "fewshot_as_multiturn": True if data.get("fewshot_as_multiturn") is True else None,
        "limit": _float(config.get("limit"), finite=True),
        "batch_size": _text(config.get("batch_size")),
        "dtype": str(config.get("model_dtype") or args.get("dtype") or "").removeprefix("torch.") or None,
        "max_length": _positive(config.get("model_max_length") or data.get("max_length")),
        "random_seed": _int(config.get("random_seed")),
        "numpy_seed": _int(config.get("numpy_seed")),
        "torch_seed": _int(config.get("torch_seed")),
        "fewshot_seed": _int(config.get("fewshot_seed")),
        "state_bytes": _positive(config.get("model_state_bytes")),
        "tokens_per_second": _float(config.get("model_tokens_per_second")),
        "lm_eval_version": _text(data.get("lm_eval_version")),
        "jrt_eval_version": _text(config.get("jrt_eval_version") or data.get("jrt_eval_version")),
        "git_hash": _text(data.get("git_hash") or None),
        "model_args": ",".join(f"{k}={v}" for k, v in args.items()) or None,
        "time": _time(data.get("date"), file),
        "seconds": _float(data.get("total_evaluation_time_seconds")),
        "file": file,
    }


def _thinking(config: dict[str, Any], args: dict[str, Any]) -> bool | None:
    """Whether the model was told to think before it answers, or not to: by its arguments, or in requests to a server."""
    asked = config.get("gen_kwargs")
    asked = parse_args(asked) if isinstance(asked, str) else _dict(asked)
    body = _settings(asked.get("extra_body"))
    nested = (args.get("chat_template_args"), asked.get("chat_template_kwargs"), body.get("chat_template_kwargs"))
    for place in (args, *map(_settings, nested), body):
        value = str(place.get("enable_thinking", "")).lower()
        if value in ("true", "1", "false", "0"):
            return value in ("true", "1")
    return None


def _settings(value: Any) -> dict[str, Any]:
    """An object, or one that is written as JSON; else an empty one."""
    if isinstance(value, str):
        try:
            value = lenient_json.loads(value.encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return {}
    return _dict(value)


def _task_columns(data: dict[str, Any], config: dict[str, Any], task: str, values: dict[str, Any]) -> dict[str, Any]:
    task_config = _dict(_dict(data.get("configs")).get(task))
    metadata = _dict(task_config.get("metadata"))
    ours = _dict(metadata.get("jrt"))  # what our task class did to the documents
    subtasks = _dict(data.get("group_subtasks")).get(task)
    is_group = not task_config and (bool(subtasks) or task in _dict(data.get("groups")))
    dataset, variant = split_task(task, metadata)
    version = _dict(data.get("versions")).get(task)
    generates = task_config.get("output_type") not in _NO_GENERATION
    stated = _int(values.get("sample_len", values.get("samples")))
    counted, original = _documents(data, task)
    n = counted if stated is None else stated
    costs = _dict(ours.get("costs"))
    return {
        "task": task,
        "dataset": dataset,
        "variant": variant,
        "group": is_group,
        "n": n,
        "n_original": original,
        "n_dropped": _int(ours.get("dropped")),
        "n_truncated": _int(ours.get("truncated", costs.get("truncated"))),
        "context_length": _positive(ours.get("context_length", metadata.get("context_length"))),
        "windows": _windows(ours),
        "answer_length": _int(ours.get("answer_length", metadata.get("answer_length"))),
        "num_fewshot": _int(_dict(data.get("n-shot")).get(task, task_config.get("num_fewshot"))),
        "gen_kwargs": _gen_kwargs(config.get("gen_kwargs")) if generates else None,
        "task_version": _text(version),
        "dataset_path": _text(task_config.get("dataset_path") or None),  # this and the next are no columns of scores
        "test_split": _text(task_config.get("test_split") or task_config.get("validation_split") or None),
        "prompt_tokens": _share(costs.get("prompt_tokens"), n),
        "generated_tokens": _share(costs.get("generated_tokens"), n),
        "document_seconds": _share(costs.get("seconds"), n),
        **({"jrt_eval_version": _text(ours["jrt_eval_version"])} if "jrt_eval_version" in ours else {}),
    }


def _metric_rows(data: dict[str, Any], shared: dict[str, Any], values: dict[str, Any]) -> list[dict[str, Any]]:
    direction = _dict(_dict(data.get("higher_is_better")).get(shared["task"]))
    rows = []
    for metric, name, value in _metrics(values):
        number = _float(value)
        if number is None or isinstance(value, str):
            continue
        stderr = values.get(f"{metric}_stderr,{name}" if name else f"{metric}_stderr")
        rows.append(
            {
                **shared,
                "metric": metric,
                "filter": name or "none",
                "higher_is_better": is_higher_better(metric, direction.get(metric)),
                "value": number,
                "stderr": _float(stderr),
            }
        )
    return rows


def _metrics(values: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(metric, filter or "", value) of a task's entry, without standard errors, counts and names."""
    for key, value in values.items():
        metric, _, name = str(key).partition(",")
        if not metric.endswith("_stderr") and (name or metric not in _COUNTS):
            yield metric, name, value


def _unread(values: dict[str, Any]) -> list[str]:
    return [m for m, name, value in _metrics(values) if name and isinstance(value, (list, dict))]


def _documents(data: dict[str, Any], task: str, above: tuple[str, ...] = ()) -> tuple[int | None, int | None]:
    """Documents evaluated and documents there are; of a group, the sums over its tasks, however deep it is nested."""
    counts = _dict(_dict(data.get("n-samples")).get(task))
    if counts:
        return _int(counts.get("effective")), _int(counts.get("original"))
    subtasks = _dict(data.get("group_subtasks")).get(task)
    if not isinstance(subtasks, list) or not subtasks or task in above:
        return None, None
    found = [_documents(data, str(sub), (*above, task)) for sub in subtasks]
    sums = [None if None in column else sum(column) for column in zip(*found, strict=True)]  # type: ignore[arg-type]
    return sums[0], sums[1]


def _gen_kwargs(value: Any) -> str | None:
    """`--gen_kwargs` as JSON with sorted keys; None if nothing was given."""
    given = parse_args(value)
    if not given:
        return None
    try:
        return lenient_json.dumps({str(k): _plain(v) for k, v in given.items() if v is not None}).decode()
    except ValueError:
        return str(value)


def _plain(value: Any) -> Any:
    """`"0.7"` and 0.7, or `"True"` and true, are one setting."""
    if isinstance(value, str):
        words = {"true": True, "false": False}
        return words.get(value.lower(), number if (number := _float(value, finite=True)) is not None else value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _chat_template(data: dict[str, Any]) -> str | None:
    """lm-eval's hash of the template, shortened; a template that is no text (`true`) as it is."""
    template, digest = data.get("chat_template"), data.get("chat_template_sha")
    if isinstance(digest, str) and digest:
        return digest[:12]
    if not template:
        return None
    return hashlib.sha256(template.encode()).hexdigest()[:12] if isinstance(template, str) else str(template)


def _name_from(args: dict[str, Any]) -> str | None:
    for key in ("peft", "delta", "pretrained", "checkpoint_name", "model", "path", "engine"):
        if args.get(key):
            return str(args[key])
    return None


def _family(config: dict[str, Any], args: dict[str, Any], name: str) -> str | None:
    stated = config.get("model_family") or config.get("family") or config.get("model_type") or args.get("arch")
    if stated:
        return str(stated)
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((f for f in _FAMILIES if f in last), None)


def _time(date: Any, file: str) -> str | None:
    """ISO time in UTC: the run's `date`, else the date in the file's name (local time of that machine)."""
    named = RESULT_NAME.match(PurePosixPath(file).name)
    day, _, clock = named[1].partition("T") if named else ("", "", "")
    number = None if isinstance(date, str) else _float(date, finite=True)
    try:
        if number is not None:
            return datetime.fromtimestamp(number, tz=timezone.utc).isoformat()
        if day:
            fraction = clock.replace("-", ":")[:15]  # to the microsecond
            return datetime.fromisoformat(f"{day}T{_padded(fraction)}").replace(tzinfo=timezone.utc).isoformat()
    except (ValueError, OverflowError, OSError):
        return None  # not a date of this calendar
    return None


def _padded(clock: str) -> str:
    """Python 3.10 reads fractions of three and six digits only."""
    whole, point, fraction = clock.partition(".")
    return f"{whole}.{fraction:0<6}" if point else whole


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _float(value: Any, finite: bool = False) -> float | None:
    try:
        number = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None  # lm-eval writes N/A where it has no standard error
    return number if number is None or not finite or math.isfinite(number) else None


def _int(value: Any) -> int | None:
    number = _float(value, finite=True)
    return int(number) if number is not None and abs(number) < 2**63 else None


def _windows(ours: dict[str, Any]) -> str | None:
    """Lengths and depths that one number does not say, as JSON."""
    asked = {name: ours.get(name) for name in (LENGTH, DEPTH)}
    several = isinstance(asked[LENGTH], list) or asked[DEPTH] is not None
    return lenient_json.dumps(asked).decode() if several else None


def _share(total: Any, count: int | None) -> float | None:
    number = _float(total, finite=True)
    return number / count if number is not None and count else None


def _positive(value: Any) -> int | None:
    number = _int(value)
    return number if number is not None and number > 0 else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
