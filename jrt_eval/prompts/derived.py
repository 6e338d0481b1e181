"""Variants of tasks that exist: `arc_easy_twice` is lm-eval's `arc_easy` with every question read twice.

`VariantIndex` takes the place of lm-eval's index of tasks. A name that is not in it, and that is a known name with a
variant's suffix (`jrt_eval.prompts.variants`), is derived when it is asked for: from a task, a group or a tag, of
lm-eval, of jrt-eval or of the user.

- A task of ours (with `document:` in its YAML) gets another variant of its document.
- Any other task becomes a subclass of its class. The evaluated question is repeated, or, with metadata `repeat: prompt`,
  the examples and the question. Examples, choices, targets, filters and metrics are those of the task.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import maybe_delimit
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from jrt_eval._version import __version__
from jrt_eval.errors import UserError
from jrt_eval.prompts import evaluated, templates, tokenization
from jrt_eval.prompts.caching import prompt_key
from jrt_eval.prompts.metadata import refuse_misspelt
from jrt_eval.prompts.variants import before_last_reading, neutral_characters, neutral_tokens, split_name

REPEATABLE = ("question", "prompt")
QUESTION_FIELDS = ("question", "query")


class VariantIndex(dict[str, Entry]):
    """lm-eval's index of tasks, which also holds every variant of what is in it."""

    def __missing__(self, name: str) -> Entry:
        entry = self._derive(name)
        if entry is None:
            raise KeyError(name)
        self[name] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self.base_of(name) is not None)

    def get(self, name: str, default: Any = None) -> Any:  # type: ignore[override]
        return self[name] if name in self else default  # noqa: SIM401 - dict.get does not ask __missing__

    def base_of(self, name: str) -> tuple[str, str] | None:
        """`(base, variant)` of a name that can be derived. `jrt_twice` is derived from `jrt_once`."""
        parts = split_name(name)
        if parts is None:
            return None
        base, variant = parts
        return next(
            ((known, variant) for known in (base, f"{base}_once") if super(VariantIndex, self).__contains__(known)),
            None,
        )

    def origin(self, name: str) -> str:
        """The name that `name` is derived from; itself where it is not derived."""
        found = self.base_of(name)
        return found[0] if found and self[name].yaml_path is None else name

    def matching(self, pattern: str) -> list[str]:
        """The derived names that `pattern` stands for, as `mmlu_*_twice`: variants of the names that match `mmlu_*`."""
        parts = split_name(pattern)
        if pattern in self or parts is None or not parts[0].strip("*"):
            return [pattern] if pattern in self else []
        base, variant = parts
        return [f"{name}_{variant}" for name in fnmatch.filter(list(self), base) if split_name(name) is None]

    def _derive(self, name: str) -> Entry | None:
        found = self.base_of(name)
        if found is None:
            return None
        base, variant = found
        entry = self[base]
        if entry.kind is Kind.TAG:
            return Entry(name, Kind.TAG, None, tags={f"{task}_{variant}" for task in entry.tags})
        config = deepcopy(load_yaml(entry.yaml_path) if entry.yaml_path else entry.cfg or {})
        if entry.kind is Kind.GROUP:
            return Entry(name, Kind.GROUP, None, cfg=self._group(config, name, variant))
        return Entry(name, Kind.PY_TASK, None, cfg=task_config(config, name, base, variant))

    def _group(self, config: dict[str, Any], name: str, variant: str) -> dict[str, Any]:
        members = config.get("task")
        members = [members] if isinstance(members, str) else members or []
        return {**config, "group": name, "task": [self._member(member, variant) for member in members]}

    def _member(self, member: Any, variant: str) -> Any:
        if isinstance(member, str):
            return member if split_name(member) else variant_name(member, variant)
        if "group" in member:
            if member["group"] in self:
                return {**member, "group": variant_name(member["group"], variant)}
            return self._group(member, member["group"], variant)
        task = member["task"]
        name = variant_name(task, variant)
        if task not in self:  # a task that the group defines in place
            self[name] = Entry(name, Kind.PY_TASK, None, cfg=task_config(dict(member), name, task, variant))
            return name
        return {**member, "task": name}


def variant_name(name: str, variant: str) -> str:
    """`jrt_once`, twice -> `jrt_twice`; `mmlu`, twice -> `mmlu_twice`."""
    return f"{name.removesuffix('_once')}_{variant}"


def task_config(config: dict[str, Any], name: str, base: str, variant: str) -> dict[str, Any]:
    """The config of the variant `name` of the task `base`. Raises `UserError` where there is nothing to repeat."""
    document = config.get("document")
    if isinstance(document, Mapping) and "doc_to_text" not in config:
        return {**config, "task": name, "document": {**document, "variant": variant}}
    kind: Any = config.get("class", ConfigurableTask)
    if not (isinstance(kind, type) and issubclass(kind, ConfigurableTask)):
        raise UserError(f"task {name}: {base} builds its prompts in a class of its own, so it has no variants")
    if (config.get("output_type") or getattr(kind, "OUTPUT_TYPE", None)) == "loglikelihood_rolling":
        raise UserError(f"task {name}: {base} scores whole texts (loglikelihood_rolling): it has no question to repeat")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(f"task {name}: {base} has images or sound in its prompts, which cannot be repeated")
    bases = (RepeatedTask,) if kind is ConfigurableTask else (RepeatedTask, kind)
    repeated = type(f"Repeated{kind.__name__}", bases, {"variant": variant, "base_task": base})
    return {**config, "task": name, "class": repeated}


class RepeatedTask(ConfigurableTask):  # type: ignore[misc]
    """A variant of the task class that comes next in the method resolution order."""

    variant: str
    base_task: str

    def __init__(
        self, data_dir: str | None = None, cache_dir: str | None = None, download_mode: Any = None, config: Any = None
    ) -> None:
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        self._name = str(config.get("task"))
        metadata = dict(config.get("metadata") or {})
        refuse_misspelt(metadata, self._name)
        self._repeat = metadata.get("repeat", "question")
        self._separator = metadata.get("separator", "\n")
        self._question = metadata.get("question")
        if self._repeat not in REPEATABLE:
            raise UserError(f"task {self._name}: metadata repeat={self._repeat!r}: use question or prompt")
        if not isinstance(self._separator, str):
            raise UserError(f"task {self._name}: metadata separator must be a string, got {self._separator!r}")
        self._tokenizer = _tokenizer(metadata) if self.variant == "padded" else None
        self._fewshot_seed: int | None = None
        self._doc: Mapping[str, Any] = {}
        self._repetitions = 0
        base = super().__init__
        if "config" in inspect.signature(base).parameters:
            base(config=config)
        else:
            base()
        self.config.metadata = {
            **(self.config.metadata or {}),
            **metadata,
            "jrt": {
                "variant": self.variant,
                "base_task": self.base_task,
                "repeat": self._repeat,
                "separator": self._separator,
                "padded_by": None if self.variant != "padded" else "tokens" if self._tokenizer else "characters",
            },
        }

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        self._fewshot_seed = seed
        super().set_fewshot_seed(seed)

    def build_all_requests(self, *args: Any, **kwargs: Any) -> None:
        """lm-eval's, with what decides the prompts in the key of its cache of requests."""
        tokenizer = self._tokenizer.name if self._tokenizer else None
        metadata = {key: value for key, value in self.config.metadata.items() if key != "jrt"}
        settings = (self.variant, self._repeat, self._separator, self._question, tokenizer, self._fewshot_seed)
        key = prompt_key(__version__, settings, vars(self.config) | {"metadata": metadata})
        kwargs["tokenizer_name"] = f"{kwargs.get('tokenizer_name', '')}-{key}"
        super().build_all_requests(*args, **kwargs)

    def build_qa_turn(self, *, q: str | None = None, a: Any = None, **kwargs: Any) -> Any:
        """lm-eval's, with the question repeated where there is no answer: in the turn that is evaluated."""
        if a is None and q is not None and self._repeat == "question":
            q = self._repeated(q)
        return super().build_qa_turn(q=q, a=a, **kwargs)

    def fewshot_context(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
        """lm-eval's prompt of `doc`, repeated. A chat template is applied afterwards: repetition is in the user's turn."""
        self._doc, self._repetitions = doc, 0
        if self._repeat == "prompt":
            context = self._whole_prompt(doc, *args, **kwargs)
        else:
            context = super().fewshot_context(doc, *args, **kwargs)
        if not self._repetitions:
            raise UserError(
                f"task {self._name}: {self.base_task} builds its prompts its own way, so it has no variants"
            )
        return context

    def _repeated(self, text: str) -> str:
        self._repetitions += 1
        reading = text.strip()
        opening = self._opening() + self._separator if self.variant == "question_first" else ""
        filler = neutral_tokens(lambda t: self._count(t)) if self._tokenizer else neutral_characters
        before = before_last_reading(
            self.variant, opening=opening, first=reading, again=reading, filler=filler, separator=self._separator
        )
        return before + text

    def _count(self, text: str) -> int:
        assert self._tokenizer is not None
        return self._tokenizer.count([text])[0]

    def _opening(self) -> str:
        """The question of the document at hand, for `question_first`."""
        if self._question is not None:
            return templates.field_or_template(f"task {self._name}", "question", str(self._question), self._doc).strip()
        for name in QUESTION_FIELDS:
            if isinstance(self._doc.get(name), str):
                return str(self._doc[name]).strip()
        raise UserError(
            f"task {self._name}: {self.base_task} has no field {' or '.join(QUESTION_FIELDS)}: give "
            '--metadata \'{"question": "FIELD_OR_TEMPLATE"}\''
        )

    def _whole_prompt(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
        template: Callable[..., str] | None = kwargs.get("chat_template")
        if kwargs.get("apply_chat_template") and template is not None:
            if kwargs.get("fewshot_as_multiturn") and kwargs.get("num_fewshot"):
                raise UserError(
                    f"task {self._name}: repeat=prompt puts the examples into the user's turn: drop --fewshot_as_multiturn"
                )
            kwargs["chat_template"] = self._repeating(template)
            return super().fewshot_context(doc, *args, **kwargs)
        context = super().fewshot_context(doc, *args, **kwargs)
        description = self.resolve_field(doc, self.config.description) or ""
        head = maybe_delimit(kwargs.get("system_instruction"), description, self.config.fewshot_delimiter)
        tail = kwargs.get("gen_prefix") or ""
        if isinstance(context, list):
            return [self._repeat_between(head, one, tail) for one in context]
        return self._repeat_between(head, context, tail)

    def _repeat_between(self, head: str, context: str, tail: str) -> str:
        """`context` with the text between the description and the beginning of the answer repeated."""
        body = context.removeprefix(head).removesuffix(tail)
        end = len(body.rstrip()) if tail else len(body)
        return head + self._repeated(body[:end]) + body[end:] + tail

    def _repeating(self, template: Callable[..., str]) -> Callable[..., str]:
        def render(messages: list[dict[str, Any]], **options: Any) -> str:
            last = max(i for i, message in enumerate(messages) if message["role"] == "user")
            repeated = {**messages[last], "content": self._repeated(messages[last]["content"])}
            return template([*messages[:last], repeated, *messages[last + 1 :]], **options)

        return render


def _tokenizer(metadata: Mapping[str, Any]) -> tokenization.Tokenizer | None:
    try:
        return tokenization.resolve(metadata) or evaluated.tokenizer()
    except UserError:
        return None  # lengths are then matched in characters, which the results record
