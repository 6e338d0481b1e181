"""Documents: rows of a data set, windowed and cleaned into what prompts are made of.

`prepare` gives each row the fields that the task names, and these columns, which lm-eval's sample files keep:

    jrt_row               index of the row in the data set; a document has the same one in every variant
    jrt_document          names of the document; rows that share one belong to the same document
    jrt_passage, jrt_question, jrt_cue   the parts of the prompt (jrt_eval.prompts.clean); squad has jrt_first too
    jrt_answers           the gold answers, a list of strings; blank ones are left out
    jrt_document_tokens   tokens of the whole document, before the window cut it
    jrt_answer_position   tokens before the answer in the whole document
    jrt_answer_depth      place of the first gold answer in the passage that the model reads, 0 (head) to 1 (end)
    context_length        tokens of the window, including those kept for the answer; null for whole documents
    answer_depth          the depth at which the window was to place the answer; only where the run asks for one

The three before the last two are null where they are not known: without a tokenizer, or where the answer was not found.
A row gives a document for each pair of a length and a depth; these are next to each other and share `jrt_row`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from jrt_eval.errors import UserError, nearest
from jrt_eval.prompts import clean, templates
from jrt_eval.prompts.rows import SourceRows, check_fields, check_text, check_texts, place_in_tokens, strings
from jrt_eval.prompts.tokenization import Tokenizer
from jrt_eval.prompts.variants import check_variant
from jrt_eval.prompts.windows import Budget, Dropped, UncutDocument, Window, cut, find

STYLE_FIELDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "swde": ("key",),
    "fda": ("key",),
    "squad": ("question", "context"),
    "drop": ("question", "orig_question"),
    "nq": ("question", "orig_question"),
    "triviaqa": ("question", "orig_question"),
}


@dataclass(frozen=True)
class DocumentSpec:
    """What a task's YAML says under `document:`.

    text: the field with the document, which is windowed. answers: the field with the answer or a list of them.
    question, cue (style plain): what a read-twice prompt begins with, and what every prompt ends with; the name of a
    field, or a Jinja template over the row. The cue is the question unless it is given.
    style: how the document is cleaned (`jrt_eval.prompts.clean`). variant: see `jrt_eval.prompts.variants`.
    anchors: fields whose first match is the centre of the window (of a list: its first entry); default: the answers;
    []: the window is the document's head. alternatives, tok_pos: fields that say where else an answer may be.
    identity: fields that name the document. keep: more fields to keep in the sample files.
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
            names = values[key] if isinstance(values[key], tuple) else (values[key],)
            if wrong := [name for name in names if not isinstance(name, str)]:
                raise UserError(f"{where}: {key} holds {wrong[0]!r}, which is not a field name")
        try:
            check_variant(values.get("variant", "once"))
            clean.style_of(values.get("style", "plain"))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        spec = DocumentSpec(**values)
        if spec.style == "plain" and spec.question is None:
            raise UserError(f"{where}: 'question' is missing: name its field, or give a template")
        return spec

    def required(self) -> list[str]:
        """The fields that every row must have, in order. All but those of `keep` hold text."""
        names = [self.text, *STYLE_FIELDS[self.style], *self.anchors, self.answers, *self.keep]
        if self.style == "plain":  # "ask" is a field; "{{ask}}" and "Answer:" are templates
            names += [name for name in (self.question, self.cue) if name and name.isidentifier()]
        return list(dict.fromkeys(names))


def check(rows: SourceRows, spec: DocumentSpec) -> None:
    """Raise `UserError`, naming file, row and field, at the first row that the task cannot use."""
    required = spec.required()
    check_fields(rows, required)
    for index, row in enumerate(rows.rows):
        place = rows.place(index)
        for name in required:
            if name == spec.answers or name in spec.anchors:
                check_texts(place, name, row[name])
            elif name not in spec.keep or isinstance(row[name], str) or row[name] is None:
                check_text(place, name, row[name])
        if row.get(spec.alternatives) is not None:
            check_texts(place, spec.alternatives, row[spec.alternatives])
        place_in_tokens(place, spec.tok_pos, row)


def _uncut(place: str, spec: DocumentSpec, row: Mapping[str, Any], by_answer: bool) -> UncutDocument:
    """by_answer: the window is placed by the first gold answer that the document has, not by the anchors."""
    if by_answer:
        answers = [answer for answer in strings(row[spec.answers]) if answer.strip()] or [""]
        more = strings(row.get(spec.alternatives) or [])
        return UncutDocument(
            row[spec.text], (answers[0],), tuple(text for text in [*answers[1:], *more] if len(text) > 1)
        )
    return UncutDocument(
        row[spec.text],
        # Of a list, its first entry. An empty list leaves nothing to look for, which drops the document.
        tuple((strings(row[name]) or [""])[0] for name in spec.anchors),
        tuple(strings(row.get(spec.alternatives) or [])),
        place_in_tokens(place, spec.tok_pos, row),
    )


@dataclass
class Report:
    """What happened to the rows of a data set on their way to prompts.

    documents: rows that were looked at. dropped: those of them that lack a window, and why.
    """

    documents: int = 0
    dropped: dict[int, Dropped] = field(default_factory=dict)
    without_answer: int = 0

    @property
    def why(self) -> str | None:
        """The reasons in words, with their numbers where there are several."""
        reasons = Counter(self.dropped.values())
        if len(reasons) < 2:
            return next((reason.value for reason in reasons), None)
        return "; ".join(f"{reason.value} ({number})" for reason, number in reasons.most_common())


Progress = Callable[[int], object]
Windows = tuple[Window | Dropped, ...]  # of one document, one per budget
_WINDOWS: OrderedDict[tuple[Any, ...], list[Windows]] = OrderedDict()
_WINDOWS_KEPT = 8  # a task's second variant reuses the windows of its first; jrt_prompt has six data sets


def windows_of(
    rows: SourceRows,
    spec: DocumentSpec,
    tokenizer: Tokenizer,
    budgets: tuple[Budget, ...],
    progress: Callable[[int], Progress],
) -> list[Windows]:
    """The windows of every row, one per budget, remembered for the next task over the same data set.

    progress: called with the number of rows when there is work to do; returns the function that `cut` reports to.
    """
    by_answer = any(budget.depth is not None for budget in budgets)
    fields_read = (spec.text, spec.answers if by_answer else spec.anchors, spec.alternatives, spec.tok_pos)
    key = (rows.key, len(rows.rows), fields_read, tokenizer.name, budgets)
    if key not in _WINDOWS:
        uncut = [_uncut(rows.place(index), spec, row, by_answer) for index, row in enumerate(rows.rows)]
        _WINDOWS[key] = cut(uncut, tokenizer, budgets, progress(len(uncut)))
        while len(_WINDOWS) > _WINDOWS_KEPT:
            _WINDOWS.popitem(last=False)
    _WINDOWS.move_to_end(key)
    return _WINDOWS[key]


def prepare(
    rows: SourceRows,
    spec: DocumentSpec,
    budgets: Sequence[Budget],
    windows: Sequence[Windows],
    limit: int | None = None,
) -> tuple[list[dict[str, Any]], Report]:
    """The documents that prompts are made of, in the data set's order, and a report about the others.

    windows: of each row, one per budget; a row that lacks one is dropped, so that all budgets have the same rows. Without
    budgets each row is one whole document. limit: how many rows to use; default: all.
    """
    optional = [name for name in spec.identity if any(row.get(name) is not None for row in rows.rows)]
    names = list(dict.fromkeys([*optional, *spec.required()]))
    documents: list[dict[str, Any]] = []
    report = Report()
    for index, row in enumerate(rows.rows):
        if limit is not None and report.documents - len(report.dropped) == limit:
            break
        report.documents += 1
        if lacking := [window for window in (windows[index] if budgets else ()) if isinstance(window, Dropped)]:
            report.dropped[index] = lacking[0]
            continue
        for budget, window in zip(budgets, windows[index], strict=True) if budgets else [(None, None)]:
            kept = {name: row.get(name) for name in names}
            assert not isinstance(window, Dropped)
            document = _document(rows.place(index), spec, row, kept, window)
            report.without_answer += not document["jrt_answers"]
            documents.append({**document, "jrt_row": index, **cell_columns(budget)})
    return documents, report


def cell_columns(budget: Budget | None) -> dict[str, Any]:
    """The columns that tell which length and depth a document belongs to."""
    if budget is None:
        return {"context_length": None}
    depth = {} if budget.depth is None else {"answer_depth": budget.depth}
    return {"context_length": budget.context_length, **depth}


def _document(
    place: str, spec: DocumentSpec, row: Mapping[str, Any], kept: dict[str, Any], window: Window | None
) -> dict[str, Any]:
    """One document: the kept fields and the columns that begin with jrt_."""
    if window is not None:
        kept[spec.text] = window.text
    # A blank answer would be contained in every generation.
    answers = [answer for answer in strings(row[spec.answers]) if answer.strip()]
    parts = clean.parts(spec.style, spec.variant, {**kept, **_rendered(place, spec, row)}, spec.text)
    return {
        **kept,
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


def _rendered(place: str, spec: DocumentSpec, row: Mapping[str, Any]) -> dict[str, str]:
    """Question and cue of a document of style `plain`."""
    if spec.style != "plain" or spec.question is None:
        return {}
    cue = spec.cue if spec.cue is not None else spec.question
    return {
        "jrt_question": templates.field_or_template(place, "question", spec.question, row),
        "jrt_cue": templates.field_or_template(place, "cue", cue, row),
    }


def _identity(spec: DocumentSpec, row: Mapping[str, Any]) -> list[str]:
    """Short names of a row's document: hashes of its identifiers and of the beginning of its text."""
    named = [(name, str(row[name])) for name in spec.identity if row.get(name) is not None]
    named.append(("text", row[spec.text].strip()[:200]))  # a cloze at its end differs from row to row
    texts = [f"{name}\0{value}".encode(errors="surrogatepass") for name, value in named]
    return [hashlib.blake2b(text, digest_size=6).hexdigest() for text in texts]


def _depth(passage: str, answers: Sequence[str]) -> float | None:
    place = find(passage, answers[0]) if answers else -1
    return round(place / max(1, len(passage)), 4) if place >= 0 else None
