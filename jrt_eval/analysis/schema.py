"""The columns of `scores` and `predictions`: names, types and meaning. `docs/analysis.md` shows the same tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

_CATEGORY = pa.dictionary(pa.int32(), pa.string())
_TYPES = {
    "category": _CATEGORY,
    "str": pa.string(),
    "list[str]": pa.list_(pa.string()),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "time": pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True)
class Column:
    """A column: its name, its kind (a key of the types above; every kind may be missing), and what it means."""

    name: str
    kind: str
    doc: str

    @property
    def arrow(self) -> pa.DataType:
        return _TYPES[self.kind]


SCORES = (
    Column(
        "run_id",
        "category",
        "one lm-eval run = one result file: the start of its SHA-256; joins to predictions",
    ),
    Column("model", "category", "the model's label: lm-eval's name, with what tells two models of one name apart"),
    Column("model_name", "category", "the name as lm-eval wrote it (`pretrained=`, `model=`, ...)"),
    Column("model_source", "category", "lm-eval's `--model`: hf, jrt, vllm, ..."),
    Column("family", "category", "jrt, based, mamba, ...: from the run's config, else from the model's name"),
    Column("parameters", "int", "number of parameters, where the run recorded it"),
    Column("revision", "category", "the checkpoint's revision; its commit hash where lm-eval found one"),
    Column("task", "category", "lm-eval's task name"),
    Column(
        "dataset",
        "category",
        "the task without `jrt_`/`based_` and `_twice`: what once and twice have in common",
    ),
    Column(
        "variant",
        "category",
        "how the document was read: once, twice, thrice, padded, ...; missing for a task that has no other form",
    ),
    Column("group", "bool", "true for the aggregate row of a group of tasks"),
    Column("metric", "category", "contains, exact_match, f1, acc, ..."),
    Column(
        "filter",
        "category",
        "lm-eval's filter pipeline that the metric was computed after (`none` where there is none)",
    ),
    Column("higher_is_better", "bool", "the metric's direction, where the task says"),
    Column("value", "float", "the metric, as lm-eval computed it (0 to 1 for ours)"),
    Column("stderr", "float", "lm-eval's standard error; missing where it wrote N/A"),
    Column("n", "int", "documents evaluated"),
    Column("n_original", "int", "documents that the task has; more than `n` with `--limit` or `--samples`"),
    Column(
        "n_dropped",
        "int",
        "documents that the window left out because the answer has no place in them, where recorded",
    ),
    Column("n_truncated", "int", "prompts that were longer than the model reads, where recorded"),
    Column(
        "context_length", "int", "tokens of the window around the answer; missing: whole documents, or several lengths"
    ),
    Column(
        "windows",
        "str",
        "context lengths and answer depths of a task that was asked for several or for a depth, as JSON",
    ),
    Column("answer_length", "int", "tokens of the window kept for the answer"),
    Column("num_fewshot", "int", "in-context examples"),
    Column("gen_kwargs", "str", "`--gen_kwargs` as JSON; missing where none were given or nothing is generated"),
    Column("system_instruction", "str", "`--system_instruction`"),
    Column("chat_template", "category", "the chat template's name, or its hash; missing where none was applied"),
    Column("thinking", "bool", "whether the model was told to think before it answers; missing: the run does not say"),
    Column("fewshot_as_multiturn", "bool", "whether in-context examples were turns of a conversation"),
    Column("limit", "float", "`--limit`: number or fraction of documents; missing: all"),
    Column("batch_size", "category", "`--batch_size` as given (a number or auto)"),
    Column("dtype", "category", "the model's floating-point type"),
    Column("max_length", "int", "longest input of the model in the run"),
    Column("random_seed", "int", "seed of Python's random"),
    Column("numpy_seed", "int", "seed of NumPy"),
    Column("torch_seed", "int", "seed of PyTorch"),
    Column("fewshot_seed", "int", "seed of the few-shot sampler"),
    Column("state_bytes", "int", "bytes of recurrent state or cache per sequence, where the run recorded it"),
    Column("tokens_per_second", "float", "generation throughput, where the run recorded it"),
    Column(
        "prompt_tokens", "float", "prompt tokens per document, all its requests together, where the run recorded them"
    ),
    Column("generated_tokens", "float", "generated tokens per document, where the run recorded them"),
    Column("document_seconds", "float", "seconds of the model's calls per document, where the run recorded them"),
    Column("lm_eval_version", "category", "version of lm-eval"),
    Column("jrt_eval_version", "category", "version of jrt-eval, where the run recorded it"),
    Column("git_hash", "category", "commit of the folder that lm-eval ran in"),
    Column("task_version", "category", "the task's version"),
    Column("model_args", "str", "`--model_args` as one string"),
    Column("time", "time", "start of the run, UTC"),
    Column("seconds", "float", "duration of the run"),
    Column("file", "str", "the result file, relative to the collected folder (as given, if several were)"),
)

PREDICTIONS = (
    Column("run_id", "category", "joins to scores, together with `task`"),
    Column("model", "category", "as in scores"),
    Column("task", "category", "as in scores"),
    Column("dataset", "category", "as in scores"),
    Column("variant", "category", "as in scores"),
    Column("context_length", "int", "tokens of the document's window where the sample records them, else as in scores"),
    Column("filter", "category", "as in scores; a task with two filters has two rows per document"),
    Column("doc_id", "int", "the document's index as lm-eval wrote it; wrong with an unsorted `--samples`"),
    Column("row", "int", "the row of the data set, where our tasks recorded it: the same in every variant of a task"),
    Column("doc_key", "str", "the document's own identifier (`doc_id` or `id` in the data), where it has one"),
    Column(
        "document_names",
        "list[str]",
        "names of the document, `doc_key` among them or not: rows that share one are about one document",
    ),
    Column(
        "question", "str", "what was asked: the cue that the prompt ends with, else the document's `question` or `key`"
    ),
    Column("prompt", "str", "the text that the model read"),
    Column("prompt_hash", "str", "SHA-256 of the prompt"),
    Column(
        "prompt_tokens",
        "int",
        "tokens of the prompt (of all requests of a multiple-choice document), where the run or `--tokenizer` counted them",
    ),
    Column("prompt_chars", "int", "characters of the prompt"),
    Column(
        "doc_hash",
        "str",
        "lm-eval's hash of the document; differs between variants whose documents were processed differently",
    ),
    Column("doc_tokens", "int", "tokens of the whole document before the window cut it, where our tasks recorded it"),
    Column("answer_token", "int", "tokens of the whole document before the answer, where our tasks recorded it"),
    Column(
        "answer_depth",
        "float",
        "where the answer is in the passage that was read, 0 start, 1 end: as the sample records it, else the first gold "
        "answer's place",
    ),
    Column("answer_distance", "int", "characters from the end of the answer's last place to the passage's end"),
    Column(
        "answer_distance_tokens", "int", "the same in tokens, once `--tokenizer` or `count_tokens` has counted them"
    ),
    Column("target", "str", "the gold answer that the task names"),
    Column("targets", "list[str]", "all gold answers"),
    Column(
        "generation",
        "str",
        "the model's answer after lm-eval's filter; for multiple choice the choice it prefers",
    ),
)
"""The fixed columns of predictions; a float column `metric_<name>` per metric and `weight_<name>` per weight follow."""

METRIC_PREFIX = "metric_"
WEIGHT_PREFIX = "weight_"

SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
SETTINGS = (
    "task_version",
    "num_fewshot",
    "context_length",
    "windows",
    "answer_length",
    "gen_kwargs",
    "system_instruction",
    "chat_template",
    "thinking",
    "fewshot_as_multiturn",
    "limit",
)
"""Columns of scores that can change a score. Runs of a model and task that are equal here differ in their seeds only."""

DEPTH, LENGTH = "answer_depth", "context_length"
"""What a depth grid is made of: columns of predictions, and what samples call them (`jrt_answer_depth` and so on too)."""

RUN_COLUMNS = ("run_id", "model", "task", "dataset", "variant", "context_length")
"""What the result file says of each row of a sample file. A sample's own context length takes precedence."""


def scores_schema() -> pa.Schema:
    """The Arrow schema of scores."""
    return pa.schema([pa.field(c.name, c.arrow) for c in SCORES])


def predictions_schema(numbers: Iterable[str]) -> pa.Schema:
    """The Arrow schema of predictions with these number columns (`metric_...` and `weight_...`), sorted by name."""
    fixed = [pa.field(c.name, c.arrow) for c in PREDICTIONS]
    return pa.schema(fixed + [pa.field(name, pa.float64()) for name in sorted(set(numbers))])


def markdown(columns: tuple[Column, ...]) -> str:
    """The columns as a Markdown table, as docs/analysis.md shows it."""
    rows = [f"| `{c.name}` | {c.kind} | {c.doc} |" for c in columns]
    return "\n".join(["| column | type | meaning |", "| --- | --- | --- |", *rows])
