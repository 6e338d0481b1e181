"""Any change to a row of documents ends in prompts and scores, or in one line that names the file."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from jrt_eval.errors import UserError

DROP = {
    "context": "Ann has two cats. " * 9,
    "question": "How many? It is",
    "orig_question": "How many?",
    "answers": ["two"],
}
ROWS = {
    "drop": ("based_drop", DROP),
    "nq_1024": ("based_nq_1024", {**DROP, "id": "1", "tok_pos": 1, "alt_answers": ["2"]}),
    "fda": ("based-fda", {"doc_id": "1", "file_name": "f", "key": "maker", "value": "Acme", "text": "The maker is Acme."}),
}  # fmt: skip
ODD = st.sampled_from(
    [None, True, -1, 0, 2**63, 10**30, 1e300, float("nan"), float("inf"), "", " ", "\n", "x" * 3000, "\x00", "\x1b[31m", "\ud800", "{{ 1/0 }}",
     "two", [], {}, [[]], [None], ["", "two"], ["two"] * 300, {"a": 1}]
)  # fmt: skip


def change(data: st.DataObject, row: dict[str, Any]) -> bytes:
    """The row as a line of JSON, with a value replaced, a field removed or added, or bytes changed."""
    row = copy.deepcopy(row)
    key = data.draw(st.sampled_from([*row, "doc_id", "text", "extra"]))
    action = data.draw(st.sampled_from(["replace", "replace", "remove", "bytes", "nest"]))
    if action == "replace":
        row[key] = data.draw(ODD)
    elif action == "remove":
        row.pop(key, None)
    elif action == "nest":
        return f'{{"{key}": {"[" * 900}{"]" * 900}}}'.encode()
    line = bytearray(json.dumps(row).encode())
    if action == "bytes":
        at = data.draw(st.integers(0, len(line)))
        line[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4) | st.just(b"9" * 5000))
    return bytes(line).replace(b"\n", b" ")


@seed(0)
@settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_rows(load: Callable[..., Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ROWS)))
    dataset, row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / dataset / "validation.jsonl"
        file.parent.mkdir()
        file.write_bytes(json.dumps(row).encode() + b"\n" + change(data, row) + b"\n")
        try:
            task = load(f"jrt_{name}", data_dir=folder, tokenizer="mini", context_length=100)
            documents = list(task.eval_docs)
        except UserError as error:
            text = str(error)
            assert "\n" not in text and len(text) < 1000 + len(folder)
            assert folder in text or " field to keep " in text
            return
    assert 1 <= len(documents) <= 2
    for document in documents:
        prompt, target = task.doc_to_text(document), task.doc_to_target(document)
        assert isinstance(prompt, str)
        scores = task.process_results(document, [str(target)])
        assert all(0 <= value <= 1 for key, value in scores.items() if key in ("contains", "exact_match", "f1")), scores
