"""Reading lm-eval's sample files: one line per document and filter, in batches, into Arrow tables.

orjson parses each line once, and a batch is freed before the next one is read. Large files are cut at line ends into
byte ranges, so that several processes can share one file.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jrt_eval.analysis import lenient_json
from jrt_eval.analysis.metrics import per_document
from jrt_eval.analysis.schema import DEPTH, LENGTH, METRIC_PREFIX, RUN_COLUMNS, WEIGHT_PREFIX, predictions_schema

BATCH = 16_384  # lines per Arrow batch: about 30 MB of prompts
_INT64 = 1 << 63


class BadSamples(ValueError):
    """The file cannot be used; the message is the reason, in a few words."""


class BadLine(ValueError):
    """The line cannot be used; the message is the reason, in a few words."""


@dataclass
class Part:
    """What one byte range of a sample file holds.

    numbers: names of its number columns. filters: names of its filters. unread: metrics that are not a number per
    document. bad: lines that were left out; the reason is that of the first.
    """

    rows: int = 0
    numbers: set[str] = field(default_factory=set)
    filters: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    bad: int = 0
    reason: str = ""


def read_batches(
    path: Path, run: dict[str, Any], part: Part, start: int = 0, end: int | None = None
) -> Iterator[pa.Table]:
    """The predictions of bytes `start` to `end` of a sample file, as tables of up to BATCH rows.

    run: values of RUN_COLUMNS. part: filled with what the range holds. A range begins after the first line end at or
    behind `start - 1` and contains every line that begins before `end`. Raises BadSamples for a file whose last line is
    cut; other lines that cannot be read are counted in `part`.
    """
    fixed = predictions_schema([])
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        rows: list[dict[str, Any]] = []
        position = file.tell()
        for line in file:
            if end is not None and position >= end:
                break
            if line.strip():
                try:
                    rows.append(_parse(line, position, part.unread))
                except BadLine as error:
                    part.bad += 1
                    part.reason = part.reason or str(error)
            position += len(line)
            if len(rows) == BATCH:
                yield _table(rows, run, fixed, part)
                rows = []
        if rows:
            yield _table(rows, run, fixed, part)


def prompts(path: Path) -> Iterator[str]:
    """The prompt of each line of a sample file that has one."""
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                sample = lenient_json.loads(line)
                requests = _requests(sample.get("arguments")) if isinstance(sample, dict) else []
                if requests and requests[0][0] is not None:
                    yield requests[0][0]


def write_part(path: Path, target: Path, run: dict[str, Any], start: int = 0, end: int | None = None) -> Part:
    """Write one byte range of a sample file to the parquet file `target`. Raises BadSamples and then leaves no file.

    The schema of a parquet file is fixed when its first batch is written. If a later batch has another metric, the
    range is read again with all metrics known.
    """
    known: set[str] = set()
    while True:
        part = Part(numbers=set(known))
        writer: pq.ParquetWriter | None = None
        try:
            for table in read_batches(path, run, part, start, end):
                if writer is None:
                    known = set(part.numbers)
                    schema = predictions_schema(known)
                    writer = pq.ParquetWriter(target, schema, compression="zstd", compression_level=1)
                if part.numbers == known:
                    writer.write_table(conform(table, writer.schema))
        except BaseException:
            if writer is not None:
                writer.close()
            target.unlink(missing_ok=True)
            raise
        if writer is not None:
            writer.close()
        if part.numbers == known:
            return part
        known = part.numbers


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns; missing ones are null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def ranges(path: Path, size: int = 128 << 20) -> list[tuple[int, int | None]]:
    """Byte ranges of about `size` that cover the file."""
    total = os.path.getsize(path)
    starts = list(range(0, max(total, 1), size))
    return [(s, e) for s, e in zip(starts, [*starts[1:], None], strict=True)]


_META = {
    "doc_id",
    "doc",
    "target",
    "arguments",
    "resps",
    "filtered_resps",
    "filter",
    "metrics",
    "doc_hash",
    "prompt_hash",
    "target_hash",
    "jrt_cost",
    DEPTH,
    LENGTH,
}


def _parse(line: bytes, position: int, unread: set[str]) -> dict[str, Any]:
    """One line as a row of predictions without the run's columns; numbers are under their prefixed names."""
    try:
        sample = lenient_json.loads(line)
    except ValueError:
        if not line.endswith(b"\n"):
            raise BadSamples("half-written: its last line is cut") from None
        raise BadLine(f"the line at byte {position} is not JSON") from None
    if not isinstance(sample, dict) or ("arguments" not in sample and "resps" not in sample):
        raise BadLine("foreign: no lm-eval samples (no 'arguments' in a line)")
    try:
        row = _row(sample, unread)
    except RecursionError:
        raise BadLine(f"the line at byte {position} is nested too deeply") from None
    if row["doc_id"] is None and row["row"] is None and row["doc_hash"] is None:
        raise BadLine(f"the line at byte {position} has neither doc_id nor doc_hash, so its document cannot be matched")
    return row


def _row(sample: dict[str, Any], unread: set[str]) -> dict[str, Any]:
    doc = sample.get("doc")
    if not isinstance(doc, dict):
        doc = {}
    requests = _requests(sample.get("arguments"))
    prompt = requests[0][0] if requests else None
    targets = _targets(doc, sample.get("target"))
    key = _one(doc.get("doc_id", doc.get("id")))
    names = doc.get("jrt_document")
    passage = doc.get("jrt_passage")
    depth, distance = _place(passage if isinstance(passage, str) else prompt, targets)
    asked, length = _recorded(sample, doc, DEPTH), _recorded(sample, doc, LENGTH)
    cost = sample.get("jrt_cost")
    costs = _count(cost, "prompt_tokens") if isinstance(cost, dict) else None
    row: dict[str, Any] = {
        "filter": str(sample.get("filter") or "none"),
        "doc_id": _count(sample, "doc_id"),
        "row": _count(doc, "jrt_row"),
        "doc_key": key,
        "document_names": [str(n) for n in names] if isinstance(names, list) else None if key is None else [key],
        "question": _first(doc, "jrt_cue", "jrt_question", "question", "key"),
        "prompt": prompt,
        "prompt_hash": _one(sample.get("prompt_hash"))
        or (hashlib.sha256(prompt.encode()).hexdigest() if prompt else None),
        "prompt_tokens": counted if (counted := _count(doc, "jrt_prompt_tokens")) is not None else costs,
        "prompt_chars": None if prompt is None else len(prompt),
        "doc_hash": _one(sample.get("doc_hash")),
        "doc_tokens": _count(doc, "jrt_document_tokens"),
        "answer_token": _count(doc, "jrt_answer_position"),
        DEPTH: asked if asked is not None and 0 <= asked <= 1 else depth,
        LENGTH: int(length) if length is not None and 1 <= length < _INT64 else None,
        "answer_distance": distance,
        "answer_distance_tokens": None,
        "target": _one(sample.get("target")),
        "targets": targets,
        "generation": _generation(sample, requests),
    }
    listed = sample.get("metrics")
    for name in listed if isinstance(listed, list) else [k for k in sample if k not in _META]:
        value = sample.get(name) if isinstance(name, str) else None
        if value is None:
            continue
        number = per_document(name, value)
        if number is None:
            unread.add(name)
            continue
        row[METRIC_PREFIX + number[0]] = number[1]
        if number[2] is not None:
            row[WEIGHT_PREFIX + number[0]] = number[2]
    return row


def _requests(arguments: Any) -> list[tuple[Any, Any]]:
    """`(prompt, second argument)` of each request: `{"gen_args_0": {"arg_0": ..., "arg_1": ...}}`, or lists (before
    0.4.3).
    """
    if isinstance(arguments, dict):
        values = [v for v in arguments.values() if isinstance(v, dict)]
        return [(_one(v.get("arg_0")), v.get("arg_1")) for v in values]
    if isinstance(arguments, list):
        return [(_one(a[0]), a[1] if len(a) > 1 else None) for a in arguments if isinstance(a, list) and a]
    return []


def _generation(sample: dict[str, Any], requests: list[tuple[Any, Any]]) -> str | None:
    responses = sample.get("filtered_resps")
    if isinstance(responses, str):
        return responses
    if not isinstance(responses, list) or not responses:
        return None
    first = responses[0]
    if isinstance(first, str):
        return first
    if isinstance(first, list) and len(first) == 2 and len(requests) > 1 and isinstance(requests[0][1], str):
        # multiple choice: a response is (log-likelihood, is greedy)
        try:
            scores = [float(r[0]) for r in responses]
        except (TypeError, ValueError, IndexError, KeyError):
            return None
        best = max(range(len(scores)), key=scores.__getitem__)
        return _one(requests[best][1]) if best < len(requests) else None
    generated = not requests or isinstance(requests[0][1], dict)  # the second argument of a generation is its settings
    return _one(first) if generated and isinstance(first, list) else None


def _targets(doc: dict[str, Any], target: Any) -> list[str]:
    """All gold answers: the document's `jrt_answers` or `answers` (a list, or SQuAD's dictionary), its `value`, else
    the task's target.
    """
    gold = doc.get("jrt_answers", doc.get("answers", doc.get("value")))
    if isinstance(gold, dict):
        gold = gold.get("text")
    if gold is None:
        gold = target
    found = gold if isinstance(gold, list) else [gold]
    return [str(g) for g in found if isinstance(g, (str, int, float))]


def _place(passage: str | None, targets: list[str]) -> tuple[float | None, int | None]:
    """Where the first gold answer that is in the passage begins (0 to 1), and how far before the end it last ends."""
    lower = (passage or "").lower()
    for gold in targets:
        needle = gold.lower()
        start = lower.find(needle) if needle else -1
        if start >= 0:
            return start / len(lower), len(lower) - (lower.rfind(needle) + len(needle))
    return None, None


def _count(values: dict[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64 else None


def _recorded(sample: dict[str, Any], doc: dict[str, Any], name: str) -> float | None:
    """A number that the sample or its document has under this name, or the document with `jrt_` in front."""
    for value in (sample.get(name), doc.get(name), doc.get(f"jrt_{name}")):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def _one(value: Any) -> str | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return value if value is None or isinstance(value, str) else str(value)


def _first(values: dict[str, Any], *names: str) -> str | None:
    """The first of these that says anything."""
    return next((text for name in names if (text := _one(values.get(name)))), None)


def _table(rows: list[dict[str, Any]], run: dict[str, Any], fixed: pa.Schema, part: Part) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for column in fixed:
        if column.name in RUN_COLUMNS and column.name != LENGTH:
            value = pa.scalar(run[column.name], value_type(column.type))
            columns[column.name] = pa.repeat(value, len(rows)).cast(column.type)
        else:
            array = pa.array([row[column.name] for row in rows], value_type(column.type))
            if column.name == LENGTH and run[LENGTH] is not None:
                array = array.fill_null(run[LENGTH])
            columns[column.name] = array.cast(column.type)
    for name in sorted({key for row in rows for key in row if key.startswith((METRIC_PREFIX, WEIGHT_PREFIX))}):
        columns[name] = pa.array([row.get(name) for row in rows], pa.float64())
        part.numbers.add(name)
    part.rows += len(rows)
    part.filters.update(row["filter"] for row in rows)
    return pa.table(columns)


def value_type(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary type, any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
