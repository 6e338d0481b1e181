"""Reading lm-eval's result files: one `results_*.json` is one run; from it come the rows of `scores`.

Layouts of lm-eval 0.4.9 to 0.4.13: `OUTPUT/<model>/results_<date>.json` with `samples_<task>_<date>.jsonl` beside it,
or `<stem>_<date>.json` where `--output_path` named a file. What ties samples to their run is the folder and the date.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any

import orjson

DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
RESULT_NAME = re.compile(rf"^(?:.*_)?({DATE})\.json$")
SAMPLE_NAME = re.compile(rf"^samples_(.+)_({DATE})\.jsonl$")

# Model arguments that do not change what the model is; any other argument tells two models of one name apart.
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


class NotAResult(ValueError):
    """The file is no usable lm-eval result; the message is the reason, in a few words."""


def split_task(task: str, metadata: dict[str, Any] | None = None) -> tuple[str, str | None]:
    """`(dataset, variant)` of a task: `jrt_fda_twice` -> `("fda", "twice")`.

    The variant is what a task of ours records (`document.variant` of its metadata), else `twice` for a name that ends
    so, `once` for another name that begins with `jrt_` or `based_`, else None.
    """
    ours = re.match(r"^(?:jrt|based)_(?=.)", task)
    name = task[ours.end() :] if ours else task
    stated = _dict((metadata or {}).get("document")).get("variant")
    variant = stated if stated in {"once", "twice"} else None
    if name.endswith("_twice") and name != "_twice":
        return name.removesuffix("_twice"), variant or "twice"
    return name, variant or ("once" if ours else None)


def read_run(raw: bytes, file: str) -> dict[str, Any]:
    """One result file as `{"run_id", "identity", "rows"}`, rows being scores rows without `model`.

    raw: the file's bytes; file: its path relative to the collected folder. Raises NotAResult.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        cut = not raw.rstrip().endswith(b"}")
        raise NotAResult("half-written: the JSON ends early" if cut else f"not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise NotAResult("foreign: no lm-eval result (no 'results' in it)")
    if not isinstance(data.get("config"), dict) and "lm_eval_version" not in data and "versions" not in data:
        raise NotAResult("foreign: no lm-eval result (no 'config' in it)")
    run = _run_columns(data, file)
    run["run_id"] = hashlib.sha256(raw).hexdigest()[:12]
    rows: list[dict[str, Any]] = []
    for task, values in data["results"].items():
        if isinstance(values, dict):
            rows += _task_rows(data, run, task, values)
    for task, values in (data.get("groups") or {}).items():
        if task not in data["results"] and isinstance(values, dict):
            rows += _task_rows(data, run, task, values)
    if not rows:
        raise NotAResult("no task in it has a metric")
    return {"run_id": run["run_id"], "identity": _identity(data, run), "rows": rows}


def parse_args(args: Any) -> dict[str, Any]:
    """`--model_args` as a dictionary; lm-eval writes the string, or a dictionary in newer versions."""
    if isinstance(args, dict):
        return args
    parts = [part.partition("=") for part in str(args or "").split(",") if "=" in part]
    return {key.strip(): value.strip() for key, _, value in parts}


def _run_columns(data: dict[str, Any], file: str) -> dict[str, Any]:
    config = _dict(data.get("config"))
    args = parse_args(config.get("model_args"))
    source = data.get("model_source") or config.get("model")
    name = data.get("model_name") or _name_from(args) or source or PurePosixPath(file).parent.name
    revision = config.get("model_sha") or config.get("model_revision") or args.get("revision")
    batch = config.get("batch_size")
    return {
        "model_name": str(name),
        "model_source": None if source is None else str(source),
        "family": _family(config, args, str(name), str(source or "")),
        "parameters": _positive(config.get("model_num_parameters")),
        "revision": revision or None,
        "limit": _float(config.get("limit")),
        "batch_size": None if batch is None else str(batch),
        "dtype": str(config.get("model_dtype") or args.get("dtype") or "").removeprefix("torch.") or None,
        "max_length": _positive(config.get("model_max_length") or data.get("max_length")),
        "random_seed": _int(config.get("random_seed")),
        "numpy_seed": _int(config.get("numpy_seed")),
        "torch_seed": _int(config.get("torch_seed")),
        "fewshot_seed": _int(config.get("fewshot_seed")),
        "state_bytes": _positive(config.get("model_state_bytes")),
        "tokens_per_second": _float(config.get("model_tokens_per_second")),
        "lm_eval_version": data.get("lm_eval_version"),
        "jrt_eval_version": _text(config.get("jrt_eval_version") or data.get("jrt_eval_version")),
        "git_hash": data.get("git_hash") or None,
        "model_args": ",".join(f"{k}={v}" for k, v in args.items()) or None,
        "time": _time(data.get("date"), file),
        "seconds": _float(data.get("total_evaluation_time_seconds")),
        "file": file,
    }


def _task_rows(data: dict[str, Any], run: dict[str, Any], task: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    task_config = _dict(_dict(data.get("configs")).get(task))
    metadata = _dict(task_config.get("metadata"))
    counts = _dict(_dict(data.get("n-samples")).get(task))
    direction = _dict(_dict(data.get("higher_is_better")).get(task))
    subtasks = _dict(data.get("group_subtasks")).get(task)
    is_group = bool(subtasks) and not task_config
    dataset, variant = split_task(task, metadata)
    version = _dict(data.get("versions")).get(task)
    n = _int(values.get("sample_len", values.get("samples", counts.get("effective"))))
    if is_group and n is None:
        sizes: list[Any] = [_dict(_dict(data.get("n-samples")).get(sub)).get("effective") for sub in subtasks or []]
        n = sum(int(size) for size in sizes) if sizes and None not in sizes else None
    ours = _dict(metadata.get("jrt"))  # what our task class did to the documents
    shared = {
        **run,
        "task": task,
        "dataset": dataset,
        "variant": variant,
        "group": is_group,
        "n": n,
        "n_dropped": _int(ours.get("dropped")),
        "n_truncated": _int(ours.get("truncated")),
        "context_length": _positive(ours.get("context_length", metadata.get("context_length"))),
        "answer_length": _int(ours.get("answer_length", metadata.get("answer_length"))),
        "num_fewshot": _int(_dict(data.get("n-shot")).get(task, task_config.get("num_fewshot"))),
        "task_version": None if version is None else str(version),
    }
    shared["jrt_eval_version"] = shared["jrt_eval_version"] or _text(ours.get("jrt_eval_version"))
    rows = []
    for key, value in values.items():
        metric, _, name = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if not name and metric in {"sample_len", "samples"}:
            continue
        stderr = values.get(f"{metric}_stderr,{name}" if name else f"{metric}_stderr")
        rows.append(
            {
                **shared,
                "metric": metric,
                "filter": name or "none",
                "higher_is_better": direction.get(metric),
                "value": float(value),
                "stderr": _float(stderr),
            }
        )
    return rows


def _identity(data: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    """What makes the model what it is, beside its name: two runs that differ here ran two models."""
    args = parse_args(_dict(data.get("config")).get("model_args"))
    identity = {k: str(v) for k, v in args.items() if k not in _NEUTRAL_ARGS}
    for key in ("model_source", "revision", "parameters", "dtype"):
        if run[key] is not None:
            identity[key] = str(run[key])
    return identity


def _name_from(args: dict[str, Any]) -> str | None:
    for key in ("peft", "delta", "pretrained", "checkpoint_name", "model", "path", "engine"):
        if args.get(key):
            return str(args[key])
    return None


def _family(config: dict[str, Any], args: dict[str, Any], name: str, source: str) -> str | None:
    stated = config.get("model_family") or config.get("family") or config.get("model_type") or args.get("arch")
    if stated:
        return str(stated)
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((f for f in _FAMILIES if f in last), None)


def _time(date: Any, file: str) -> str | None:
    """ISO time in UTC: the run's `date`, else the date in the file's name (local time of that machine)."""
    if isinstance(date, (int, float)) and not isinstance(date, bool):
        return datetime.fromtimestamp(date, tz=timezone.utc).isoformat()
    named = RESULT_NAME.match(PurePosixPath(file).name)
    if named is None:
        return None
    day, _, clock = named[1].partition("T")
    return datetime.fromisoformat(f"{day}T{clock.replace('-', ':')}").replace(tzinfo=timezone.utc).isoformat()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _float(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None  # lm-eval writes N/A where it has no standard error


def _int(value: Any) -> int | None:
    number = _float(value)
    return int(number) if number is not None and number == number and abs(number) < 2**63 else None


def _positive(value: Any) -> int | None:
    number = _int(value)
    return number if number is not None and number > 0 else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
