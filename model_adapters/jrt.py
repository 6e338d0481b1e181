"""`--model jrt`: JRT-RNN, Based, Mamba, attention and any transformers causal LM in lm-eval.

docs/models.md lists the arguments, and what `get_model_info` adds to the results file under `config`.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from jrt_eval.model_adapters.arguments import choice, flag, integer, mapping, refuse_unknown, token_or_text
from lm_eval import evaluator, utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import nn
from tqdm import tqdm

from jrt_eval.errors import UserError
from jrt_eval.kernels import linear
from jrt_eval.kernels.dispatch import BACKENDS
from jrt_eval.models.auto import load_model
from jrt_eval.models.context import ON_TRUNCATION, context_length, shorten
from jrt_eval.models.interface import LanguageModel
from jrt_eval.models.recurrent.model import RecurrentModel
from jrt_eval.models.stopping import StopStrings
from jrt_eval.models.tokenizers import load_tokenizer, tokenizer_errors
from jrt_eval.models.transformers import TransformersModel
from jrt_eval.models.weights import as_dtype

log = logging.getLogger(__name__)

SHORT_PROMPTS = ("left_pad", "read_twice", "iterate")
_CPU_TOKENS = 8192  # batch_size=auto on a CPU: tokens per batch; more take memory and no less time


class JRTLM(TemplateLM):  # type: ignore[misc]
    """The language model of `--model jrt` (aliases `jrt_lm`, `based_lm`); docs/models.md explains every argument.

    pretrained (alias checkpoint_name): hub id, folder, or a module of `jrt_eval.load_model` or transformers. tokenizer:
    hub id, folder or object; by default the model's own (`jrt_eval.models.tokenizers`). dtype: auto, float32, bfloat16,
    float16. mixed_precision_dtype: autocast over `dtype` weights (the published numbers: float32 weights, bfloat16
    autocast). max_length: tokens of context and continuation together (`jrt_eval.models.context`). on_truncation: what
    happens to longer contexts: left or middle (where they are cut), skip (their document is not scored) or fail. short_prompt: what
    JRT-RNN does with a prompt shorter than its encoder: left_pad, read_twice or iterate. backend: kernels to use. arch:
    overrides the family that config.json describes. cuda_graphs: decode through CUDA graphs on a
    GPU. cpu_linear: the product of linear layers on a CPU (auto, torch or packed). attn_implementation, device_map,
    parallelize, peft, think_end_token, enable_thinking, chat_template_args: as for lm-eval's `hf`.
    """

    def __init__(
        self,
        pretrained: str | nn.Module | None = None,
        *,
        checkpoint_name: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        tokenizer: Any = None,
        dtype: str | torch.dtype | None = "auto",
        mixed_precision_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        parallelize: bool | str = False,
        attn_implementation: str | None = None,
        peft: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = 64,
        max_length: int | str | None = None,
        max_gen_toks: int | str = 256,
        arch: str | None = None,
        backend: str = "auto",
        short_prompt: str = "left_pad",
        trust_remote_code: bool | str = False,
        add_bos_token: bool | str | None = None,
        prefix_token_id: int | str | None = None,
        cuda_graphs: bool | str = True,
        cpu_linear: str = "auto",
        on_truncation: str = "left",
        think_end_token: str | int | None = None,
        enable_thinking: bool | str | None = None,
        chat_template_args: dict[str, Any] | str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(unknown)
        pretrained = pretrained if pretrained is not None else checkpoint_name
        if pretrained is None or pretrained == "":
            raise UserError("--model_args names no checkpoint: say pretrained=<hub id or folder>")
        if backend in ("causal", "seq2seq", "default"):
            raise UserError(f"backend={backend} is an argument of --model hf; here it names kernels")
        self.short_prompt = choice("short_prompt", short_prompt, list(SHORT_PROMPTS))
        self.revision = None if revision is None else str(revision)
        self.mixed_precision_dtype = as_dtype(mixed_precision_dtype)
        self._device: torch.device
        self._set_up_processes(device)

        trust = flag("trust_remote_code", trust_remote_code)
        backend = choice("backend", backend, ["auto", *BACKENDS])
        self._model: LanguageModel
        if isinstance(pretrained, nn.Module):
            self._model = _wrapped(pretrained, backend, flag("cuda_graphs", cuda_graphs))
        else:
            self._model = load_model(
                str(pretrained),
                device=self._device,
                dtype=dtype,
                backend=backend,
                arch=arch,
                revision=self.revision,
                subfolder=subfolder,
                trust_remote_code=trust,
                cuda_graphs=flag("cuda_graphs", cuda_graphs),
                # autocast decides about the dtype of each product, so it has to be PyTorch's
                cpu_linear="torch" if self.mixed_precision_dtype and cpu_linear == "auto" else cpu_linear,
                attn_implementation=attn_implementation,
                device_map="auto" if device_map is None and flag("parallelize", parallelize) else device_map,
                peft=peft,
            )
        self._device = self._model.device
        self.pretrained = pretrained if isinstance(pretrained, str) else self._model.source
        if tokenizer is None or isinstance(tokenizer, str):
            tokenizer = self._load_tokenizer(tokenizer, subfolder, trust)
        self.tokenizer = tokenizer
        self._check_vocabulary()
        self.add_bos_token = None if add_bos_token is None else flag("add_bos_token", add_bos_token)
        self.custom_prefix_token_id = (
            None if prefix_token_id is None else integer("prefix_token_id", prefix_token_id, 0)
        )
        length = context_length(self._model.raw_config, tokenizer) if max_length is None else max_length
        self._max_length = integer("max_length", length)
        self._max_gen_toks = integer("max_gen_toks", max_gen_toks)
        self.max_batch_size = integer("max_batch_size", max_batch_size or 64)
        self._auto_batch = str(batch_size).startswith("auto")
        self._batch_size = 0 if self._auto_batch else integer("batch_size", batch_size)
        self.batch_sizes: dict[int, int] = {}
        self.on_truncation = choice("on_truncation", on_truncation, list(ON_TRUNCATION))
        if self.on_truncation == "skip" and not (getattr(evaluator, "_jrt_eval", False) and self.world_size == 1):
            raise UserError(
                "on_truncation=skip works in one process, and with JRT_EVAL_AUTOLOAD=0 after jrt_eval.register()"
            )
        self.truncated_requests = {"generate_until": 0, "loglikelihood": 0}
        self._cut: list[int] = []  # of the last call's requests, the tokens that exceeded the limit
        self._set_up_thinking(think_end_token, enable_thinking, chat_template_args)

    # --- set-up

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> JRTLM:
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> JRTLM:
        """`--model_args` takes precedence over `--device` and `--batch_size`, which lm-eval passes on as well."""
        rest = {name: value for name, value in (additional_config or {}).items() if value is not None}
        for name in rest.keys() & arg_dict.keys():
            given = rest.pop(name)
            default = name == "batch_size" and given == 1  # lm-eval's default
            if str(given) != str(arg_dict[name]) and not default:
                log.warning("%s=%s of --model_args is used, not --%s %s", name, arg_dict[name], name, given)
        return cls(**arg_dict, **rest)

    def _set_up_processes(self, device: str | torch.device | None) -> None:
        """One process, or a rank of `accelerate launch` (data parallel: lm-eval gives each rank its share of the
        requests).
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=str(device) == "cpu")
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            self._device = self.accelerator.device
            # lm-eval leaves the group to the interpreter, where a rank whose peer has gone may abort.
            atexit.register(self.accelerator.end_training)
            return
        name = str(device) if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._device = torch.device(name)
        except RuntimeError:
            raise UserError(f"device={name} is no device that torch knows (cpu, cuda, cuda:1, mps)") from None
        if self._device.type == "cuda" and not torch.cuda.is_available():
            # lm-eval's command line says cuda:0 where the user says nothing
            log.warning("torch %s sees no GPU: running on the CPU instead of %s", torch.__version__, name)
            self._device = torch.device("cpu")

    def _load_tokenizer(self, name: str | None, subfolder: str | None, trust_remote_code: bool) -> Any:
        """The tokenizer that the user names, else the model's own at the model's revision."""
        if name:
            return load_tokenizer(name, trust_remote_code=trust_remote_code)
        if not self.pretrained:
            raise UserError("a model given as a module without a name needs its tokenizer too: give tokenizer=...")
        return load_tokenizer(self.pretrained, self.revision, subfolder=subfolder, trust_remote_code=trust_remote_code)

    def _check_vocabulary(self) -> None:
        """Refuse a tokenizer of another model: tokens beyond the embedding table, added ones such as <pad> aside.

        An added token that a prompt does contain is refused when it occurs.
        """
        rows, tokenizer = self._model.vocabulary, self.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        if any(token not in added for token in range(rows, len(tokenizer))):
            raise UserError(
                f"{self.pretrained} has {rows:,} rows in its vocabulary, the tokenizer "
                f"{tokenizer.name_or_path} {len(tokenizer):,} tokens: they do not belong together; "
                "give the model's own as tokenizer=..."
            )

    def _set_up_thinking(self, end: str | int | None, enable: bool | str | None, template: Any) -> None:
        self.think_end_token = token_or_text(end)
        self.chat_template_args = mapping("chat_template_args", template)
        self.enable_thinking = None if enable is None else flag("enable_thinking", enable)
        if self.enable_thinking is not None:
            self.chat_template_args["enable_thinking"] = self.enable_thinking
        if self.enable_thinking and end is None:
            raise UserError("enable_thinking=True needs think_end_token=<the token that ends the thinking>")

    # --- what lm-eval asks

    @property
    def model(self) -> LanguageModel:
        return self._model

    @property
    def config(self) -> Any:
        return self._model.config

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's end-of-text token, else the config's; None if neither has one."""
        end = self.tokenizer.eos_token_id
        ends = self._model.end_tokens if end is None else [end]
        return int(ends[0]) if ends else None

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced with."""
        if self.custom_prefix_token_id is not None:
            return self.custom_prefix_token_id
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise UserError(
            "the tokenizer has no begin- or end-of-text token for an empty context: give prefix_token_id=<id>"
        )

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        return self._max_gen_toks

    @property
    def batch_size(self) -> int | str:
        return "auto" if self._auto_batch else self._batch_size

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        gathered: torch.Tensor = self.accelerator.gather(tensor) if self.world_size > 1 else tensor
        return gathered

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self.world_size <= 1:
            return [obj]
        result = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj=obj, object_gather_list=result, dst=dst)
        return result

    def barrier(self) -> None:
        if self.world_size > 1:
            self.accelerator.wait_for_everyone()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if not chat_template:
            return None
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise self._no_chat()
        template: str | None = super().chat_template(chat_template)
        return template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise self._no_chat()
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.chat_template_args,
        )
        return text

    def _no_chat(self) -> UserError:
        return UserError(f"{self.pretrained} is a base model without a chat template: drop --apply_chat_template")

    def get_model_info(self) -> dict[str, Any]:
        """Facts about the model for the results file's `config` (docs/models.md lists the keys)."""
        model = self._model
        state = model.state_bytes(self.max_length)
        return {
            "model_num_parameters": model.num_parameters(),
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "model_mixed_precision_dtype": str(self.mixed_precision_dtype).removeprefix("torch.")
            if self.mixed_precision_dtype
            else None,
            "model_revision": self.revision or "main",
            "model_sha": "",
            "model_family": model.family,
            "model_batching": model.batching.decode,
            "model_batching_reason": model.batching.reason,
            "model_kernels": dict(model.kernels),
            "model_state_bytes": state.total,
            "model_attention_cache_bytes": state.attention,
            "model_recurrent_state_bytes": state.recurrent,
            "model_convolution_state_bytes": state.convolution,
            "model_max_length": self.max_length,
            "model_truncated_requests": dict(self.truncated_requests),
            "model_on_truncation": self.on_truncation,
            "model_encoder_length": model.enc_length,
            "model_short_prompt": self.short_prompt if model.enc_length else None,
            "model_cpu_linear": linear.products(model),  # type: ignore[arg-type]
            "model_tokenizer": str(self.tokenizer.name_or_path),
        }

    # --- tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        add = add_special_tokens if add_special_tokens is not None else self._adds_special(string)
        special = {} if add is None else {"add_special_tokens": add}
        with self._tokenizer_errors():
            tokens: list[int] = self.tokenizer.encode(string, **special)
        return tokens

    def _tokenizer_errors(self) -> AbstractContextManager[None]:
        return tokenizer_errors(f"the tokenizer {self.tokenizer.name_or_path} fails on a prompt")

    def _adds_special(self, string: str) -> bool | None:
        """Whether special tokens are added to a text; None: as the tokenizer does by itself."""
        start = self.tokenizer.bos_token
        return False if start and string.startswith(start) else self.add_bos_token

    def _prompts(self, contexts: list[str]) -> list[list[int]]:
        """Each context's tokens, through few calls, in which a fast tokenizer uses all cores."""
        groups: dict[bool | None, list[int]] = {}
        for i, context in enumerate(contexts):
            groups.setdefault(self._adds_special(context), []).append(i)
        prompts: list[list[int]] = [[] for _ in contexts]
        for add, rows in groups.items():
            special = {} if add is None else {"add_special_tokens": add}
            with self._tokenizer_errors():
                encoded = self.tokenizer([contexts[i] for i in rows], **special)["input_ids"]
            for i, tokens in zip(rows, encoded, strict=True):
                prompts[i] = tokens or [self.prefix_token_id]
        self._check_tokens(prompts)
        return prompts

    def _check_tokens(self, rows: Iterable[list[int]]) -> None:
        """Refuse tokens beyond the embedding table (`_check_vocabulary` lets added tokens pass)."""
        if len(self.tokenizer) <= self._model.vocabulary:
            return
        for row in rows:
            if row and max(row) >= self._model.vocabulary:
                raise UserError(
                    f"a prompt contains the token {self.tokenizer.convert_ids_to_tokens(max(row))!r}, which "
                    f"{self.pretrained} has no embedding for ({self._model.vocabulary:,} rows)"
                )

    def tok_decode(self, tokens: Sequence[int] | int, skip_special_tokens: bool = True) -> str:
        tokens = [tokens] if isinstance(tokens, int) else tokens
        # a padding row of the vocabulary can be the likeliest token; it has no text
        held = [t for t in tokens if t < len(self.tokenizer)]
        text: str = self.tokenizer.decode(
            held, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _model_call(self, inps: torch.Tensor) -> torch.Tensor:
        """Logits (batch, length, vocabulary) of whole token sequences."""
        with torch.no_grad(), self._precision():
            logits: torch.Tensor = self._model(inps.to(self.device)).logits
        return logits

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self._device.type, dtype=self.mixed_precision_dtype, enabled=self.mixed_precision_dtype is not None
        )

    # --- batches

    def _rows(self, longest: int, run: Callable[[int], Any]) -> int:
        """The batch size for rows of up to `longest` tokens; on a GPU `run(rows)` tries sizes.

        Each rank decides for itself: ranks may have different groups of requests, and no result depends on the batch.
        """
        if not self._auto_batch:
            return self._batch_size
        if self._device.type != "cuda":
            rows = max(1, min(self.max_batch_size, _CPU_TOKENS // max(longest, self._model.enc_length, 1)))
        else:
            rows = self.max_batch_size
            while rows > 1:
                try:
                    run(rows)
                    break
                except torch.cuda.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    rows //= 2
            torch.cuda.empty_cache()
        log.info("batch_size=auto: %d rows at up to %d tokens", rows, longest)
        self.batch_sizes[longest] = rows
        return rows

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked = [request.args for request in requests]
        answers: list[str] = [""] * len(asked)
        groups: dict[str, list[int]] = {}
        for i, (_, kwargs) in enumerate(asked):
            groups.setdefault(repr(sorted(kwargs.items(), key=lambda kv: kv[0])), []).append(i)
        bar = tqdm(total=len(asked), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")
        rooms = [self._room(kwargs) for _, kwargs in asked]
        prompts = self._fit("generate_until", self._prompts([context for context, _ in asked]), rooms)
        _record_cuts(requests, self._cut)
        for rows in groups.values():
            rows = [i for i in rows if prompts[i]]  # an empty one is skipped
            if not rows:
                continue
            kwargs = dict(normalize_gen_kwargs(asked[rows[0]][1], self.max_gen_toks))
            until = [term for term in kwargs.pop("until", []) if term]
            new = int(kwargs.pop("max_gen_toks"))
            kwargs.pop("max_length", None)
            # longest first: what does not fit into memory fails at once, and rows of a batch have similar lengths
            rows = sorted(rows, key=lambda i: (-len(prompts[i]), asked[i][0]))
            longest = len(prompts[rows[0]])
            stop_ids, texts = self._stops(until)

            stop_test = StopStrings(texts, self.tok_decode, self._token_texts) if texts else None

            def run(batch: list[list[int]], limit: int, kwargs: dict[str, Any] = kwargs, stop_ids: list[int] = stop_ids,
                    stop_test: StopStrings | None = stop_test) -> list[list[int]]:  # fmt: skip
                with torch.inference_mode(), self._precision():
                    return self._model.continue_prompts(
                        batch,
                        limit,
                        sampling=kwargs,
                        stop_ids=stop_ids,
                        stop_test=stop_test,
                        short_prompt=self.short_prompt,
                    )

            size = self._rows(longest + new, lambda n, m=longest, run=run: run([[0] * m] * n, 2))  # type: ignore[misc]
            for start in range(0, len(rows), size):
                chunk = rows[start : start + size]
                for i, tokens in zip(chunk, run([prompts[i] for i in chunk], new), strict=True):
                    answers[i] = self._text(tokens, stop_ids, texts)
                    self.cache_hook.add_partial("generate_until", asked[i], answers[i])
                bar.update(len(chunk))
        bar.close()
        return answers

    def _room(self, kwargs: dict[str, Any]) -> int:
        """Tokens that a prompt may have in front of the new ones."""
        new = integer("max_gen_toks", normalize_gen_kwargs(kwargs, self.max_gen_toks)["max_gen_toks"])
        if new >= self.max_length:
            raise UserError(
                f"max_gen_toks={new} leaves no room for a prompt in max_length={self.max_length}: "
                "lower max_gen_toks, or raise the model argument max_length"
            )
        return self.max_length - new

    def _fit(self, kind: str, prompts: list[list[int]], rooms: list[int]) -> list[list[int]]:
        """What the model reads of each prompt, by `on_truncation`; nothing of a skipped one."""
        self._cut = [max(0, len(prompt) - room) for prompt, room in zip(prompts, rooms, strict=True)]
        cut = sum(tokens > 0 for tokens in self._cut)
        if not cut:
            return prompts
        self.truncated_requests[kind] += cut
        first = next(i for i, tokens in enumerate(self._cut) if tokens)
        problem = f"{cut} of {len(prompts)} prompts exceed {rooms[first]} tokens, by up to {max(self._cut)}"
        if self.on_truncation == "fail":
            raise UserError(
                f"{problem}: raise the model argument max_length, or give on_truncation=left, middle or skip"
            )
        what = {
            "left": "their beginnings are cut off",
            "middle": "their middles are cut out",
            "skip": "they are skipped",
        }
        log.warning("%s: %s", problem, what[self.on_truncation])
        if self.on_truncation == "skip":
            return [[] if tokens else prompt for prompt, tokens in zip(prompts, self._cut, strict=True)]
        return [shorten(prompt, room, self.on_truncation) for prompt, room in zip(prompts, rooms, strict=True)]

    def _stops(self, until: list[str]) -> tuple[list[int], list[str]]:
        """Stop tokens (end-of-text tokens, and stop strings that are special tokens) and the other stop strings."""
        ids = [*self._model.end_tokens] if self.eot_token_id is None else [self.eot_token_id, *self._model.end_tokens]
        special = set(self.tokenizer.all_special_tokens)
        for term in until:
            if term in special:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(term)))
        return sorted(set(ids)), [term for term in until if term not in special]

    @cached_property
    def _token_texts(self) -> list[str]:
        """The text of each token by itself."""
        texts: list[str] = self.tokenizer.batch_decode(
            [[token] for token in range(len(self.tokenizer))],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return texts

    def _text(self, tokens: list[int], stop_ids: list[int], texts: list[str]) -> str:
        """The text after the thinking, if there is any, and before the first stop."""
        end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
        tokens = tokens[:end]
        if isinstance(self.think_end_token, int) and self.think_end_token in tokens:
            last = len(tokens) - 1 - tokens[::-1].index(self.think_end_token)
            text = self.tok_decode(tokens[last + 1 :]).lstrip()
        else:
            text = self.tok_decode(tokens)
        if isinstance(self.think_end_token, str):
            text = text.split(self.think_end_token)[-1].lstrip()
        for term in texts:
            text = text.split(term, 1)[0]
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if self.enable_thinking:
            raise UserError("enable_thinking=True works with generation tasks only; this task asks for log-likelihoods")
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        _record_cuts(requests, self._cut)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """log p of each continuation after its context, and whether greedy search would give it.

        Contexts are cut so that context and continuation, less its last token, fit `max_length`.
        """
        longest_continuation = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest_continuation > self.max_length:
            raise UserError(
                f"a continuation of {longest_continuation} tokens exceeds max_length={self.max_length}: "
                "raise it with max_length=..."
            )
        # lm-eval moves a context's trailing spaces to the continuation, so a context of spaces is empty
        contexts = [context or [self.prefix_token_id] for _, context, _ in requests]
        rooms = [self.max_length + 1 - len(continuation) for _, _, continuation in requests]
        fitting = self._fit("loglikelihood", contexts, rooms)
        pairs = [(context, continuation) for context, (_, _, continuation) in zip(fitting, requests, strict=True)]
        self._check_tokens(context + continuation for context, continuation in pairs)
        answers = [(0.0, True) if context else (float("-inf"), False) for context, _ in pairs]
        order = sorted(
            (i for i, pair in enumerate(pairs) if pair[0] and pair[1]),
            key=lambda i: (-len(pairs[i][0]) - len(pairs[i][1]), pairs[i][0]),
        )
        if self._model.shares_contexts:
            first: dict[tuple[int, ...], int] = {}
            for place, i in enumerate(order):
                first.setdefault(tuple(pairs[i][0]), place)
            order.sort(key=lambda i: first[tuple(pairs[i][0])])
        bar = tqdm(total=len(pairs), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")
        bar.update(len(pairs) - len(order))
        if order:
            longest = len(pairs[order[0]][0]) + len(pairs[order[0]][1])
            probe = [[0] * max(1, longest - 1)]
            size = self._rows(longest, lambda n: self._score(probe * n, [[0]] * n))
            for chunk in self._chunks(order, pairs, size):
                scored = self._score([pairs[i][0] for i in chunk], [pairs[i][1] for i in chunk])
                for i, (logps, greedy) in zip(chunk, scored, strict=True):
                    answers[i] = (float(logps.double().sum()), bool(greedy.all()))
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
                bar.update(len(chunk))
        bar.close()
        return answers

    def _score(
        self, contexts: list[list[int]], continuations: list[list[int]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with torch.inference_mode(), self._precision():
            return self._model.score(contexts, continuations, short_prompt=self.short_prompt)

    def _chunks(self, order: list[int], pairs: list[tuple[list[int], list[int]]], size: int) -> Iterable[list[int]]:
        """Batches of `size` distinct contexts where contexts are shared (and no more than 8 continuations each, on
        average).
        """
        shared = self._model.shares_contexts
        chunk: list[int] = []
        contexts: set[tuple[int, ...]] = set()
        for i in order:
            context = tuple(pairs[i][0])
            full = len(chunk) >= size
            if shared:
                full = len(chunk) >= 8 * size or (len(contexts) >= size and context not in contexts)
            if full:
                yield chunk
                chunk, contexts = [], set()
            chunk.append(i)
            contexts.add(context)
        if chunk:
            yield chunk

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            for window in utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                context, continuation = utils.make_disjoint_window(window)
                windows.append((None, context, continuation))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (logp, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals


def _record_cuts(requests: Sequence[Instance], cut: Sequence[int]) -> None:
    """Tell `jrt_eval.prompts.costs` how many tokens of each request exceeded the limit."""
    for request, tokens in zip(requests, cut, strict=True):
        request.jrt_tokens_cut = tokens


def _wrapped(model: nn.Module, backend: str, cuda_graphs: bool) -> LanguageModel:
    """A module of `load_model` as it is; one of transformers with our interface."""
    from transformers import PreTrainedModel

    if isinstance(model, (RecurrentModel, TransformersModel)):
        return model
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"pretrained is a {type(model).__name__}: give a hub id, a folder, or a model of jrt_eval.load_model"
        )
    return TransformersModel(model.eval(), backend=backend, cuda_graphs=cuda_graphs)
