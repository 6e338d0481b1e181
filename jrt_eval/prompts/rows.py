"""Rows of a data set, from a folder, from the package or from the Hugging Face hub, checked field by field."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError, first_line
from jrt_eval.prompts.folder import task_folder


@dataclass(frozen=True)
class SourceRows:
    """The rows of a data set.

    origin: where they come from, for messages. key: changes whenever the rows may have changed. unit, numbers: how a
    message names a row (the line of its file, else its index).
    """

    origin: str
    rows: list[dict[str, Any]]
    key: tuple[Any, ...]
    unit: str = "row"
    numbers: list[int] = field(default_factory=list)

    def place(self, index: int) -> str:
        """`FILE, line 3`, for messages about a row."""
        return f"{self.origin}, {self.unit} {self.numbers[index] if self.numbers else index}"


def load_rows(
    dataset: str,
    *,
    split: str = "validation",
    name: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    replacement: Any = None,
    **kwargs: Any,
) -> SourceRows:
    """The rows of `<data_dir>/<dataset>/<split>.jsonl` (or .parquet), of a data set in the package, or of the hub.

    dataset: a hub id, optionally `ID@REVISION`; its last component names the folder. name: the configuration on the
    hub. data_dir: default: the environment variable JRT_EVAL_DATA_DIR. replacement: another id that the user chose,
    either for all data sets (a string) or by default id (a mapping). kwargs: for `datasets.load_dataset`.
    Raises `UserError`.
    """
    dataset, _, revision = _chosen(dataset, replacement).partition("@")
    folder = dataset.rstrip("/").rsplit("/", 1)[-1]
    data_dir = data_dir or os.environ.get("JRT_EVAL_DATA_DIR")
    places: list[Path] = []
    if data_dir:
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"data_dir {str(data_dir)!r} is not a folder")
        places.append(root / folder)
    if "/" not in dataset:
        places.append(task_folder() / folder)
    for place in places:
        for path in (place / f"{split}.jsonl", place / f"{split}.parquet"):
            if path.is_file():
                return read_file(path)
    if data_dir:
        raise UserError(
            f"no {split}.jsonl or {split}.parquet in {places[0]}: data_dir must hold {folder}/{split}.jsonl"
        )
    return _from_hub(dataset, name, split, {**kwargs, **({"revision": revision} if revision else {})})


def _chosen(dataset: str, replacement: Any) -> str:
    if replacement is None:
        return dataset
    if isinstance(replacement, Mapping):
        replacement = replacement.get(dataset, replacement.get(dataset.rsplit("/", 1)[-1], dataset))
    if not isinstance(replacement, str) or not replacement:
        raise UserError(f"metadata 'dataset' gives {replacement!r} for {dataset}: it must be a hub id")
    return replacement


def read_file(path: Path) -> SourceRows:
    """The rows of a .jsonl or .parquet file. Raises `UserError`, naming the line."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    numbers: list[int] = []
    if path.suffix == ".parquet":
        rows = _read_parquet(path)
    else:
        rows, numbers = _read_jsonl(path)
    if not rows:
        raise UserError(f"{path} is empty: it must hold a row per document")
    return SourceRows(str(path), rows, key, "line" if numbers else "row", numbers)


def _read_jsonl(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    rows, numbers = [], []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_parse_line(f"{path}, line {number}", line))
                numbers.append(number)
    return rows, numbers


def _parse_line(place: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: malformed JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise UserError(f"{place}: JSON that cannot be read: {first_line(error)}") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: a JSON object is needed, this is a {kind_of(row)}")
    return row


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file that can be read: {first_line(error)}") from None
    return rows


def _from_hub(dataset: str, name: str | None, split: str, kwargs: dict[str, Any]) -> SourceRows:
    import datasets

    trust = bool(kwargs.pop("trust_remote_code", False))  # a task's YAML may say so; nothing else does
    try:
        loaded = datasets.load_dataset(dataset, name, split=split, trust_remote_code=trust, **kwargs)
    except Exception as error:  # `datasets` raises whatever its many backends raise
        raise UserError(
            f"cannot load data set {dataset!r} (split {split}) from the hub: {first_line(error)}; offline, give "
            f"--metadata data_dir=FOLDER with {dataset.rsplit('/', 1)[-1]}/{split}.jsonl; another id: "
            f'--metadata \'{{"dataset": {{"{dataset}": "OTHER_ID"}}}}\''
        ) from error
    rows = list(loaded)
    if not rows:
        raise UserError(f"data set {dataset!r} has no rows in split {split}")
    return SourceRows(f"{dataset} ({split})", rows, ("hub", dataset, name, split, str(kwargs), loaded._fingerprint))


def kind_of(value: Any) -> str:
    """What JSON calls the type of `value`."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def check_text(place: str, name: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a string that UTF-8 can encode."""
    if value is None:
        raise UserError(f"{place}: field {name!r} is null")
    if not isinstance(value, str):
        raise UserError(f"{place}: field {name!r} must be a string, this is a {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: field {name!r} has half a surrogate pair at character {error.start}") from None


def check_texts(place: str, name: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a string or a list of strings."""
    if value is None or isinstance(value, str):
        check_text(place, name, value)
        return
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{place}: field {name!r} must be a string or a list of strings, this is a {kind_of(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise UserError(f"{place}: field {name!r}, entry {index}, must be a string, this is a {kind_of(item)}")
        check_text(place, name, item)


def strings(value: Any) -> list[str]:
    """A string or a list of strings as a list."""
    return [value] if isinstance(value, str) else list(value)


def place_in_tokens(place: str, name: str, row: Mapping[str, Any]) -> int | None:
    """The field `name`, an integer of 0 or more, or None where the row has none. Raises `UserError`."""
    value = row.get(name)
    if value is None or value != value:  # parquet has NaN where JSON has null
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or value < 0:
        raise UserError(f"{place}: field {name!r} must be an integer of 0 or more, this is {value!r}")
    return int(value)


def check_fields(rows: SourceRows, names: Iterable[str]) -> None:
    """Raise `UserError` at the first row that lacks one of the fields."""
    names = list(names)
    for index, row in enumerate(rows.rows):
        for name in names:
            if name not in row:
                raise UserError(
                    f"{rows.place(index)}: field {name!r} is missing: this task needs {', '.join(names)}, "
                    f"the row has {', '.join(map(str, row))[:200]}"
                )
