"""flash-linear-attention's checkpoints in our own model class: fla's own logits, and the equivalences of all our models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jrt_eval
from jrt_eval.errors import UserError

FAMILIES = ["gla", "retnet", "delta_net", "gated_deltanet", "kda"]


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "golden" / "models" / str(request.param)


@pytest.fixture(scope="module")
def model(golden: Path) -> Any:
    return jrt_eval.load_model(golden, device="cpu")


def test_logits_are_those_of_fla(golden: Path, model: Any) -> None:
    assert model.family == golden.name
    arrays = np.load(golden / "golden.npz")
    names = [name for name in arrays if name.endswith("_ids")]
    assert names
    for name in names:
        with torch.no_grad():
            logits = model(torch.from_numpy(arrays[name]).long()).logits
        wanted = torch.from_numpy(arrays[name.replace("_ids", "_logits")])
        torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-4)


def test_splits_and_steps(model: Any) -> None:
    ids = torch.randint(0, 256, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :9])
        second = model(ids[:, 9:13], state=first.state)
        torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole[:, :13], rtol=0, atol=1e-4)
        for t in range(13, 21):
            torch.testing.assert_close(model.step(ids[:, t], second.state), whole[:, t], rtol=0, atol=1e-4)
    assert second.state.nbytes() == 2 * model.state_size(21) == 2 * model.state_size(5000)


def test_padding_does_not_count(model: Any) -> None:
    ids = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([17, 8, 2])
    with torch.no_grad():
        batch = model(ids, lengths=lengths)
        after = model.step(ids[:, 0], batch.state)
        for row, n in enumerate(lengths.tolist()):
            alone = model(ids[row : row + 1, :n])
            torch.testing.assert_close(batch.logits[row, :n], alone.logits[0], rtol=0, atol=1e-4)
            torch.testing.assert_close(after[row], model.step(ids[row : row + 1, 0], alone.state)[0], rtol=0, atol=1e-4)


def test_options_that_are_not_supported(shared: Path, tmp_path: Path) -> None:
    for family, change in [
        ("gla", {"use_gv": True}),
        ("gla", {"num_kv_heads": 1}),
        ("kda", {"safe_gate": True}),
        ("delta_net", {"qk_norm": "max"}),
        ("retnet", {"expand_v": float("inf")}),
        ("gated_deltanet", {"num_heads": 3}),
    ]:
        source = shared / "golden" / "models" / family
        config = json.loads((source / "config.json").read_text()) | change
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        with pytest.raises(UserError) as raised:
            jrt_eval.load_model(tmp_path, device="cpu")
        assert next(iter(change)) in str(raised.value) or "has shape" in str(raised.value)
