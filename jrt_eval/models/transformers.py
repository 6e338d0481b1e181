"""Any causal LM of transformers or flash-linear-attention, with the interface of `LanguageModel`."""

from __future__ import annotations

import inspect
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.errors import UserError
from jrt_eval.models import cpu_inference
from jrt_eval.models.batching import Batching, Mode, measure
from jrt_eval.models.cache_size import cache_bytes
from jrt_eval.models.checkpoints import Checkpoint
from jrt_eval.models.generation_arguments import checked, explained
from jrt_eval.models.interface import StateBytes, StopTest, token_ids
from jrt_eval.models.recorded_decoding import RecordedDecoding
from jrt_eval.models.recurrent.generation import right_padded
from jrt_eval.models.recurrent.model import score_tokens
from jrt_eval.models.recurrent.reading import Section, short
from jrt_eval.models.transformers_kernels import provide, report, serving
from jrt_eval.models.weights import common_dtype, read_tensors

log = logging.getLogger(__name__)


class TransformersModel(nn.Module):
    """A transformers causal LM (the methods' contract is `jrt_eval.models.interface.LanguageModel`)."""

    shares_contexts = False

    def __init__(
        self,
        inner: Any,
        raw_config: Mapping[str, Any] | None = None,
        *,
        batching: Batching | None = None,
        backend: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        """raw_config: of a config.json that is not in transformers' form. batching: measured now if not given.

        backend: kernels of the recurrent functions that the class looks up; "torch" is plain transformers.
        cuda_graphs: decode through CUDA graphs on a GPU, where the class allows it.
        """
        super().__init__()
        self.inner = inner
        self.source = str(getattr(inner, "name_or_path", "") or "")
        self.revision: str | None = None
        self._raw_config = raw_config
        self._forward_takes = set(inspect.signature(inner.forward).parameters)
        self.backend = backend
        self.cuda_graphs = cuda_graphs
        self._recorded = RecordedDecoding()
        provide(inner)
        with serving(backend):
            self.batching = measure(inner) if batching is None else batching
        self._head_is_last: bool | None = None  # nothing follows the head's product; unknown until `score` looks

    @property
    def config(self) -> Any:
        return self.inner.config

    @property
    def raw_config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.inner.config.to_dict() if self._raw_config is None else self._raw_config
        return config

    @property
    def family(self) -> str:
        return str(self.inner.config.model_type)

    @property
    def enc_length(self) -> int:
        return 0

    @property
    def device(self) -> torch.device:
        return next(self.inner.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype  # type: ignore[no-any-return]

    @property
    def vocabulary(self) -> int:
        return int(self.inner.get_input_embeddings().weight.shape[0])

    @property
    def end_tokens(self) -> list[int]:
        """End-of-text tokens of generation_config.json and config.json."""
        if self._raw_config is not None:
            return token_ids(self._raw_config.get("eos_token_id"))
        generation = getattr(self.inner, "generation_config", None)
        given = [getattr(c, "eos_token_id", None) for c in (generation, self.inner.config)]
        return sorted({token for ids in given for token in token_ids(ids)})

    @property
    def kernels(self) -> dict[str, str]:
        """Who computes each recurrent function that the class looks up by name."""
        return report(self.inner, self.backend)

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.inner.parameters())

    def state_bytes(self, length: int) -> StateBytes:
        """As `LanguageModel.state_bytes`, measured on short sequences."""
        with serving(self.backend):
            return cache_bytes(self.inner, length)

    def state_size(self, length: int = 2048) -> int:
        """Bytes of one sequence's cache after `length` tokens."""
        return self.state_bytes(length).total

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """transformers' own output; `.logits` (batch, length, vocabulary)."""
        with serving(self.backend):
            return self.inner(input_ids=input_ids, **kwargs)

    def generate(self, input_ids: Tensor, max_new_tokens: int = 20, **kwargs: Any) -> Any:
        """transformers' own `generate`; greedy by default."""
        kwargs.setdefault("do_sample", False)
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        with serving(self.backend):
            return self.inner.generate(input_ids=input_ids, max_new_tokens=max_new_tokens, **kwargs)

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
        """As `LanguageModel.continue_prompts`; `sampling` may hold any argument of transformers' `generate`."""
        results: list[list[int]] = [[] for _ in prompts]
        for rows in _groups([len(p) for p in prompts], self.batching.decode):
            group = [prompts[r] for r in rows]
            for row, tokens in zip(
                rows, self._continue(group, max_new_tokens, dict(sampling), stop_ids, stop_test), strict=True
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
        from transformers import StoppingCriteriaList

        width = max(len(p) for p in prompts)
        pad = stop_ids[0] if stop_ids else 0
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        given, sampling = sampling, checked(sampling)
        if self.device.type == "cpu":
            sampling |= cpu_inference.growing_cache(self.inner, sampling)
        if stop_test is not None:
            sampling["stopping_criteria"] = StoppingCriteriaList([_criterion(stop_test, width)])
        sampling |= {"attention_mask": mask, "pad_token_id": pad, "eos_token_id": stop_ids or None}
        with explained(given):
            out = self._recorded_tokens(ids, max_new_tokens, sampling)
            if out is None:
                out = self.generate(ids, max_new_tokens, **sampling)
        return [_until(row, stop_ids) for row in out[:, width:].tolist()]

    def _recorded_tokens(self, ids: Tensor, new: int, arguments: dict[str, Any]) -> Tensor | None:
        """Prompts and new tokens by recorded decode steps; None where there are none, or a static cache does not fit."""
        if not self.cuda_graphs or self.device.type != "cuda":
            return None
        rows, width = ids.shape
        # tensors that were created in inference mode, as a kept cache's, can be written in inference mode only
        with torch.inference_mode(), serving(self.backend):
            try:
                with self._recorded.generating(self.inner, rows, width, new, arguments) as cache:
                    out: Tensor | None = self.generate(ids, new, **arguments, **cache) if cache else None
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                return None
        return out

    @torch.no_grad()
    def score(
        self, contexts: list[list[int]], continuations: list[list[int]], *, short_prompt: str = "left_pad"
    ) -> list[tuple[Tensor, Tensor]]:
        """As `LanguageModel.score`; rows are padded on the right, which a causal model's earlier tokens cannot see."""
        results: list[Any] = [None] * len(contexts)
        whole = [c + t[:-1] for c, t in zip(contexts, continuations, strict=True)]
        for rows in _groups([len(w) for w in whole], self.batching.score):
            ids, _ = right_padded([whole[r] for r in rows], self.device)
            first = min(len(contexts[r]) for r in rows) - 1
            head, read = self._read(ids, first)  # read (batch, length - first, width)
            start = [len(contexts[r]) - 1 - first for r in rows]
            width = max(len(continuations[r]) for r in rows)
            picked = [
                nn.functional.pad(x[s : s + width], (0, 0, 0, max(0, s + width - len(x))))
                for x, s in zip(read, start, strict=True)
            ]
            scored = score_tokens(head, torch.stack(picked), [continuations[r] for r in rows])
            for row, result in zip(rows, scored, strict=True):
                results[row] = result
        return results

    def _read(self, ids: Tensor, first: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """What predicts the tokens after position `first` of ids (batch, length), and the function that makes it logits.

        That is the head and its input, so that the caller needs no logits (batch, length, vocabulary). For classes that
        scale or cap the head's output, or have no head that can be found, it is the logits themselves.
        """
        takes = self._forward_takes
        kwargs: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        head = self.inner.get_output_embeddings() if self._head_is_last is not False else None
        if isinstance(head, nn.Module):
            inputs: list[Tensor] = []

            def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                inputs.append(args[0])
                return (args[0][:, -1:], *args[1:])

            handle = head.register_forward_pre_hook(keep)
            try:
                last = self(ids, **kwargs).logits
            finally:
                handle.remove()
            if self._head_is_last is None:
                self._head_is_last = (
                    len(inputs) == 1
                    and inputs[0].shape[:2] == ids.shape
                    and last.shape[1] == 1
                    and torch.equal(head(inputs[0][:, -1:]).float(), last.float())
                )
            if self._head_is_last:
                return lambda x: head(x).float(), inputs[0][:, first:]
        if "logits_to_keep" in takes:
            kwargs["logits_to_keep"] = ids.shape[1] - first
        logits = self(ids, **kwargs).logits
        return lambda x: x.float(), logits[:, first - ids.shape[1] :]


def _groups(lengths: list[int], mode: Mode) -> list[list[int]]:
    """Row numbers that may share a batch."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        groups[{"padded": 0, "equal lengths": length, "alone": row}[mode]].append(row)
    return list(groups.values())


def _criterion(stop_test: StopTest, width: int) -> Any:
    """`stop_test` as a stopping criterion of transformers, which asks after every token."""
    from transformers import StoppingCriteria

    class Stop(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            start = max(width, input_ids.shape[1] - stop_test.tail)
            return torch.tensor(stop_test(input_ids[:, start:].tolist()), device=input_ids.device)

    return Stop()


def _until(tokens: list[int], stop_ids: list[int]) -> list[int]:
    """Tokens up to the first stop token, which is kept."""
    for i, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: i + 1]
    return tokens


# --- loading


def load_transformers(
    checkpoint: Checkpoint,
    raw: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    backend: str = "auto",
    cuda_graphs: bool = True,
    fla: bool = False,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    device_map: Any = None,
    peft: str | None = None,
) -> TransformersModel:
    """Any causal LM that transformers knows, or one of flash-linear-attention's."""
    import transformers
    from transformers import AutoModelForCausalLM

    name = checkpoint.name
    if fla:
        _import_fla(str(raw.get("model_type")))
    if raw.get("auto_map") and not trust_remote_code and not _known(raw) and not fla:
        raise UserError(f"{name} brings its own modelling code, which runs only with trust_remote_code=True")
    check_numbers(raw, f"{name}/config.json")
    quantised = "quantization_config" in raw
    whole = _inspect_weights(checkpoint, raw, quantised=quantised)
    dtype_name = "dtype" if tuple(int(x) for x in transformers.__version__.split(".")[:2]) >= (4, 56) else "torch_dtype"
    given = {"attn_implementation": attn_implementation, "device_map": device_map}
    try:
        inner, info = AutoModelForCausalLM.from_pretrained(
            checkpoint.location,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **{dtype_name: dtype if dtype is not None else "auto"},
            **{key: value for key, value in given.items() if value is not None},
            **checkpoint.options,
        )
    except Exception as error:
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{name}: transformers cannot load it: {line}") from error
    lost = sorted(f"missing {key}" for key in info.get("missing_keys", []))
    lost += [f"{k} has shape {tuple(a)}, expected {tuple(b)}" for k, a, b in info.get("mismatched_keys", [])]
    if lost:
        raise UserError(f"{name}: the weights do not fit the config: {'; '.join(lost[:4])}")
    for key, value in inner.named_parameters():
        if key in whole and value.is_floating_point():
            raise UserError(f"{name}: {key} is {whole[key]}, floating point was expected")
        if value.device.type != "meta" and not bool(torch.isfinite(value).all()):
            raise UserError(f"{name}: {key} holds NaN or infinite values; the file is damaged")
    if peft is not None:
        inner = _with_adapter(inner, peft)
    inner = (inner if device_map is not None or quantised else inner.to(device)).eval()
    if device.type == "cpu" and device_map is None and not quantised and attn_implementation is None:
        cpu_inference.prepare(inner)
    return TransformersModel(inner, backend=backend, cuda_graphs=cuda_graphs)


def check_numbers(config: Mapping[str, Any], source: str) -> None:
    """Refuse sizes and epsilons with which no model computes anything: `UserError` with the key."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_numbers(value, source)
        elif isinstance(value, int) and abs(value) >= 2**31:
            raise UserError(f"{source}: {key} is {short(value)}, no model has that")
        elif str(key).lower().endswith(("eps", "epsilon")) and value is not None:
            Section(config, source).number(key, low=0, high=1)


def _inspect_weights(checkpoint: Checkpoint, raw: Mapping[str, Any], *, quantised: bool) -> dict[str, str]:
    """Refuse what our own reader refuses, before transformers allocates anything; return integer tensors, by dtype."""
    shapes: dict[str, torch.Size] = {}
    whole: dict[str, str] = {}
    for path, names in checkpoint.weight_files().items():
        tensors = read_tensors(path)
        if stale := sorted(tensors.keys() & shapes.keys()):
            raise UserError(f"{checkpoint.name}: {stale[0]} is in {path.name} and in another weight file: remove one")
        if names is not None and (lost := sorted(names - tensors.keys())):
            raise UserError(f"{path} lacks {lost[0]}, which the index of weight files assigns to it")
        shapes |= {key: tensor.shape for key, tensor in tensors.items()}
        if quantised:
            continue
        common_dtype(tensors, checkpoint.name)
        whole |= {k: str(t.dtype).removeprefix("torch.") for k, t in tensors.items() if not t.is_floating_point()}
    if not quantised and _known(raw):
        _compare_sizes(checkpoint, raw, shapes)
    return whole


def _compare_sizes(checkpoint: Checkpoint, raw: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a config that describes a far larger model than the weight file holds."""
    from transformers import AutoConfig, AutoModelForCausalLM

    layers = {int(n) for key in shapes for n in re.findall(r"\.(\d+)\.", f".{key}.")}
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        given = raw.get(key)
        if isinstance(given, int) and given > 64 + 16 * len(layers):  # some classes run their layers several times
            raise UserError(f"{checkpoint.name}: {key} is {given:,}, the weight file has {len(layers):,} layers")
    held = sum(shape.numel() for shape in shapes.values())
    try:
        config = AutoConfig.from_pretrained(checkpoint.location, trust_remote_code=False, **checkpoint.options)
        with torch.device("meta"):
            described = sum(
                p.numel() for p in AutoModelForCausalLM.from_config(config, trust_remote_code=False).parameters()
            )
    except Exception as error:
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{checkpoint.name}: transformers cannot load it: {line}") from error
    if described > 2 * held + 10**6:
        raise UserError(
            f"{checkpoint.name}: the weights do not fit the config: it describes {described:,} parameters, "
            f"the weight file has {held:,}"
        )


def _with_adapter(inner: Any, adapter: str) -> Any:
    """The model with a PEFT adapter merged into its weights."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError("peft=... needs the package peft: pip install peft") from None
    try:
        return PeftModel.from_pretrained(inner, adapter).merge_and_unload()
    except Exception as error:
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"peft={adapter} cannot be loaded: {line}") from error


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
