"""Scores in the format of Every Eval Ever (github.com/evaleval/every_eval_ever, schema 0.3.0): a JSON file per run.

Only scores are written, no samples. What lm-eval's files do not say (who ran the evaluation, and whether weights are
open) is asked for or given as `unknown`.
"""

from __future__ import annotations

import math
import os
import re
import time
import uuid
from collections.abc import Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from jrt_eval._version import __version__
from jrt_eval.analysis.metrics import is_share
from jrt_eval.analysis.schema import SEEDS, SETTINGS
from jrt_eval.analysis.tree import Survey, survey_tree
from jrt_eval.errors import UserError
from jrt_eval.files import write_text

VERSION = "0.3.0"
RELATIONSHIPS = ("first_party", "third_party", "collaborative", "other")

_API = re.compile(r"completions|anthropic|openai|watsonx|textsynth")  # lm-eval's models that may run elsewhere
_GENERATION = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_gen_toks": "max_tokens"}


def export(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    organization: str,
    relationship: str = "other",
    keep: str = "newest",
) -> tuple[list[Path], Survey]:
    """Write `OUT/data/<benchmark>/<developer>/<model>/<uuid>.json` per run. Returns the files, and what was left out.

    organization: who ran the evaluation. relationship: theirs to the model, one of RELATIONSHIPS. A run has the same
    file name each time. Raises UserError.
    """
    if not organization.strip():
        raise UserError("name the organization that ran the evaluation")
    if relationship not in RELATIONSHIPS:
        raise UserError(f"relationship is {relationship!r}: it can be {', '.join(RELATIONSHIPS)}")
    survey = survey_tree([Path(folder) for folder in folders], keep=keep)
    source = {
        "source_type": "evaluation_run",
        "source_organization_name": organization,
        "evaluator_relationship": relationship,
    }
    written = []
    for _, group in groupby(sorted(survey.rows, key=lambda row: str(row["run_id"])), key=lambda row: row["run_id"]):
        rows = [row for row in group if math.isfinite(row["value"])]
        if not rows:
            continue
        record = _record(rows, source)
        developer, _, name = record["model_info"]["id"].partition("/")
        tasks = {row["dataset"] for row in rows}
        place = Path(out) / "data" / _file_name(tasks.pop() if len(tasks) == 1 else "jrt-eval") / _file_name(developer)
        target = place / _file_name(name) / f"{_identifier(str(rows[0]['run_id']))}.json"
        write_text(target, orjson.dumps(record, option=orjson.OPT_INDENT_2).decode() + "\n")
        written.append(target)
    return written, survey


def _record(rows: list[dict[str, Any]], source: dict[str, Any]) -> dict[str, Any]:
    first = rows[0]
    now = f"{time.time():.0f}"
    model = _model_info(first)
    run = {
        "schema_version": VERSION,
        "evaluation_id": f"lm_eval/{model['id']}/{now}/{first['run_id']}",
        "retrieved_timestamp": now,
        "source_metadata": source,
        "eval_library": {
            "name": "lm_eval",
            "version": first["lm_eval_version"] or "unknown",
            "additional_details": {"exported_by": f"jrt-eval {__version__}"},
        },
        "model_info": model,
        "evaluation_results": [_result(row) for row in rows],
    }
    return run | ({"evaluation_timestamp": str(first["time"])} if first["time"] else {})


def _model_info(row: dict[str, Any]) -> dict[str, Any]:
    name = str(row["model_name"])
    parts = [part for part in name.split("/") if part not in {"", ".", ".."}]
    hub = len(parts) == 2 and parts == name.split("/")
    source = str(row["model_source"] or "unknown")
    details = {
        "deployment_type": "unknown" if _API.search(source) else "self_deployed",
        "model_availability": "unknown",
        **_details(row, ("revision", "parameters", "dtype", "model_args", "state_bytes")),
    }
    return {
        "name": name,
        "id": name if hub else f"unknown/{parts[-1] if parts else 'unknown'}",
        "developer": parts[0] if hub else "unknown",
        "inference_engine": {"name": source},
        "additional_details": details,
    }


def _result(row: dict[str, Any]) -> dict[str, Any]:
    metric, filter_name = str(row["metric"]), str(row["filter"])
    share = is_share(metric, [row["value"]])
    config: dict[str, Any] = {
        "metric_id": metric,
        "metric_name": metric,
        "lower_is_better": row["higher_is_better"] is False,
        "score_type": "continuous",
        "additional_details": {
            "filter": filter_name,
            "direction": "unknown" if row["higher_is_better"] is None else "stated",
        },
    }
    # Bounds are required; null says that they are not known.
    config |= {"min_score": 0 if share else None, "max_score": 1 if share else None}
    if share:
        config["metric_unit"] = "proportion"
    uncertainty: dict[str, Any] = {} if row["n"] is None else {"num_samples": row["n"]}
    if row["stderr"] is not None and math.isfinite(row["stderr"]):
        uncertainty["standard_error"] = {"value": row["stderr"]}
    score: dict[str, Any] = {"score": row["value"]}
    return {
        "evaluation_result_id": f"{row['run_id']}/{row['task']}/{metric}/{filter_name}",
        "evaluation_name": str(row["task"]),
        "source_data": _source_data(row),
        "metric_config": config,
        "score_details": score | ({"uncertainty": uncertainty} if uncertainty else {}),
        "generation_config": _generation(row),
    }


def _source_data(row: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"dataset_name": str(row["dataset"])}
    path = row["dataset_path"]
    if (
        path is None
        or row["group"]
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path)
        or path in {"json", "csv", "parquet", "text"}
    ):
        return data | {"source_type": "other"}
    split = {"hf_split": row["test_split"]} if row["test_split"] else {}
    count = {} if row["n_original"] is None else {"samples_number": row["n_original"]}
    return data | {"source_type": "hf_dataset", "hf_repo": path} | split | count


def _generation(row: dict[str, Any]) -> dict[str, Any]:
    given = orjson.loads(row["gen_kwargs"]) if (row["gen_kwargs"] or "").startswith("{") else {}
    arguments = {
        name: int(given[key]) if name in {"max_tokens"} else given[key]
        for key, name in _GENERATION.items()
        if isinstance(given.get(key), (int, float)) and not isinstance(given.get(key), bool)
    }
    settings = [name for name in SETTINGS if name != "task_version"]
    return {
        "generation_args": arguments,
        "additional_details": _details(row, ("task_version", "variant", *settings, *SEEDS)),
    }


def _details(row: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Those of the values that are known, as text."""
    return {name: str(row[name]) for name in names if row.get(name) is not None}


def _identifier(run_id: str) -> str:
    """A UUID of version 4's form that is the same for the same run."""
    return str(uuid.UUID(bytes=sha256(run_id.encode()).digest()[:16], version=4))


def _file_name(text: str) -> str:
    """A folder's name made of a benchmark, developer or model."""
    return re.sub(r"[^\w.-]+", "_", text).strip(".")[:100] or "unknown"
