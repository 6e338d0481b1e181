"""Write result and sample files as lm-eval does, with whatever scores and settings a test needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_dates = iter(range(10**6))


def write_run(
    folder: Path,
    model: str,
    tasks: dict[str, Iterable[Any]],
    *,
    metric: str = "contains",
    documents: dict[str, list[dict[str, Any]]] | None = None,
    samples: bool = True,
    filters: tuple[str, ...] = ("none",),
    task: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    name: str | None = None,
    **top: Any,
) -> Path:
    """One run. tasks: name -> a score per document (a float, or what a sample holds of the metric).

    documents: their `doc` (default: one that is the same in every task). task: keys of each task's config. result: keys
    of each task's entry in `results`. top: keys of the file; `config__x` a key of its config. Returns the result file.
    """
    number = next(_dates)
    date = f"2026-01-{1 + number // 3600 % 28:02d}T{number // 60 % 24:02d}-{number % 60:02d}-00.{number:06d}"
    here = folder / (name or model.replace("/", "__"))
    here.mkdir(parents=True, exist_ok=True)
    results, configs, counts = {}, {}, {}
    for title, scores in tasks.items():
        values = list(scores)
        plain = [v for v in values if isinstance(v, (int, float))]
        mean = sum(plain) / len(plain) if plain else 0.0
        results[title] = {"sample_len": len(values)}
        for filter_name in filters:
            results[title] |= {f"{metric},{filter_name}": mean, f"{metric}_stderr,{filter_name}": 0.1}
        results[title] |= result or {}
        configs[title] = {"task": title, "output_type": "generate_until", "metadata": {"version": 1.0}} | (task or {})
        counts[title] = {"original": len(values), "effective": len(values)}
        if samples:
            docs = (documents or {}).get(title) or [{"question": f"q{i}", "value": f"a{i}"} for i in range(len(values))]
            lines = [
                _sample(i, doc, value, metric, f)
                for f in filters
                for i, (doc, value) in enumerate(zip(docs, values, strict=True))
            ]
            (here / f"samples_{title}_{date}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data: dict[str, Any] = {
        "results": results,
        "configs": configs,
        "versions": dict.fromkeys(results, 1.0),
        "n-shot": dict.fromkeys(results, 0),
        "n-samples": counts,
        "higher_is_better": {title: {metric: True} for title in results},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model},
            "limit": None,
            "gen_kwargs": {},
            "random_seed": 0,
        },
        "date": 1.7e9 + number,
        "lm_eval_version": "0.4.13",
        "model_source": "hf",
        "model_name": model,
    }
    for key, value in top.items():
        where, _, inner = key.partition("__")
        if inner:
            data[where] = data[where] | {inner: value}
        else:
            data[key] = value
    path = here / f"results_{date}.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def _sample(index: int, doc: dict[str, Any], value: Any, metric: str, filter_name: str) -> str:
    prompt = f"{doc.get('question')} is?"
    return json.dumps(
        {
            "doc_id": index,
            "doc": doc,
            "target": doc.get("value", ""),
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}},
            "resps": [[f"answer {index}"]],
            "filtered_resps": [f"answer {index}"],
            "filter": filter_name,
            "metrics": [metric],
            "doc_hash": hashlib.sha256(json.dumps(doc).encode()).hexdigest(),
            "prompt_hash": hashlib.sha256(prompt.encode()).hexdigest(),
            metric: value,
        }
    )
