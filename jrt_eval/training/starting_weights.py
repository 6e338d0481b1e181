"""Starting weights that do not fit a model exactly: a shallower model, another feature dimension, more Mamba states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fit(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Change the tensors of a checkpoint in place so that they fit `model`, where one of the rules below applies."""
    fit_layers(model, state)
    fit_linear_attention(model, state)
    fit_states(model, state)


def fit_layers(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fit a deeper model. A layer takes the next layer of the file if their mixers are of one kind.

    Otherwise the layer is new and begins as the identity: the projections that write to the residual are zero.
    """
    prefix = "transformer.layers."

    def layers(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = {}
        for key in filter(lambda key: key.startswith(prefix), tensors):
            index, _, rest = key.removeprefix(prefix).partition(".")
            found.setdefault(int(index), {})[rest] = tensors[key]
        return [found[index] for index in sorted(found)]

    def kind(layer: Mapping[str, Tensor]) -> set[str]:
        return {rest for rest in layer if rest.startswith("mixer.") and "_enc." not in rest}

    ours, theirs = layers(model.state_dict()), layers(state)
    if not 0 < len(theirs) < len(ours):
        return
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]
    for index, layer in enumerate(ours):
        if theirs and kind(theirs[0]) == kind(layer):
            chosen = theirs.pop(0)
        else:
            to_residual = ("mixer.out_proj.", "mlp.fc2.")
            chosen = {rest: torch.zeros_like(t) if rest.startswith(to_residual) else t for rest, t in layer.items()}
        state.update({f"{prefix}{index}.{rest}": tensor for rest, tensor in chosen.items()})
    for index, layer in enumerate(theirs, len(ours)):  # too many layers: loading reports them
        state.update({f"{prefix}{index}.{rest}": tensor for rest, tensor in layer.items()})


def fit_linear_attention(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fit linear attention of another family, or with another feature dimension.

    JRT-RNN from Based: the encoder's projections begin as copies of the decoder's. After the prefix, numerator and
    denominator of the attention then both count the prefix twice, and their ratio is that of Based.

    feature_dim: the scores of a head are q.k = x^T (Wq^T Wk) y. A smaller dimension begins with the best approximation of
    Wq^T Wk of that rank (truncated singular value decomposition, of the keys and the encoder's keys together). A larger
    one computes the same scores: its new keys are zero and its new queries keep their random initialisation.
    """
    fresh = model.state_dict()
    for name, module in model.named_modules():
        if not hasattr(module, "feature_dim") or f"{name}.proj_q.weight" not in state:
            continue
        if getattr(module, "enc_length", 0):
            for part in ("k", "v"):
                state.setdefault(f"{name}.proj_{part}_enc.weight", state[f"{name}.proj_{part}.weight"].clone())
        keys = [key for key in (f"{name}.proj_k.weight", f"{name}.proj_k_enc.weight") if key in fresh and key in state]
        query, heads, wanted = f"{name}.proj_q.weight", int(module.heads), int(module.feature_dim)  # type: ignore[arg-type]
        held = state[query].shape[0] // heads
        if held == wanted or state[query].shape[0] % heads or state[query].shape[1] != fresh[query].shape[1]:
            continue
        dtype = state[query].dtype
        q = state[query].double().unflatten(0, (heads, held))  # (heads, features, d)
        k = torch.cat([state[key].double().unflatten(0, (heads, held)) for key in keys], 2)
        if wanted < held:
            u, s, v = torch.linalg.svd(q.transpose(1, 2) @ k, full_matrices=False)
            root = s[:, :wanted].sqrt()[..., None] * (wanted / held) ** 0.25  # scores are divided by sqrt(feature_dim)
            q, k = u[:, :, :wanted].transpose(1, 2) * root, v[:, :wanted] * root
        else:
            more = fresh[query].double().cpu().unflatten(0, (heads, wanted))[:, held:]
            grown = (wanted / held) ** 0.25
            q = torch.cat([q * grown, more], 1)
            k = torch.cat([k * grown, k.new_zeros(heads, wanted - held, k.shape[2])], 1)
        state[query] = q.flatten(0, 1).to(dtype)
        for key, fitted in zip(keys, k.chunk(len(keys), 2), strict=True):
            state[key] = fitted.flatten(0, 1).to(dtype).contiguous()


def fit_states(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fit a Mamba model with fewer states per channel: those with the slowest decay are kept."""
    for name, module in model.named_modules():
        key = f"{name}.A_log"
        if not hasattr(module, "A_log") or key not in state or (held := state[key].shape[1]) <= module.states:  # type: ignore[operator]
            continue
        wanted, rank = int(module.states), int(module.rank)  # type: ignore[arg-type]
        order = state[key].float().mean(0).argsort()[:wanted]
        dt, b, c = state[f"{name}.x_proj.weight"].split([rank, held, held])
        state[key] = state[key][:, order].contiguous()
        state[f"{name}.x_proj.weight"] = torch.cat([dt, b[order], c[order]])
