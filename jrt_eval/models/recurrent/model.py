"""The released language models, JRT-RNN, Based and Transformer++: read this module from top to bottom.

    r = embed(ids);  per layer  r += mixer(norm1(r)),  r += mlp(norm2(r));  logits = ln_f(r) @ embeddings^T

with r in float32. `forward` (many tokens) and `step` (one token) are functions of the same `ModelState` and agree token
by token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jrt_eval.errors import UserError
from jrt_eval.models.batching import Batching
from jrt_eval.models.interface import StateBytes, StopTest, token_ids
from jrt_eval.models.recurrent.config import ModelConfig, parse_config
from jrt_eval.models.recurrent.generation import Generation, SamplingConfig, generate, right_padded
from jrt_eval.models.recurrent.graphs import Graphs, Step
from jrt_eval.models.recurrent.layers import MLP, LayerNorm, RMSNorm, add_norm
from jrt_eval.models.recurrent.mixers import Call, KVState

PAD_TOKEN = 220  # what JRT prompts are left-padded with: a space in GPT-2


@dataclass
class ModelState:
    """Each layer's state, and the number of tokens that each row has seen (batch,)."""

    layers: list[Any]
    length: Tensor

    def select(self, rows: Tensor) -> ModelState:
        """The state of `rows` (n,), copied: rows may repeat, and stepping the copy leaves this one alone."""

        def pick(state: Any) -> Any:
            if isinstance(state, Tensor):
                return state.index_select(0, rows)
            if isinstance(state, KVState):
                return KVState(pick(state.k), pick(state.v), pick(state.length), state.used)
            return type(state)(*map(pick, state))

        return ModelState([pick(s) for s in self.layers], self.length.index_select(0, rows))

    def nbytes(self) -> int:
        """Bytes that the layers' states take, all rows together."""

        def size(state: Any) -> int:
            if isinstance(state, Tensor):
                return state.numel() * state.element_size()
            parts = (state.k, state.v, state.length) if isinstance(state, KVState) else state
            return sum(map(size, parts))

        return sum(map(size, self.layers))


@dataclass
class CausalLMOutput:
    """`logits` (batch, length, padded vocabulary) float32, and the state after the last token."""

    logits: Tensor
    state: ModelState | None = None


class Block(nn.Module):
    """One pre-norm layer: mixer and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        norm = RMSNorm if config.norm == "rms" else LayerNorm
        self.mixer = config.mixers[index].build(config.d_model)
        self.norm1 = norm(config.d_model, config.norm_eps)
        self.mlp = MLP(config.d_model, config.inner(), config.activation, config.fc1_bias, config.fc2_bias)
        self.norm2 = norm(config.d_model, config.norm_eps)


class Decay(nn.Module):
    """log a_h per head, a_h = 1 - 2^(decay_const - h), h from 0; replaced by the file's values where it has them."""

    decay: Tensor

    def __init__(self, heads: int, const: float) -> None:
        super().__init__()
        self.register_buffer("decay", torch.log1p(-(2.0 ** (const - torch.arange(heads)))))

    def _apply(self, fn: Any, recurse: bool = True) -> Decay:
        # `.to(bfloat16)` leaves it in float32: the error of a rounded a_h grows with every step
        self.decay = self.decay.to(fn(self.decay).device)
        return self


class RecurrentModel(nn.Module, ABC):
    """A model of our own class (the methods' contract is `jrt_eval.models.interface.LanguageModel`).

    A subclass builds its modules and says which of them are the embeddings, the layers and the norms. A layer has a
    `mixer`, and a second norm `norm2` and an `mlp`, or None for both.
    """

    shares_contexts = True
    batching = Batching("padded", "padded", "padding is masked in every layer")
    lm_head: nn.Linear

    def __init__(self, config: Any, raw: Mapping[str, Any], backend: str) -> None:
        super().__init__()
        self.config = config
        self.raw_config = dict(raw)
        self.backend = backend
        self.source = ""
        self.revision: str | None = None
        self.cuda_graphs = True  # decode through CUDA graphs on a GPU
        self._graphs = Graphs()

    # --- facts

    @property
    def kernels(self) -> Mapping[str, str]:
        return {"all operators": self.backend}

    @property
    @abstractmethod
    def _embeddings(self) -> nn.Embedding: ...

    @property
    @abstractmethod
    def _layers(self) -> list[Any]: ...

    @property
    @abstractmethod
    def _norms(self) -> list[Any]:
        """The norm in front of each layer's mixer, and that of the head."""

    def tie_weights(self) -> None:
        """The head uses the embeddings' tensor, where the config says so."""
        if self.config.tied:
            self.lm_head.weight = self._embeddings.weight

    @property
    def device(self) -> torch.device:
        return self._embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embeddings.weight.dtype

    @property
    def family(self) -> str:
        return self.config.family

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table, padding included."""
        return self.config.padded_vocab_size

    @property
    def enc_length(self) -> int:
        """M, the positions that the encoder reads; 0 for models without one."""
        return self.config.enc_length

    @property
    def end_tokens(self) -> list[int]:
        """End-of-text tokens of config.json."""
        return token_ids(self.raw_config.get("eos_token_id"))

    def num_parameters(self) -> int:
        """Tied embeddings count once, as in the file."""
        return sum(p.numel() for p in self.parameters())

    def state_bytes(self, length: int) -> StateBytes:
        """As `LanguageModel.state_bytes`; only softmax attention's state depends on `length`."""
        parts = [layer.mixer.state_bytes(length, self.dtype.itemsize) for layer in self._layers]
        return StateBytes(*map(sum, zip(*parts, strict=True)))

    def state_size(self, length: int = 2048) -> int:
        """Bytes of one sequence's state after `length` tokens."""
        return self.state_bytes(length).total

    # --- arithmetic

    def forward(
        self,
        input_ids: Tensor,
        *,
        state: ModelState | None = None,
        lengths: Tensor | None = None,
        encoder_lengths: Tensor | None = None,
        pads: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits of input_ids (batch, length), continuing from `state`.

        lengths (batch,): valid tokens of each row, which come first (right padding); None: all.
        encoder_lengths (batch,): how many of a row's first tokens the JRT encoder reads, min(M, length) by default.
        pads (batch,): leading tokens that are left padding of a JRT prompt, whose keys are zeroed.
        """
        x, new = self.hidden(input_ids, state=state, lengths=lengths, encoder_lengths=encoder_lengths, pads=pads)
        return CausalLMOutput(self.logits(x), new)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        state: ModelState | None = None,
        lengths: Tensor | None = None,
        encoder_lengths: Tensor | None = None,
        pads: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """The head's input (batch, length, d), after ln_f, and the state; arguments as for `forward`."""
        batch, length = input_ids.shape
        device = input_ids.device
        positions = torch.arange(length, device=device).expand(batch, -1)
        counts = torch.full((batch,), length, device=device) if lengths is None else lengths.to(device)
        call = Call(positions, None if lengths is None else counts, backend=self.backend, decay=self._decay())
        if state is not None:
            call.positions = positions + state.length[:, None]
        elif self.enc_length:
            given = counts if encoder_lengths is None else torch.minimum(encoder_lengths.to(device), counts)
            call.encoded = given.clamp(max=self.enc_length)
            call.max_encoded = int(call.encoded.max()) if encoder_lengths is not None else min(length, self.enc_length)
            call.pads = None if pads is None else pads.to(device)
        r = self._embed(input_ids, call)
        states: list[Any] = []
        norms = self._norms
        x = norms[0](r)
        for i, layer in enumerate(self._layers):
            y, new = layer.mixer(x, None if state is None else state.layers[i], call)
            states.append(new)
            if layer.mlp is not None:
                r, x = add_norm(r, y, layer.norm2)
                y = layer.mlp(x)
            r, x = add_norm(r, y, norms[i + 1])
        seen = counts if state is None else state.length + counts
        return x, ModelState(states, seen.clone())

    @torch.no_grad()
    def step(self, tokens: Tensor, state: ModelState) -> Tensor:
        """Logits (batch, padded vocabulary) after one more token per row, tokens (batch,); `state` is updated in
        place.
        """
        call = Call(state.length[:, None].clone(), backend=self.backend, decay=self._decay())
        r = self._embed(tokens[:, None], call)[:, 0]
        norms = self._norms
        x = norms[0](r)
        for i, (layer, held) in enumerate(zip(self._layers, state.layers, strict=True)):
            y = layer.mixer.step(x, held, call)
            if layer.mlp is not None:
                r, x = add_norm(r, y, layer.norm2)
                y = layer.mlp(x)
            r, x = add_norm(r, y, norms[i + 1])
        state.length.add_(1)
        return self.logits(x)

    @property
    def runs_ahead(self) -> bool:
        """Whether a step may start before it is known to be needed, so that the GPU works while the host reads tokens."""
        return self.device.type == "cuda"

    def stepper(self, state: ModelState, tokens: int) -> Step:
        """A function that runs `step` from `state` on, for about `tokens` tokens.

        On a GPU it may replay a CUDA graph; the next call then overwrites the logits.
        """
        quick = None
        if self.cuda_graphs and self.runs_ahead:
            quick = self._graphs.step(self, state, tokens)
        return quick or (lambda chosen: self.step(chosen, state))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of `hidden`'s output, float32, padding rows of the vocabulary included."""
        y: Tensor = self.lm_head(x)
        return y.float()

    def _embed(self, ids: Tensor, call: Call) -> Tensor:
        x: Tensor = self._embeddings(ids)
        return x.float() if self.config.residual_in_fp32 else x

    def _decay(self) -> Tensor | None:
        """a_h of Based's decay (heads,), where the model has it."""
        return None

    # --- prompts

    @torch.no_grad()
    def prefill(self, prompts: list[list[int]], *, short_prompt: str = "left_pad") -> tuple[Tensor, ModelState]:
        """Logits after the last token of each prompt (batch, padded vocabulary), and the state; any lengths."""
        x, state, last = self._read(prompts, short_prompt)
        return self.logits(x[torch.arange(len(last), device=x.device), last]), state

    def _read(self, prompts: list[list[int]], short_prompt: str) -> tuple[Tensor, ModelState, Tensor]:
        prepared = [self.prepare_prompt(prompt, short_prompt) for prompt in prompts]
        ids, lengths = right_padded([tokens for tokens, _, _ in prepared], self.device)
        x, state = self.hidden(
            ids,
            lengths=None if int(lengths.min()) == ids.shape[1] else lengths,
            encoder_lengths=torch.tensor([encoded for _, _, encoded in prepared], device=self.device),
            pads=torch.tensor([pads for _, pads, _ in prepared], device=self.device),
        )
        return x, state, lengths - 1

    def prepare_prompt(self, prompt: list[int], short_prompt: str) -> tuple[list[int], int, int]:
        """(tokens to read, how many of them are padding, how many the encoder reads) for a JRT prompt.

        A prompt of M tokens or more is not changed; the encoder reads its first M. A shorter one, by `short_prompt`:
        left_pad    padded on the left with token 220, to exactly M
        read_twice  preceded by its own last tokens, to M; if even two copies are shorter, token 220 fills the rest
        iterate     nothing is encoded: the state grows token by token
        """
        m = self.enc_length
        if not m or len(prompt) >= m:
            return prompt, 0, m
        if short_prompt == "iterate":
            return prompt, 0, 0
        if short_prompt == "read_twice":
            prompt = prompt[max(0, 2 * len(prompt) - m) :] + prompt
        pads = m - len(prompt)
        if pads and self.vocabulary <= PAD_TOKEN:
            raise UserError(
                f"{self.source}: short prompts are padded with token {PAD_TOKEN}, its vocabulary has {self.vocabulary} rows; "
                "short_prompt=iterate pads nothing"
            )
        return [PAD_TOKEN] * pads + prompt, pads, m

    @torch.no_grad()
    def score(
        self, contexts: list[list[int]], continuations: list[list[int]], *, short_prompt: str = "left_pad"
    ) -> list[tuple[Tensor, Tensor]]:
        """As `LanguageModel.score`. A context must have at least one token; a context of several pairs is read once.

        A JRT encoder reads contexts only, never the continuation that is scored.
        """
        index = {tuple(context): 0 for context in contexts}
        index = {context: i for i, context in enumerate(index)}
        x, state, last = self._read([list(context) for context in index], short_prompt)
        rows = torch.tensor([index[tuple(context)] for context in contexts], device=x.device)
        first = x[rows, last[rows]]
        rest, lengths = right_padded([tokens[:-1] for tokens in continuations], self.device)
        if rest.shape[1]:
            # For a row with a one-token continuation this is padding; its state is not used again.
            y, _ = self.hidden(rest, state=state.select(rows), lengths=lengths)
            hidden = torch.cat([first[:, None], y], 1)
        else:
            hidden = first[:, None]
        return score_tokens(self.logits, hidden, continuations)

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
        """As `LanguageModel.continue_prompts`."""
        return generate(
            self,
            prompts,
            max_new_tokens,
            sampling=SamplingConfig.of(sampling),
            stop_ids=stop_ids,
            stop_test=stop_test,
            short_prompt=short_prompt,
        ).tokens

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | list[list[int]],
        max_new_tokens: int = 20,
        *,
        attention_mask: Tensor | None = None,
        short_prompt: str = "left_pad",
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        generator: torch.Generator | None = None,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **sampling: Any,
    ) -> Tensor | Generation:
        """Continue prompts: (batch, prompt + new tokens), as transformers' `generate`.

        input_ids (batch, length), with `attention_mask` where rows are padded (on either side), or a list of token
        lists. The new tokens of every row follow the given prompts; rows that stopped early hold `pad_token_id` (eos
        by default).
        sampling: do_sample, temperature, top_k, top_p, min_p, repetition_penalty.
        """
        if isinstance(input_ids, Tensor):
            prompts = input_ids.tolist()
            if attention_mask is not None:
                keep = attention_mask.bool().tolist()
                prompts = [[t for t, k in zip(p, ks, strict=True) if k] for p, ks in zip(prompts, keep, strict=True)]
        else:
            prompts = [list(prompt) for prompt in input_ids]
            input_ids, _ = right_padded(prompts, self.device, fill=pad_token_id or 0)
        stops = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
        out = generate(
            self,
            prompts,
            max_new_tokens,
            sampling=SamplingConfig.of(sampling),
            stop_ids=stops,
            short_prompt=short_prompt,
            generator=generator,
            keep_scores=output_scores,
        )
        fill = pad_token_id if pad_token_id is not None else stops[0] if stops else 0
        new, _ = right_padded(out.tokens, self.device, fill=fill)
        sequences = torch.cat([input_ids.to(self.device), new], 1)
        if not return_dict_in_generate:
            return sequences
        return Generation(sequences=sequences, tokens=out.tokens, scores=out.scores)


class JRTModel(RecurrentModel):
    """A JRT-RNN, Based or attention model.

    model(input_ids) computes the logits of whole sequences. For JRT-RNN the encoder reads the first min(M, length)
    positions and no padding is added. model.generate(input_ids, max_new_tokens=...) continues prompts, left-padded to
    M as the checkpoints expect.
    """

    def __init__(self, config: ModelConfig, raw: Mapping[str, Any], *, backend: str = "auto") -> None:
        super().__init__(config, raw, backend)
        self.transformer = nn.Module()
        self.transformer.embeddings = nn.Module()
        self.transformer.embeddings.word_embeddings = nn.Embedding(config.padded_vocab_size, config.d_model)
        if config.positions:
            self.transformer.embeddings.position_embeddings = nn.Embedding(config.positions, config.d_model)
        self.transformer.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        norm = RMSNorm if config.norm == "rms" else LayerNorm
        self.transformer.ln_f = norm(config.d_model, config.norm_eps)
        if config.decay_heads:
            const = -3.0 if config.decay_const is None else config.decay_const
            self.transformer.decay = Decay(config.decay_heads, const)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=config.head_bias)
        self.tie_weights()

    @property
    def _embeddings(self) -> nn.Embedding:
        embeddings: Any = self.transformer.embeddings
        return embeddings.word_embeddings  # type: ignore[no-any-return]

    @property
    def _layers(self) -> list[Any]:
        layers: Any = self.transformer.layers
        return list(layers)

    @property
    def _norms(self) -> list[Any]:
        return [*(layer.norm1 for layer in self._layers), self.transformer.ln_f]

    @property
    def runs_ahead(self) -> bool:
        return super().runs_ahead and not self.config.positions  # a step looks at its positions

    def _embed(self, ids: Tensor, call: Call) -> Tensor:
        x: Tensor = self._embeddings(ids)
        if self.config.positions:
            mask = call.mask()
            positions = call.positions if mask is None else call.positions.masked_fill(~mask, 0)
            if (last := int(positions.max())) >= self.config.positions:
                raise UserError(
                    f"{self.source}: a sequence of {last + 1} tokens is longer than its {self.config.positions} "
                    "position embeddings"
                )
            embeddings: Any = self.transformer.embeddings
            x = x + embeddings.position_embeddings(positions)
        return x.float() if self.config.residual_in_fp32 else x

    def _decay(self) -> Tensor | None:
        if not hasattr(self.transformer, "decay"):
            return None
        holder: Any = self.transformer.decay
        return holder.decay.float().exp()  # type: ignore[no-any-return]


def score_tokens(
    head: Any, hidden: Tensor, continuations: list[list[int]], at_once: int = 2**27
) -> list[tuple[Tensor, Tensor]]:
    """log p of each continuation's tokens and whether they are the likeliest, from the hidden states before them.

    hidden (batch, longest, d). The head runs on valid positions only and in pieces of `at_once` bytes, so that no
    (batch, length, vocabulary) array is made; the softmax is in float32.
    """
    sizes = [len(tokens) for tokens in continuations]
    flat = torch.cat([hidden[i, :n] for i, n in enumerate(sizes)])
    targets = torch.tensor([t for tokens in continuations for t in tokens], device=flat.device, dtype=torch.int64)
    vocabulary = head(flat[:1]).shape[-1]
    piece = max(1, at_once // (4 * vocabulary))
    logps, greedy = [], []
    for start in range(0, len(flat), piece):
        logits = head(flat[start : start + piece])
        wanted = targets[start : start + piece]
        logps.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
        greedy.append(logits.argmax(-1) == wanted)
    return list(zip(torch.split(torch.cat(logps), sizes), torch.split(torch.cat(greedy), sizes), strict=True))


def initialise(model: JRTModel, generator: torch.Generator | None = None) -> None:
    """The release's initialisation: normal, std sqrt(2 / (5 n_embd)) with `special_initializer` (else
    `initializer_range`).

    Projections that write to the residual stream (`out_proj`, `fc2`) are scaled by 1/sqrt(2 n_layer); biases are
    zero, norms one.
    """
    config = model.config
    std = math.sqrt(2 / (5 * config.d_model)) if config.special_initializer else config.initializer_range
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                residual = name.endswith(("out_proj", "fc2"))
                scale = 1 / math.sqrt(2 * config.n_layer) if residual else 1.0
                module.weight.normal_(0, std * scale, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Conv1d):
                module.weight.uniform_(
                    -(module.kernel_size[0] ** -0.5), module.kernel_size[0] ** -0.5, generator=generator
                )
                if module.bias is not None:
                    module.bias.zero_()
    model.tie_weights()


def from_config(
    config: Mapping[str, Any],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    seed: int | None = None,
) -> JRTModel:
    """A model of a released-form config (the dict of a config.json) with random weights, ready to train.

    seed: makes the weights reproducible; None uses torch's global generator. On device "meta" no weights are drawn.
    """
    parsed = parse_config(config)
    if parsed.decay_heads and parsed.decay_const is None:
        raise UserError("config.json: fixed_decay is true, and no decay_const says how fast")
    with torch.device(device):
        model = JRTModel(parsed, config, backend=backend)
    if torch.device(device).type != "meta":
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        initialise(model, generator)
    return model.to(dtype)
