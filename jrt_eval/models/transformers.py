"""Models that run on transformers' classes: Mamba and Mamba-2 from the mamba_ssm layout, any causal LM, and fla's.

`TransformersModel` gives them the face of `JRTModel`: call, `generate`, `score`, `continue_prompts`, `state_size`.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.errors import UserError
from jrt_eval.models.auto import Source, assign, clean_keys, common_dtype, read_tensors
from jrt_eval.models.recurrent.generation import StopTest, right_padded
from jrt_eval.models.recurrent.model import score_tokens

log = logging.getLogger(__name__)

# Recurrent classes that zero a masked token's input before and after the convolution, so that left padding leaves
# their state at zero. Other stateful models run in groups of equal length.
_MASKS_PADDING = {"mamba", "mamba2", "falcon_mamba"}


class TransformersModel(nn.Module):
    """A transformers causal LM. `group_by_length`: never pad rows against each other, since it cannot mask padding."""

    def __init__(self, inner: Any, family: str, *, group_by_length: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self._family = family
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


# --- the mamba_ssm layout

_MAMBA1 = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "conv_bias": True, "bias": False}
_MAMBA2 = {"d_state": 128, "d_conv": 4, "expand": 2, "headdim": 64, "ngroups": 1, "chunk_size": 256, "conv_bias": True,
           "bias": False}  # fmt: skip
_NEUTRAL = {
    "layer", "use_fast_path", "use_mem_eff_path", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor",
    "A_init_range", "device", "dtype", "layer_idx", "process_group", "sequence_parallel", "conv_init",
}  # fmt: skip


def mamba_config(raw: Mapping[str, Any], source: str, arch: str | None = None) -> Any:
    """transformers' config of a mamba_ssm `config.json`; its defaults are mamba_ssm's. arch: mamba1 or mamba2 decides."""
    from transformers import Mamba2Config, MambaConfig

    def refuse(what: str) -> UserError:
        return UserError(f"{source}: {what}")

    ssm = raw.get("ssm_cfg") or {}
    if not isinstance(ssm, Mapping):
        raise refuse(f"ssm_cfg is {ssm!r}, an object is needed")
    layer = {"mamba1": "Mamba1", "mamba2": "Mamba2"}.get(str(arch).lower()) or ssm.get("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise refuse(f"ssm_cfg.layer is {layer!r}, known are 'Mamba1' and 'Mamba2'")
    if raw.get("attn_layer_idx"):
        raise refuse("attn_layer_idx names attention layers: hybrids of Mamba and attention are not known")
    if raw.get("d_intermediate"):
        raise refuse(f"d_intermediate is {raw['d_intermediate']!r}: Mamba with MLP layers is not known")
    if not raw.get("rms_norm", True):
        raise refuse("rms_norm is false: only Mamba with RMSNorm is known")
    defaults: dict[str, Any] = _MAMBA1 if layer == "Mamba1" else _MAMBA2
    more = {} if layer == "Mamba1" else {"rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "d_ssm": None,
                                         "dt_limit": None}  # fmt: skip
    for key, value in ssm.items():
        if key in _NEUTRAL or key in defaults:
            continue
        if key not in more or (value != more[key] and not (key == "dt_limit" and list(value) == [0.0, math.inf])):
            raise refuse(f"ssm_cfg.{key} is {value!r}, which is not known for {layer}")
    cfg = {**defaults, **{k: v for k, v in ssm.items() if k in defaults}}
    try:
        d_model, n_layer, vocab = int(raw["d_model"]), int(raw["n_layer"]), int(raw["vocab_size"])
    except (KeyError, TypeError, ValueError):
        raise refuse("d_model, n_layer and vocab_size are needed, as whole numbers") from None
    multiple = int(raw.get("pad_vocab_size_multiple", 8) or 1)
    common = {
        "vocab_size": -(-vocab // multiple) * multiple,
        "hidden_size": d_model,
        "num_hidden_layers": n_layer,
        "state_size": cfg["d_state"],
        "conv_kernel": cfg["d_conv"],
        "expand": cfg["expand"],
        "use_bias": bool(cfg["bias"]),
        "use_conv_bias": bool(cfg["conv_bias"]),
        "layer_norm_epsilon": float(raw.get("norm_epsilon", 1e-5)),
        "residual_in_fp32": bool(raw.get("residual_in_fp32", True)),
        "tie_word_embeddings": bool(raw.get("tie_embeddings", True)),
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if layer == "Mamba1":
        rank = cfg["dt_rank"]
        return MambaConfig(**common, time_step_rank=math.ceil(d_model / 16) if rank == "auto" else int(rank))
    inner = int(cfg["expand"] * d_model)
    if inner % cfg["headdim"]:
        raise refuse(f"expand * d_model = {inner} is no multiple of headdim {cfg['headdim']}")
    return Mamba2Config(
        **common,
        head_dim=cfg["headdim"],
        num_heads=inner // cfg["headdim"],
        n_groups=cfg["ngroups"],
        chunk_size=cfg["chunk_size"],
    )


def load_mamba(
    source: Source, raw: dict[str, Any], *, device: torch.device, dtype: torch.dtype | None, arch: str | None = None
) -> TransformersModel:
    """Mamba or Mamba-2 in the mamba_ssm layout, on transformers' classes."""
    from transformers import Mamba2ForCausalLM, MambaForCausalLM

    config = mamba_config(raw, f"{source.name}/config.json", arch)
    tensors: dict[str, Tensor] = {}
    for path in source.weight_files():
        tensors |= read_tensors(path)
    tensors = {k.replace("backbone.embedding.", "backbone.embeddings."): v for k, v in clean_keys(tensors).items()}
    embeddings, head = "backbone.embeddings.weight", "lm_head.weight"
    tied = bool(config.tie_word_embeddings)
    if tied and head in tensors:
        if embeddings in tensors and not (
            tensors[embeddings].data_ptr() == tensors[head].data_ptr()
            or torch.equal(tensors[embeddings], tensors[head])
        ):
            raise UserError(f"{source.name}: tie_embeddings is true, but {head} differs from {embeddings}")
        tensors[embeddings] = tensors.pop(head)
    with torch.device("meta"):
        inner = (MambaForCausalLM if config.model_type == "mamba" else Mamba2ForCausalLM)(config)
    kind = common_dtype(tensors, source.name)
    assign(
        inner,
        tensors,
        source=source.name,
        device=device,
        dtype=dtype or kind,
        optional=lambda key: tied and key == head,
    )
    if tied:
        inner.lm_head.weight = inner.backbone.embeddings.weight
    return TransformersModel(inner.eval(), config.model_type)


# --- transformers' own form, and fla


def load_transformers(
    source: Source,
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
    where = str(source.folder) if source.folder is not None else source.name
    if raw.get("auto_map") and not trust_remote_code and not _known(raw) and not fla:
        raise UserError(
            f"{source.name} brings its own modelling code, which is not run unless you say trust_remote_code=True"
        )
    whole = _look_into(source, quantised="quantization_config" in raw)
    name = "dtype" if tuple(int(x) for x in transformers.__version__.split(".")[:2]) >= (4, 56) else "torch_dtype"
    try:
        inner, info = AutoModelForCausalLM.from_pretrained(
            where,
            revision=source.revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **{name: dtype if dtype is not None else "auto"},
        )
    except UserError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{source.name}: transformers cannot load it: {line}") from error
    lost = sorted(f"missing {key}" for key in info.get("missing_keys", []))
    lost += [f"{k} has shape {tuple(a)}, expected {tuple(b)}" for k, a, b in info.get("mismatched_keys", [])]
    if lost:
        raise UserError(f"{source.name}: the weights do not fit the config: {'; '.join(lost[:4])}")
    for key, value in inner.named_parameters():
        if key in whole and value.is_floating_point():
            raise UserError(f"{source.name}: {key} is {whole[key]}, floating point was expected")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{source.name}: {key} holds NaN or infinite values; the file is damaged")
    kind = str(inner.config.model_type)
    stateful = bool(getattr(inner, "_is_stateful", False))
    group = fla or kind == "rwkv" or (stateful and kind not in _MASKS_PADDING)
    return TransformersModel(inner.to(device).eval(), kind, group_by_length=group)


def _look_into(source: Source, *, quantised: bool) -> dict[str, str]:
    """Refuse what our own reader of weight files refuses, in its words; return the tensors of whole numbers, by dtype."""
    whole: dict[str, str] = {}
    for path in source.weight_files():
        tensors = read_tensors(path)
        if quantised:
            continue
        common_dtype(tensors, source.name)
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
