"""The lm-eval task class behind our YAML files.

A YAML that includes our template has `class: !function jrt_eval.prompts.task.ReadTwiceTask` and one key that stock
tasks do not have: `document:` (`jrt_eval.prompts.documents.DocumentSpec`). Everything else is lm-eval's.

What a run did to the documents is in lm-eval's results files, under `configs.<task>.metadata.jrt`:

    variant, base_task     the variant of the prompts, and the task's name without it
    documents              rows of the data set that were looked at
    dropped                rows without a window (or without one of several); dropped_rows: their indices; dropped_why
    without_answer         documents without a gold answer, which score 0
    context_length, answer_length, answer_depth, tokenizer, source   the settings of the windows
    prompts                prompts that this process built
    truncated              prompts that lm-eval will cut; null where no tokenizer tells their length
    max_prompt_tokens, longest_prompt, tokens_lost     the limit, the longest prompt, the most that one prompt loses
    padded_by              how neutral text was measured, in tokens or in characters (variant padded)
    jrt_eval_version       version of this package

`truncated` is also a metric: the share of prompts that are cut, and 0 or 1 per sample. A sample's `doc` holds
`jrt_prompt_tokens` where a tokenizer counted them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import datasets
import pyarrow
from lm_eval.api.task import ConfigurableTask
from tqdm import tqdm

from jrt_eval._version import __version__
from jrt_eval.errors import UserError, first_line
from jrt_eval.models.context import context_length, context_length_of
from jrt_eval.prompts import clean, evaluated, tokenization
from jrt_eval.prompts import documents as docs
from jrt_eval.prompts.caching import prompt_key
from jrt_eval.prompts.fewshot import OtherDocuments
from jrt_eval.prompts.metadata import count_of, refuse_misspelt
from jrt_eval.prompts.metrics import score
from jrt_eval.prompts.requests import new_tokens, prompt_text
from jrt_eval.prompts.rows import SourceRows, load_rows
from jrt_eval.prompts.variants import Filler, neutral_characters, neutral_tokens
from jrt_eval.prompts.windows import Budget

# Everything that the template's `!function` names is importable from here.
__all__ = ["OtherDocuments", "ReadTwiceTask", "score"]

logger = logging.getLogger(__name__)

CONTEXT_LENGTH, ANSWER_LENGTH = 1000, 50  # the paper's Table 1


class ReadTwiceTask(ConfigurableTask):  # type: ignore[misc]
    """A generation task over documents that are windowed around their answer and read once or more often."""

    def __init__(
        self, data_dir: str | None = None, cache_dir: str | None = None, download_mode: Any = None, config: Any = None
    ) -> None:
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        self.spec = docs.DocumentSpec.of(config.pop("document", None), str(config.get("task")))
        metadata = config.get("metadata")
        config["metadata"] = {
            **(metadata if isinstance(metadata, Mapping) else {}),
            "document": {
                key: list(value) if isinstance(value, tuple) else value for key, value in vars(self.spec).items()
            },
        }
        # One split is read, and the few-shot examples are rows of it.
        config["test_split"] = config["fewshot_split"] = config.get("test_split") or "validation"
        self._tokenizer: tokenization.Tokenizer | None = None
        self._filler: Filler = neutral_characters
        self._fewshot_seed: int | None = None
        self._rows_key: tuple[Any, ...] = ()
        self._lengths: dict[tuple[Any, ...], int] = {}  # tokens of the prompt, by document
        self._limit: int | None = None  # tokens that a prompt may have
        super().__init__(data_dir, cache_dir, download_mode, config)

    # --- documents

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Load, check, window and clean the documents. Raises `UserError`."""
        config, metadata = self.config, self.config.metadata
        if not config.dataset_path:
            raise UserError(
                f"task {config.task}: dataset_path is missing: give a hub id, or a folder's name under data_dir"
            )
        refuse_misspelt(metadata, config.task)
        budgets = self._budgets()
        tokenizer = self._tokenizer = self._resolve_tokenizer(bool(budgets))
        if tokenizer is not None:
            self._filler = neutral_tokens(lambda text: tokenizer.count([text])[0])
        rows = load_rows(
            config.dataset_path,
            split=config.test_split,
            name=config.dataset_name,
            data_dir=metadata.get("data_dir"),
            replacement=metadata.get("dataset"),
            **(dataset_kwargs or {}),
        )
        self._rows_key = rows.key
        documents, report = self._documents(rows, budgets)
        config.metadata["jrt"] = self._record(rows, report, budgets)
        self._warn(rows, report)
        if not documents:
            raise UserError(f"{rows.origin}: all {report.documents} documents dropped: {report.why}")
        try:
            self.dataset = {config.test_split: datasets.Dataset.from_list(documents)}
        except (pyarrow.ArrowException, TypeError) as error:
            line = first_line(error)
            raise UserError(f"{rows.origin}: a field to keep changes its type from row to row: {line}") from None
        except (OverflowError, ValueError) as error:  # an integer beyond 64 bits, half a surrogate pair
            line = first_line(error)
            raise UserError(f"{rows.origin}: a field to keep has a value that no data set can store: {line}") from None

    def _documents(self, rows: SourceRows, budgets: tuple[Budget, ...]) -> tuple[list[dict[str, Any]], docs.Report]:
        """What prompts are made of. Metadata `documents` says how many rows are used; default: all."""
        limit = count_of(self.config.metadata, "documents", self.config.task)
        docs.check(rows, self.spec)
        return docs.prepare(rows, self.spec, budgets, self._windows(rows, budgets), limit)

    def _budgets(self) -> tuple[Budget, ...]:
        metadata = self.config.metadata
        try:
            return Budget.grid(
                metadata.get("context_length", CONTEXT_LENGTH),
                metadata.get("answer_length", ANSWER_LENGTH),
                metadata.get("answer_depth"),
            )
        except UserError as error:
            raise UserError(f"task {self.config.task}: {error}") from None

    def _resolve_tokenizer(self, needed: bool) -> tokenization.Tokenizer | None:
        try:
            tokenizer = tokenization.resolve(self.config.metadata) or evaluated.tokenizer()
        except UserError:
            if needed:
                raise
            return None  # without a window the tokenizer only counts prompts
        if needed and tokenizer is None:
            raise UserError(
                f"task {self.config.task}: windows need a tokenizer and this backend names none: give "
                "--metadata tokenizer=FOLDER_OR_HUB_ID, or context_length=null for whole documents"
            )
        return tokenizer

    def _windows(self, rows: SourceRows, budgets: tuple[Budget, ...]) -> list[docs.Windows]:
        if not budgets or self._tokenizer is None:
            return []
        with tqdm(desc=f"Windows of {self.config.task}", unit=" docs", leave=False) as bar:

            def start(total: int) -> docs.Progress:
                bar.reset(total)
                return bar.update

            return docs.windows_of(rows, self.spec, self._tokenizer, budgets, start)

    def _record(self, rows: SourceRows, report: docs.Report, budgets: tuple[Budget, ...]) -> dict[str, Any]:
        variant, name = self.spec.variant, str(self.config.task)
        return {
            "jrt_eval_version": __version__,
            "variant": variant,
            "base_task": name.removesuffix(f"_{variant}"),
            "documents": report.documents,
            "dropped": len(report.dropped),
            "dropped_rows": list(report.dropped)[:100],
            "dropped_why": report.why,
            "without_answer": report.without_answer,
            "context_length": _one_or_all([budget.context_length for budget in budgets]),
            "answer_length": budgets[0].answer_length if budgets else None,
            "answer_depth": _one_or_all([budget.depth for budget in budgets]),
            "tokenizer": self._tokenizer.name if self._tokenizer else None,
            "source": rows.origin,
            "prompts": None,
            "truncated": None,
            "padded_by": ("tokens" if self._tokenizer else "characters") if variant == "padded" else None,
        }

    def _warn(self, rows: SourceRows, report: docs.Report) -> None:
        if report.dropped:
            some = ", ".join(rows.place(row).rsplit(", ", 1)[-1] for row in list(report.dropped)[:5])
            logger.warning(
                "%s: %d of %d documents dropped: %s (%s of %s%s)",
                self.config.task, len(report.dropped), report.documents, report.why, some, rows.origin,
                ", ..." if len(report.dropped) > 5 else "",
            )  # fmt: skip
        if report.without_answer:
            logger.warning("%s: %d of %d documents have no gold answer and score 0", self.config.task,
                           report.without_answer, report.documents)  # fmt: skip

    # --- prompts

    def doc_to_text(self, doc: Any, doc_to_text: Any = None) -> Any:
        """The prompt of the task's variant, unless the YAML has a `doc_to_text` of its own."""
        if doc_to_text is not None or self.config.doc_to_text is not None:
            return super().doc_to_text(doc, doc_to_text)
        parts = clean.Parts(doc["jrt_passage"], doc["jrt_question"], doc["jrt_cue"], doc.get("jrt_first"))
        return clean.prompt(parts, self.spec.variant, self._filler)

    def build_all_requests(self, *args: Any, **kwargs: Any) -> None:
        """lm-eval's. Then count the prompts that are too long for the model, with their examples and chat template."""
        kwargs["tokenizer_name"] = f"{kwargs.get('tokenizer_name', '')}-{self._prompt_key()}"  # part of the cache's key
        super().build_all_requests(*args, **kwargs)
        record = self.config.metadata["jrt"]
        record["prompts"] = len(self._instances)
        if self._tokenizer is None:
            return
        lengths = self._tokenizer.count([prompt_text(instance.args[0]) for instance in self._instances])
        self._lengths = {_identity(i.doc): length for i, length in zip(self._instances, lengths, strict=True)}
        record["longest_prompt"] = max(lengths)
        if (model_length := self._max_length()) is None:
            return
        new = new_tokens(self.config.generation_kwargs)
        limit = self._limit = model_length - new
        over = [length - limit for length in lengths if length > limit]
        record |= {
            "truncated": len(over),
            "max_prompt_tokens": limit,
            "tokens_lost": max(over, default=0),
        }
        if over:
            logger.warning(
                "%s: %d of %d prompts are longer than %d tokens (the model's %d less %d new ones), by up to %d: %s. "
                "Lower context_length, or raise max_length.",
                self.config.task, len(over), len(lengths), limit, model_length, new,
                max(over), self._what_is_lost(),
            )  # fmt: skip

    def _what_is_lost(self) -> str:
        """What happens to prompts that are too long, in words."""
        given = self.config.metadata.get("on_truncation")
        match str(given) if given else evaluated.on_truncation():
            case "skip":
                return "they are skipped"
            case "fail":
                return "the model stops there"
            case "middle":
                return "their middles are cut out"
        lost = "the document's head first" if self.spec.variant == "once" else "the question first"
        return f"they are cut from the left, {'the examples first' if self.config.num_fewshot else lost}"

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        self._fewshot_seed = seed
        super().set_fewshot_seed(seed)

    def _prompt_key(self) -> str:
        """A hash of what decides the prompts: the data, the window, the config, the few-shot seed."""
        config = vars(self.config) | {"metadata": self.spec.variant}
        keys = ("context_length", "answer_length", "answer_depth", "documents", "tokenizer")
        window = [self.config.metadata["jrt"][key] for key in keys]
        return prompt_key(__version__, self._rows_key, vars(self.spec), window, config, self._fewshot_seed)

    def _max_length(self) -> int | None:
        """How many tokens the evaluated model's input may have; None where only its server knows."""
        if (length := evaluated.max_length()) is not None:
            return length
        metadata = self.config.metadata
        given = metadata.get("max_length")
        if given is not None and str(given).isdigit():
            return int(given)
        if evaluated.sends_texts():
            return None
        tokenizer = self._tokenizer and self._tokenizer.transformers
        own = metadata.get("pretrained") or metadata.get("checkpoint_name")
        if isinstance(own, str):
            try:
                return context_length_of(
                    own, tokenization.revision_of(metadata), tokenizer, subfolder=metadata.get("subfolder")
                )
            except UserError:  # not a checkpoint
                pass
        return context_length({}, tokenizer)

    # --- scores

    def process_results(self, doc: dict[str, Any], results: Any) -> dict[str, Any]:
        """lm-eval's, of the text before the first stop string, and whether this document's prompt is cut, where known.

        Adds `jrt_prompt_tokens` to doc, which lm-eval then writes to the sample file.
        """
        scores: dict[str, Any] = super().process_results(doc, [self._until_stop(text) for text in results])
        length = self._lengths.get(_identity(doc))
        if length is not None:
            doc["jrt_prompt_tokens"] = length
            if "truncated" in self._metric_fn_list and self._limit is not None:
                scores["truncated"] = float(length > self._limit)
        return scores

    def _until_stop(self, text: Any) -> Any:
        """The text before the first stop string. Servers may leave the string at its end, or write on."""
        until = (self.config.generation_kwargs or {}).get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop, 1)[0] if stop and isinstance(text, str) else text
        return text


def _one_or_all(values: list[Any]) -> Any:
    """What the windows share, else the list of all distinct values; None without windows."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else distinct or None


def _identity(doc: Mapping[str, Any]) -> tuple[Any, ...]:
    return doc["jrt_row"], doc["context_length"], doc.get("answer_depth")
