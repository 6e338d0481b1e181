"""Documents: read from the hub or a folder, checked row by row, windowed and cleaned into what prompts are made of.

`prepare` yields rows with the fields that the task names and these columns of ours, which lm-eval's sample files keep:

    jrt_row               index of the row in the data set; the same document has the same one in every variant
    jrt_document          names of the document; rows that share one are of the same document
    jrt_passage, jrt_question, jrt_cue   the prompt's parts (jrt_eval.prompts.clean); squad has jrt_first too
    jrt_answers           the gold answers, a list of strings
    jrt_document_tokens   tokens of the whole document, before the window cut it
    jrt_answer_position   tokens before the answer in the whole document
    jrt_answer_depth      where the first gold answer stands in the passage that the model reads, 0 (head) to 1 (end)

The last three are null where they are not known: without a tokenizer, or where the answer was not found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError, nearest
from jrt_eval.prompts import clean
from jrt_eval.prompts.tokenization import Tokenizer
from jrt_eval.prompts.windows import Budget, Source, Window, cut, find

STYLE_FIELDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "swde": ("key",),
    "fda": ("key",),
    "squad": ("question", "context"),
    "drop": ("question", "orig_question"),
    "nq": ("question", "orig_question"),
    "triviaqa": ("question", "orig_question"),
}
TOO_SHORT = "the string that places the window has one character or none"


@dataclass(frozen=True)
class DocumentSpec:
    """What a task's YAML says under `document:`.

    text: the field that holds the document, which is windowed. answers: the field with the answer or the list of them.
    question, cue (style plain): what a twice prompt opens with, and what every prompt ends with; a field's name or a
    Jinja template over the row. cue: the question, unless given. style, variant: see `jrt_eval.prompts.clean`.
    anchors: fields whose first match centres the window (of a list: its first); the answers, unless given. []: the
    head. alternatives, tok_pos: the fields that say where else an answer may stand.
    identity: fields that name the document. keep: more fields to keep for the prompt template or the sample files.
    """

    text: str
    answers: str
    question: str | None = None
    cue: str | None = None
    style: str = "plain"
    variant: str = "once"
    anchors: tuple[str, ...] = ()
    identity: tuple[str, ...] = ("doc_id", "id", "file_name")
    keep: tuple[str, ...] = ()
    alternatives: str = "alt_answers"
    tok_pos: str = "tok_pos"

    @staticmethod
    def of(document: Any, task: str) -> DocumentSpec:
        """The spec in a task's YAML. Raises `UserError` for an unknown or a missing key, style or variant."""
        where = f"task {task}, document"
        if not isinstance(document, Mapping):
            raise UserError(f"{where}: it must map text, answers, question, ... to field names")
        known = [item.name for item in fields(DocumentSpec)]
        for key in document:
            if key not in known:
                raise UserError(f"{where}: unknown key {key!r}{nearest(str(key), known)}: it takes {', '.join(known)}")
        for key in ("text", "answers"):
            if key not in document:
                raise UserError(f"{where}: {key!r} is missing: name the field that holds the {key}")
        values: dict[str, Any] = {"anchors": [document["answers"]], **document}
        for key, value in values.items():
            if key in ("anchors", "identity", "keep"):
                values[key] = (value,) if isinstance(value, str) else tuple(value or ())
                value = values[key]
            wrong = [item for item in (value if isinstance(value, tuple) else (value,)) if not isinstance(item, str)]
            if wrong:
                raise UserError(f"{where}: {key} holds {wrong[0]!r}, which is no field name")
        try:
            values["variant"] = clean.variant_of(values.get("variant", "once"))
            clean.style_of(values.get("style", "plain"))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        spec = DocumentSpec(**values)
        if spec.style == "plain" and spec.question is None:
            raise UserError(f"{where}: 'question' is missing: name its field, or give a template")
        return spec

    def required(self) -> dict[str, None]:
        """The fields that a row must have as strings, in order; `answers` may be a list of strings."""
        names = [self.text, *STYLE_FIELDS[self.style], *self.anchors, self.answers, *self.keep]
        if self.style == "plain":  # "ask" is a field, "{{ask}}" and "Answer:" are templates
            names += [name for name in (self.question, self.cue) if name and name.isidentifier()]
        return dict.fromkeys(names)


@dataclass(frozen=True)
class Rows:
    """Rows as they came, and how to name one in a message. key: what changes when the rows may have."""

    origin: str
    rows: list[dict[str, Any]]
    key: tuple[Any, ...]
    unit: str = "row"
    numbers: list[int] = field(default_factory=list)

    def place(self, index: int) -> str:
        return f"{self.origin}, {self.unit} {self.numbers[index] if self.numbers else index}"


def load_rows(
    dataset: str,
    *,
    split: str = "validation",
    name: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    metadata_dataset: Any = None,
    **kwargs: Any,
) -> Rows:
    """The rows of a data set: of `<data_dir>/<dataset>/<split>.jsonl` (or .parquet), of the package, or of the hub.

    dataset: a hub id; its last component names the folder. data_dir: else the environment's JRT_EVAL_DATA_DIR.
    metadata_dataset: the user's choice of another id, for all or by the default id: a string or a mapping.
    kwargs: for `datasets.load_dataset`, e.g. revision; `ID@REVISION` does the same. Raises `UserError`.
    """
    dataset = _chosen(dataset, metadata_dataset)
    dataset, _, revision = dataset.partition("@")
    folder = dataset.rstrip("/").rsplit("/", 1)[-1]
    data_dir = data_dir or os.environ.get("JRT_EVAL_DATA_DIR")
    looked: list[Path] = []
    if data_dir:
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"data_dir {str(data_dir)!r} is not a folder")
        looked.append(root / folder)
    if "/" not in dataset:
        from jrt_eval.plugin import task_folder

        looked.append(task_folder() / folder)
    for place in looked:
        for path in (place / f"{split}.jsonl", place / f"{split}.parquet"):
            if path.is_file():
                return _read(path)
    if data_dir:
        raise UserError(
            f"no {split}.jsonl or {split}.parquet in {looked[0]}: data_dir must hold {folder}/{split}.jsonl"
        )
    return _hub(dataset, name, split, {**kwargs, **({"revision": revision} if revision else {})})


def _chosen(dataset: str, choice: Any) -> str:
    if choice is None:
        return dataset
    if isinstance(choice, Mapping):
        choice = choice.get(dataset, choice.get(dataset.rsplit("/", 1)[-1], dataset))
    if not isinstance(choice, str) or not choice:
        raise UserError(f"metadata 'dataset' gives {choice!r} for {dataset}: it must be a hub id")
    return choice


def _read(path: Path) -> Rows:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    if path.suffix == ".parquet":
        rows = _read_parquet(path)
        numbers: list[int] = []
    else:
        rows, numbers = _read_jsonl(path)
    if not rows:
        raise UserError(f"{path} is empty: it must hold a row per document")
    return Rows(str(path), rows, key, "line" if numbers else "row", numbers)


def _read_jsonl(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    rows, numbers = [], []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: malformed JSON: {error.msg} at column {error.colno}") from None
            except RecursionError:
                raise UserError(f"{path}, line {number}: JSON nested too deeply") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: a JSON object is needed, this is a {_kind(row)}")
            rows.append(row)
            numbers.append(number)
    return rows, numbers


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file that can be read: {_first_line(error)}") from None
    return rows


def _hub(dataset: str, name: str | None, split: str, kwargs: dict[str, Any]) -> Rows:
    import datasets

    try:
        loaded = datasets.load_dataset(dataset, name, split=split, **kwargs)
    except Exception as error:  # `datasets` raises what its many backends raise
        raise UserError(
            f"cannot load data set {dataset!r} (split {split}) from the hub: {_first_line(error)}; offline, give "
            f"--metadata data_dir=FOLDER with {dataset.rsplit('/', 1)[-1]}/{split}.jsonl; another id: "
            f'--metadata \'{{"dataset": {{"{dataset}": "OTHER_ID"}}}}\''
        ) from error
    rows = list(loaded)
    if not rows:
        raise UserError(f"data set {dataset!r} has no rows in split {split}")
    return Rows(f"{dataset} ({split})", rows, ("hub", dataset, name, split, str(kwargs), loaded._fingerprint))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def check(rows: Rows, spec: DocumentSpec) -> None:
    """Raise `UserError`, naming file, row and field, at the first row that is not what the task needs."""
    required = spec.required()
    for index, row in enumerate(rows.rows):
        for name in required:
            if name not in row:
                raise UserError(
                    f"{rows.place(index)}: field {name!r} is missing: this task needs {', '.join(required)}, "
                    f"the row has {', '.join(map(str, row))}"
                )
            value = row[name]
            if value is None:
                raise UserError(f"{rows.place(index)}: field {name!r} is null")
            if name == spec.answers or name in spec.anchors:
                _check_strings(rows.place(index), name, value)
            elif isinstance(value, str):
                _check_unicode(rows.place(index), name, value)
            elif name not in spec.keep:
                raise UserError(f"{rows.place(index)}: field {name!r} must be a string, this is a {_kind(value)}")
        if (others := row.get(spec.alternatives)) is not None:
            _check_strings(rows.place(index), spec.alternatives, others)
        _tok_pos(rows.place(index), spec, row)


def _check_unicode(place: str, name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: field {name!r} has half a surrogate pair at character {error.start}") from None


def _check_strings(place: str, name: str, value: Any) -> None:
    if isinstance(value, str):
        _check_unicode(place, name, value)
        return
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{place}: field {name!r} must be a string or a list of strings, this is a {_kind(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise UserError(f"{place}: field {name!r}, entry {index}, must be a string, this is a {_kind(item)}")
        _check_unicode(place, name, item)


def _tok_pos(place: str, spec: DocumentSpec, row: Mapping[str, Any]) -> int | None:
    value = row.get(spec.tok_pos)
    if value is None or value != value:  # parquet has NaN where JSON has null
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or int(value) != value or value < 0:
        raise UserError(f"{place}: field {spec.tok_pos!r} must be a whole number of 0 or more, this is {value!r}")
    return int(value)


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _source(place: str, spec: DocumentSpec, row: Mapping[str, Any]) -> Source:
    return Source(
        row[spec.text],
        # Of a list, its first entry; an empty list is no string to look for, which drops the document.
        tuple((_strings(row[name]) or [""])[0] for name in spec.anchors),
        tuple(_strings(row.get(spec.alternatives) or [])),
        _tok_pos(place, spec, row),
    )


@dataclass
class Report:
    """What happened to a data set's rows on their way to prompts."""

    documents: int
    dropped_rows: list[int]
    without_answer: int = 0

    @property
    def dropped(self) -> int:
        return len(self.dropped_rows)


Progress = Callable[[int], object]
_WINDOWS: OrderedDict[tuple[Any, ...], list[Window | None]] = OrderedDict()
_WINDOWS_KEPT = 8  # a task's second variant finds the windows of its first: jrt_prompt has six data sets


def windows_of(
    rows: Rows, spec: DocumentSpec, tokenizer: Tokenizer, budget: Budget, progress: Callable[[int], Progress]
) -> list[Window | None]:
    """A window for every row (None: dropped), remembered for the next task over the same data set.

    progress: called with the number of rows when there is work to do, gives the function that `cut` reports to.
    """
    fields_read = (spec.text, spec.anchors, spec.alternatives, spec.tok_pos)
    key = (rows.key, fields_read, tokenizer.name, budget)
    if key not in _WINDOWS:
        sources = [_source(rows.place(index), spec, row) for index, row in enumerate(rows.rows)]
        _WINDOWS[key] = cut(sources, tokenizer, budget, progress(len(sources)))
        while len(_WINDOWS) > _WINDOWS_KEPT:
            _WINDOWS.popitem(last=False)
    _WINDOWS.move_to_end(key)
    return _WINDOWS[key]


def prepare(
    rows: Rows, spec: DocumentSpec, windows: Sequence[Window | None] | None
) -> tuple[list[dict[str, Any]], Report]:
    """The documents that prompts are made of, in the data set's order, and what became of the others.

    windows: one per row, or None for whole documents, of which none is dropped.
    """
    optional = [name for name in spec.identity if any(row.get(name) is not None for row in rows.rows)]
    names = dict.fromkeys([*optional, *spec.required()])
    documents, dropped, mute = [], [], 0
    for index, row in enumerate(rows.rows):
        window = windows[index] if windows is not None else None
        if windows is not None and window is None:
            dropped.append(index)
            continue
        document = {name: row.get(name) for name in names}
        if window is not None:
            document[spec.text] = window.text
        answers = _strings(row[spec.answers])
        mute += not answers
        rendered = _rendered(rows.place(index), spec, row)
        parts = clean.parts(spec.style, spec.variant, {**document, **rendered}, spec.text)
        documents.append(
            {
                **document,
                "jrt_row": index,
                "jrt_document": _identity(spec, row),
                "jrt_passage": parts.passage,
                "jrt_question": parts.question,
                "jrt_cue": parts.cue,
                **({"jrt_first": parts.first} if parts.first is not None else {}),
                "jrt_answers": answers,
                "jrt_document_tokens": window.document_tokens if window else None,
                "jrt_answer_position": window.answer_position if window else None,
                "jrt_answer_depth": _depth(parts.passage, answers),
            }
        )
    return documents, Report(len(rows.rows), dropped, mute)


def _rendered(place: str, spec: DocumentSpec, row: Mapping[str, Any]) -> dict[str, str]:
    """Question and cue of a `plain` document: fields of the row, or templates over it, as lm-eval resolves them."""
    if spec.style != "plain" or spec.question is None:
        return {}
    return {
        "jrt_question": _field_or_template(place, "question", spec.question, row),
        "jrt_cue": _field_or_template(place, "cue", spec.cue if spec.cue is not None else spec.question, row),
    }


def _field_or_template(place: str, part: str, name: str, row: Mapping[str, Any]) -> str:
    if name in row:
        if not isinstance(row[name], str):
            raise UserError(f"{place}: field {name!r} must be a string, this is a {_kind(row[name])}")
        return str(row[name])
    from jinja2 import TemplateError
    from lm_eval.utils import apply_template

    try:
        return str(apply_template(name, dict(row)))
    except TemplateError as error:
        raise UserError(f"{place}: the template of {part!r}, {name!r}, fails: {_first_line(error)}") from None


def _identity(spec: DocumentSpec, row: Mapping[str, Any]) -> list[str]:
    """Short names of a row's document: its identifiers, and how its text begins."""
    named = [(name, str(row[name])) for name in spec.identity if row.get(name) is not None]
    named.append(("text", row[spec.text].strip()[:200]))  # a cloze at its end differs from row to row
    return [hashlib.blake2b(f"{name}\0{value}".encode(), digest_size=6).hexdigest() for name, value in named]


def _depth(passage: str, answers: Sequence[str]) -> float | None:
    place = find(passage, answers[0]) if answers and answers[0] else -1
    return round(place / max(1, len(passage)), 4) if place >= 0 else None
