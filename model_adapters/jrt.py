"""`--model jrt`: JRT-RNN, Based, Mamba, attention and any transformers causal LM in lm-eval.

Beside lm-eval's usual arguments: `short_prompt` and `backend` (docs/models.md). What is told to lm-eval about the
model (`get_model_info`) stands in the results file under `config`.
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
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import nn
from tqdm import tqdm

from jrt_eval.errors import UserError, nearest
from jrt_eval.kernels import linear
from jrt_eval.kernels.dispatch import BACKENDS
from jrt_eval.models.auto import load_model
from jrt_eval.models.context import context_length
from jrt_eval.models.interface import LanguageModel
from jrt_eval.models.recurrent.model import JRTModel
from jrt_eval.models.stopping import StopStrings
from jrt_eval.models.tokenizers import load_tokenizer
from jrt_eval.models.transformers import TransformersModel
from jrt_eval.models.weights import as_dtype

log = logging.getLogger(__name__)

SHORT_PROMPTS = ("left_pad", "read_twice", "iterate")
_CPU_TOKENS = 8192  # batch_size=auto off the GPU: so many tokens at once, where more only take memory

_ARGUMENTS = [
    "pretrained", "checkpoint_name", "revision", "tokenizer", "dtype", "mixed_precision_dtype", "device",
    "batch_size", "max_batch_size", "max_length", "max_gen_toks", "arch", "backend", "short_prompt",
    "trust_remote_code", "add_bos_token", "prefix_token_id", "cuda_graphs", "cpu_linear",
]  # fmt: skip


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0"):
        raise UserError(f"{name}={value} is neither true nor false")
    return text in ("true", "1")


def _whole(name: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"{name}={value} is no whole number of at least 1")
    return number


class JRTLM(TemplateLM):  # type: ignore[misc]
    """The language model behind `--model jrt` (aliases `jrt_lm`, `based_lm`).

    pretrained (alias checkpoint_name): hub id, folder, or a module of `jrt_eval.load_model`. tokenizer: hub id,
    folder or object; by default the checkpoint's own, gpt2 for the released ones, EleutherAI/gpt-neox-20b for
    state-spaces' Mamba. dtype: auto, float32, bfloat16, float16. mixed_precision_dtype: autocast over `dtype` weights
    (the published numbers: float32 weights, bfloat16 autocast). max_length: tokens of context and continuation
    together. short_prompt: what JRT-RNN does with a prompt shorter than its encoder: left_pad, read_twice or iterate.
    backend: kernels to use. arch: overrides the family that config.json says. cuda_graphs: decode JRT and Based models
    through CUDA graphs, on a GPU. cpu_linear: the product of linear layers on a CPU (auto, torch or packed).
    """

    def __init__(
        self,
        pretrained: str | nn.Module | None = None,
        *,
        checkpoint_name: str | None = None,
        revision: str | None = None,
        tokenizer: Any = None,
        dtype: str | torch.dtype | None = "auto",
        mixed_precision_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
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
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise UserError(
                f"model argument {name!r} is not known, these are: {', '.join(_ARGUMENTS)}" + nearest(name, _ARGUMENTS)
            )
        pretrained = pretrained if pretrained is not None else checkpoint_name
        if pretrained is None or pretrained == "":
            raise UserError("--model_args names no checkpoint: say pretrained=<hub id or folder>")
        if short_prompt not in SHORT_PROMPTS:
            raise UserError(
                f"short_prompt={short_prompt} is not known, these are: {', '.join(SHORT_PROMPTS)}"
                + nearest(str(short_prompt), list(SHORT_PROMPTS))
            )
        if backend not in ("auto", *BACKENDS):
            raise UserError(
                f"backend={backend} is not known, these are: {', '.join(('auto', *BACKENDS))}"
                + nearest(str(backend), ["auto", *BACKENDS])
            )
        self.short_prompt = short_prompt
        self.revision = None if revision is None else str(revision)
        self.mixed_precision_dtype = as_dtype(mixed_precision_dtype)
        self._set_up_processes(device)

        trust = _flag("trust_remote_code", trust_remote_code)
        model: LanguageModel
        if isinstance(pretrained, nn.Module):
            model = pretrained if isinstance(pretrained, (JRTModel, TransformersModel)) else _wrapped(pretrained)
            self._device = model.device
        else:
            model = load_model(
                str(pretrained),
                device=self._device,
                dtype=dtype,
                backend=backend,
                arch=arch,
                revision=self.revision,
                trust_remote_code=trust,
                cuda_graphs=_flag("cuda_graphs", cuda_graphs),
                # autocast decides about the dtype of each product, so it has to be PyTorch's
                cpu_linear="torch" if self.mixed_precision_dtype and cpu_linear == "auto" else cpu_linear,
            )
        self._model = model
        self.pretrained = pretrained if isinstance(pretrained, str) else model.source
        if tokenizer is None or isinstance(tokenizer, str):
            tokenizer = self._load_tokenizer(tokenizer, trust)
        self.tokenizer = tokenizer
        if len(tokenizer) > model.vocabulary:
            raise UserError(
                f"{self.pretrained} has {model.vocabulary:,} rows in its vocabulary, the tokenizer "
                f"{tokenizer.name_or_path} {len(tokenizer):,} tokens: they do not belong together; "
                "give the model's own as tokenizer=..."
            )
        self.add_bos_token = None if add_bos_token is None else _flag("add_bos_token", add_bos_token)
        self.custom_prefix_token_id = None if prefix_token_id is None else int(prefix_token_id)
        self._max_length = (
            context_length(model.raw_config, tokenizer) if max_length is None else _whole("max_length", max_length)
        )
        self._max_gen_toks = _whole("max_gen_toks", max_gen_toks)
        self.max_batch_size = _whole("max_batch_size", max_batch_size or 64)
        self._auto_batch = str(batch_size).startswith("auto")
        self._batch_size = 0 if self._auto_batch else _whole("batch_size", batch_size)
        self.batch_sizes: dict[int, int] = {}

    # --- set-up

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> JRTLM:
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> JRTLM:
        """What stands in --model_args holds, lm-eval's own --device and --batch_size say the rest: it passes both on, and a name
        in each would be Python's TypeError.
        """
        rest = {name: value for name, value in (additional_config or {}).items() if value is not None}
        for name in rest.keys() & arg_dict.keys():
            given = rest.pop(name)
            default = name == "batch_size" and given == 1  # what lm-eval says where it was told nothing
            if str(given) != str(arg_dict[name]) and not default:
                log.warning("%s=%s in --model_args holds, not --%s %s", name, arg_dict[name], name, given)
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

    def _load_tokenizer(self, name: str | None, trust_remote_code: bool) -> Any:
        """The tokenizer that the user names, else the model's own at the model's revision."""
        if name:
            return load_tokenizer(name, trust_remote_code=trust_remote_code)
        if not self.pretrained:
            raise UserError("a model given as a module without a name needs its tokenizer too: give tokenizer=...")
        return load_tokenizer(self.pretrained, self.revision, trust_remote_code=trust_remote_code)

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
            "model_state_bytes": state.total,
            "model_attention_cache_bytes": state.attention,
            "model_recurrent_state_bytes": state.recurrent,
            "model_convolution_state_bytes": state.convolution,
            "model_max_length": self.max_length,
            "model_encoder_length": model.enc_length,
            "model_short_prompt": self.short_prompt if model.enc_length else None,
            "model_cpu_linear": linear.products(model),  # type: ignore[arg-type]
            "model_tokenizer": str(self.tokenizer.name_or_path),
        }

    # --- tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        add = add_special_tokens if add_special_tokens is not None else self._adds_special(string)
        special = {} if add is None else {"add_special_tokens": add}
        tokens: list[int] = self.tokenizer.encode(string, **special)
        return tokens

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
            for i, tokens in zip(
                rows, self.tokenizer([contexts[i] for i in rows], **special)["input_ids"], strict=True
            ):
                prompts[i] = tokens or [self.prefix_token_id]
        return prompts

    def tok_decode(self, tokens: Sequence[int] | int, skip_special_tokens: bool = True) -> str:
        tokens = [tokens] if isinstance(tokens, int) else tokens
        # padding rows of the vocabulary can be the likeliest token, and mean no text
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
        """Rows that fit a batch whose longest has `longest` tokens; `run(rows)` tries so many on the GPU.

        Ranks decide for themselves: they may hold different groups of requests, and no answer depends on the batch.
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
        prompts = self._prompts([context for context, _ in asked])
        for rows in groups.values():
            kwargs = dict(normalize_gen_kwargs(asked[rows[0]][1], self.max_gen_toks))
            until = [term for term in kwargs.pop("until", []) if term]
            new = _whole("max_gen_toks", kwargs.pop("max_gen_toks"))
            kwargs.pop("max_length", None)
            room = self.max_length - new
            if room < 1:
                raise UserError(f"max_gen_toks={new} leaves no room for a prompt in max_length={self.max_length}")
            cut = sum(len(prompts[i]) > room for i in rows)
            if cut:
                log.warning("%d of %d prompts exceed %d tokens: their beginnings are cut off", cut, len(rows), room)
            # longest first: what does not fit memory fails at once, and rows of a batch have like lengths
            rows = sorted(rows, key=lambda i: (-len(prompts[i]), asked[i][0]))
            longest = min(len(prompts[rows[0]]), room)
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
                for i, tokens in zip(chunk, run([prompts[i][-room:] for i in chunk], new), strict=True):
                    answers[i] = self._text(tokens, stop_ids, texts)
                    self.cache_hook.add_partial("generate_until", asked[i], answers[i])
                bar.update(len(chunk))
        bar.close()
        return answers

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
        """The text before the first stop."""
        end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
        text = self.tok_decode(tokens[:end])
        for term in texts:
            text = text.split(term, 1)[0]
        return text

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """log p of each continuation after its context, and whether greedy search would give it.

        Contexts are cut at their beginning so that context and continuation, less its last token, fit `max_length`.
        """
        pairs = []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens exceeds max_length={self.max_length}: "
                    "raise it with max_length=..."
                )
            # lm-eval counts a context's trailing spaces to the continuation: nothing is left of a context of spaces
            context = context or [self.prefix_token_id]
            over = max(0, len(context) + len(continuation) - self.max_length - 1)
            pairs.append((context[min(over, len(context) - 1) :], continuation))
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        order = sorted(
            (i for i, pair in enumerate(pairs) if pair[1]),
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


def _wrapped(model: nn.Module) -> TransformersModel:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"pretrained is a {type(model).__name__}: give a hub id, a folder, or a model of jrt_eval.load_model"
        )
    return TransformersModel(model.eval())
