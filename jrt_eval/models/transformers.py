"""Any causal LM of transformers or flash-linear-attention, with the interface of `LanguageModel`."""

from __future__ import annotations

import inspect
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.errors import UserError
from jrt_eval.models.checkpoints import Checkpoint
from jrt_eval.models.interface import StateBytes, StopTest
from jrt_eval.models.recurrent.generation import right_padded
from jrt_eval.models.recurrent.model import score_tokens
from jrt_eval.models.weights import common_dtype, read_tensors

log = logging.getLogger(__name__)

# Recurrent classes that zero a masked token's input before and after the convolution, so that left padding leaves
# their state at zero. Other stateful models run in groups of equal length.
_MASKS_PADDING = {"mamba", "mamba2", "falcon_mamba"}


class TransformersModel(nn.Module):
    """A transformers causal LM. raw_config: of its config.json, if that is not in transformers' own form.

    group_by_length: batches hold rows of equal length only, because the class cannot mask padding.
    """

    shares_contexts = False

    def __init__(
        self, inner: Any, family: str, raw_config: Mapping[str, Any] | None = None, *, group_by_length: bool = False
    ) -> None:
        super().__init__()
        self.inner = inner
        self._family = family
        self._raw_config = raw_config
        self.group_by_length = group_by_length
        self.source = ""
        self.revision: str | None = None
        self._forward_takes = set(inspect.signature(inner.forward).parameters)

    @property
    def config(self) -> Any:
        return self.inner.config

    @property
    def family(self) -> str:
        return self._family

    @property
    def raw_config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.inner.config.to_dict() if self._raw_config is None else self._raw_config
        return config

    @property
    def enc_length(self) -> int:
        return 0

    @property
    def device(self) -> torch.device:
        return next(self.inner.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.inner.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""
        return int(self.inner.get_input_embeddings().weight.shape[0])

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.inner.parameters())

    def state_bytes(self, length: int) -> StateBytes:
        return StateBytes(recurrent=self.state_size(length))

    @torch.no_grad()
    def state_size(self, length: int = 2048) -> int:
        """Bytes of one sequence's cache after `length` tokens, measured on two short ones (linear in length, or
        constant).
        """
        short, long = 16, 24
        sizes = []
        for n in (short, long):
            ids = torch.zeros(1, n, dtype=torch.int64, device=self.device)
            out = self.inner(input_ids=ids, use_cache=True)
            cache = getattr(out, "cache_params", None)
            sizes.append(_nbytes(cache if cache is not None else getattr(out, "past_key_values", None)))
        return sizes[0] + (sizes[1] - sizes[0]) * (length - short) // (long - short)

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """transformers' own output; `.logits` (batch, length, vocabulary)."""
        return self.inner(input_ids=input_ids, **kwargs)

    def generate(self, input_ids: Tensor, max_new_tokens: int = 20, **kwargs: Any) -> Any:
        """transformers' own `generate`; greedy unless told otherwise."""
        kwargs.setdefault("do_sample", False)
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        return self.inner.generate(input_ids=input_ids, max_new_tokens=max_new_tokens, **kwargs)

    def _groups(self, sizes: Iterable[int]) -> list[list[int]]:
        """Row numbers that may share a batch."""
        groups: dict[int, list[int]] = defaultdict(list)
        for row, size in enumerate(sizes):
            groups[size if self.group_by_length else 0].append(row)
        return list(groups.values())

    @torch.no_grad()
    def continue_prompts(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        *,
        sampling: Mapping[str, Any],
        stop_ids: list[int],
        stop_test: StopTest | None = None,
        short_prompt: str = "left_pad",
    ) -> list[list[int]]:
        """Each prompt's new tokens, through transformers' `generate` (any of its arguments may stand in `sampling`)."""
        results: list[list[int]] = [[] for _ in prompts]
        for rows in self._groups(len(p) for p in prompts):
            for row, tokens in zip(
                rows,
                self._continue([prompts[r] for r in rows], max_new_tokens, dict(sampling), stop_ids, stop_test),
                strict=True,
            ):
                results[row] = tokens
        return results

    def _continue(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        sampling: dict[str, Any],
        stop_ids: list[int],
        stop_test: StopTest | None,
    ) -> list[list[int]]:
        from transformers import StoppingCriteria, StoppingCriteriaList

        width = max(len(p) for p in prompts)
        pad = stop_ids[0] if stop_ids else 0
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)

        class Stop(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
                new = input_ids[:, width:].tolist()
                done = [any(t in stop_ids for t in row) for row in new]
                if stop_test is not None:
                    done = [a or b for a, b in zip(done, stop_test([_until(r, stop_ids) for r in new]), strict=True)]
                return torch.tensor(done, device=input_ids.device)

        if not sampling.get("do_sample"):
            # transformers warns about, and some checkpoints set, sampling arguments that greedy search does not read
            sampling = {k: v for k, v in sampling.items() if k not in ("temperature", "top_p", "top_k", "min_p")}
            sampling |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        out = self.inner.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=stop_ids or None,
            stopping_criteria=StoppingCriteriaList([Stop()]),
            **sampling,
        )
        return [_until(row, stop_ids) for row in out[:, width:].tolist()]

    @torch.no_grad()
    def score(
        self, contexts: list[list[int]], continuations: list[list[int]], *, short_prompt: str = "left_pad"
    ) -> list[tuple[Tensor, Tensor]]:
        """As `JRTModel.score`; rows are padded on the right, where a causal model's valid tokens cannot see it."""
        results: list[Any] = [None] * len(contexts)
        whole = [c + t[:-1] for c, t in zip(contexts, continuations, strict=True)]
        for rows in self._groups(len(w) for w in whole):
            ids, _ = right_padded([whole[r] for r in rows], self.device)
            first = min(len(contexts[r]) for r in rows) - 1
            kwargs: dict[str, Any] = {"use_cache": False} if "use_cache" in self._forward_takes else {}
            if "logits_to_keep" in self._forward_takes:
                kwargs["logits_to_keep"] = ids.shape[1] - first
            logits = self.inner(input_ids=ids, **kwargs).logits[:, -(ids.shape[1] - first) :]
            start = [len(contexts[r]) - 1 - first for r in rows]
            width = max(len(continuations[r]) for r in rows)
            picked = [
                nn.functional.pad(x[s : s + width], (0, 0, 0, max(0, s + width - len(x))))
                for x, s in zip(logits, start, strict=True)
            ]
            scored = score_tokens(lambda x: x.float(), torch.stack(picked), [continuations[r] for r in rows])
            for row, result in zip(rows, scored, strict=True):
                results[row] = result
        return results


def _until(tokens: list[int], stop_ids: list[int]) -> list[int]:
    """Tokens up to the first stop token, which is kept."""
    for i, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: i + 1]
    return tokens


def _nbytes(cache: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors that a cache object holds."""
    seen = set() if seen is None else seen
    if id(cache) in seen:
        return 0
    seen.add(id(cache))
    if isinstance(cache, Tensor):
        return cache.numel() * cache.element_size()
    if isinstance(cache, Mapping):
        return sum(_nbytes(v, seen) for v in cache.values())
    if isinstance(cache, (list, tuple)):
        return sum(_nbytes(v, seen) for v in cache)
    if hasattr(cache, "__dict__") and not isinstance(cache, (type, nn.Module)):
        return sum(_nbytes(v, seen) for v in vars(cache).values())
    return 0


# --- transformers' own form, and fla


def load_transformers(
    checkpoint: Checkpoint,
    raw: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    fla: bool = False,
    trust_remote_code: bool = False,
) -> TransformersModel:
    """Any causal LM that transformers knows, or one of flash-linear-attention's."""
    import transformers
    from transformers import AutoModelForCausalLM

    if fla:
        _import_fla(str(raw.get("model_type")))
    if raw.get("auto_map") and not trust_remote_code and not _known(raw) and not fla:
        raise UserError(
            f"{checkpoint.name} brings its own modelling code, which is not run unless you say trust_remote_code=True"
        )
    whole = _look_into(checkpoint, quantised="quantization_config" in raw)
    name = "dtype" if tuple(int(x) for x in transformers.__version__.split(".")[:2]) >= (4, 56) else "torch_dtype"
    try:
        inner, info = AutoModelForCausalLM.from_pretrained(
            checkpoint.location,
            revision=checkpoint.revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **{name: dtype if dtype is not None else "auto"},
        )
    except UserError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{checkpoint.name}: transformers cannot load it: {line}") from error
    lost = sorted(f"missing {key}" for key in info.get("missing_keys", []))
    lost += [f"{k} has shape {tuple(a)}, expected {tuple(b)}" for k, a, b in info.get("mismatched_keys", [])]
    if lost:
        raise UserError(f"{checkpoint.name}: the weights do not fit the config: {'; '.join(lost[:4])}")
    for key, value in inner.named_parameters():
        if key in whole and value.is_floating_point():
            raise UserError(f"{checkpoint.name}: {key} is {whole[key]}, floating point was expected")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{checkpoint.name}: {key} holds NaN or infinite values; the file is damaged")
    kind = str(inner.config.model_type)
    stateful = bool(getattr(inner, "_is_stateful", False))
    group = fla or kind == "rwkv" or (stateful and kind not in _MASKS_PADDING)
    return TransformersModel(inner.to(device).eval(), kind, group_by_length=group)


def _look_into(checkpoint: Checkpoint, *, quantised: bool) -> dict[str, str]:
    """Refuse what our own reader of weight files refuses, in its words; return the tensors of whole numbers, by dtype."""
    whole: dict[str, str] = {}
    for path in checkpoint.weight_files():
        tensors = read_tensors(path)
        if quantised:
            continue
        common_dtype(tensors, checkpoint.name)
        whole |= {k: str(t.dtype).removeprefix("torch.") for k, t in tensors.items() if not t.is_floating_point()}
    return whole


def _known(raw: Mapping[str, Any]) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return raw.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _import_fla(kind: str) -> None:
    """Register fla's models in transformers, or say what is missing."""
    if not torch.cuda.is_available():
        raise UserError(f"{kind} models run on flash-linear-attention's Triton kernels, which need a GPU; none is here")
    try:
        import fla  # noqa: F401
    except ImportError as error:
        raise UserError(f"{kind} models need flash-linear-attention: pip install 'jrt-eval[gpu]' ({error})") from None
