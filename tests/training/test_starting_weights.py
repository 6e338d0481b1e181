"""A run may start from weights of a shallower model, of another family, or of another state size."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import tiny

from jrt_eval.errors import UserError
from jrt_eval.models import load_model
from jrt_eval.training import checkpoint
from jrt_eval.training.objective import build_model
from jrt_eval.training.trainer import train


def test_a_jrt_starts_from_based(tmp_path: Path) -> None:
    based = train(tiny(tmp_path, "based", steps=3, output=str(tmp_path / "based")), progress=False)
    model = build_model(tiny(tmp_path, "jrt").model, "parallel", 0)
    checkpoint.load_weights(based, model, start=True)
    state = model.state_dict()
    mixer = "transformer.layers.1.mixer."
    torch.testing.assert_close(state[mixer + "proj_k_enc.weight"], state[mixer + "proj_k.weight"])
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load_weights(based, model)


@pytest.mark.parametrize("family", ["based", "jrt"])
def test_starting_weights_may_have_another_feature_dim(tmp_path: Path, family: str) -> None:
    """A larger state computes the same; a smaller one keeps the best part of each head's scores."""
    folder = train(tiny(tmp_path, "based", steps=3, output=str(tmp_path / "based")), progress=False)
    ids = torch.randint(0, 56, (2, 24), generator=torch.Generator().manual_seed(0))

    def logits(feature_dim: int) -> torch.Tensor:
        config = deepcopy(tiny(tmp_path, family).model)
        config["alt_mixer"]["feature_dim"] = feature_dim
        model = build_model(config, "parallel", 1)
        checkpoint.load_weights(folder, model, start=True)
        with torch.no_grad():
            out: torch.Tensor = model(ids).logits
        return out

    same = logits(4)
    torch.testing.assert_close(logits(6), same, atol=1e-5, rtol=1e-4)
    errors = [float((logits(dim) - same).norm()) for dim in (3, 2, 1)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_a_deeper_model_begins_as_the_one_it_starts_from(tmp_path: Path) -> None:
    folder = train(tiny(tmp_path, "based", steps=3), progress=False)
    wanted = tiny(tmp_path, "based").model | {"n_layer": 4, "alt_mixer_layers": [1, 2], "alt_mixer_2_layers": [3]}
    deeper = build_model(wanted, "torch", 1)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load_weights(folder, deeper)
    checkpoint.load_weights(folder, deeper, start=True)
    ids = torch.randint(0, 56, (2, 24))
    with torch.no_grad():
        expected = load_model(str(folder), dtype="float32")(ids).logits
        torch.testing.assert_close(deeper(ids).logits, expected, atol=2e-5, rtol=1e-4)
    other = build_model(wanted | {"alt_mixer_layers": [], "alt_mixer_2_layers": [3]}, "torch", 1)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load_weights(folder, other, start=True)


def test_starting_weights_may_have_more_states(tmp_path: Path) -> None:
    folder = train(tiny(tmp_path, "mamba", steps=3), progress=False)
    model = build_model({**tiny(tmp_path, "mamba").model, "ssm_cfg": {"d_state": 2}}, "torch", 0)
    checkpoint.load_weights(folder, model, start=True)
    held = load_file(folder / "model.safetensors")["backbone.layers.0.mixer.A_log"]
    torch.testing.assert_close(model.state_dict()["backbone.layers.0.mixer.A_log"], held[:, :2])
