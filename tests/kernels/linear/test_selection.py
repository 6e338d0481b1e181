"""Which layers get which product, and the file of measured times."""

import json
import math

import pytest
import torch
from torch import nn

from jrt_eval.errors import UserError
from jrt_eval.kernels import linear
from jrt_eval.kernels.linear import OneDNNLinear, PackedLinear, selection

pytestmark = pytest.mark.skipif(not linear.available(torch.float32), reason="this PyTorch has no oneDNN")


class Tied(nn.Module):
    """Embeddings and head that share a weight, a layer of its own, and one that a subclass computes differently."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(400, 240)
        self.body = nn.Linear(240, 240)
        self.special = Doubled(240, 240)
        self.head = nn.Linear(240, 400, bias=False)
        self.head.weight = self.embed.weight
        self.to(dtype).eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.special(self.body(self.embed(ids))))


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def used(model, setting="auto"):
    linear.use_fastest(model, setting)
    return linear.products(model)


def pretend(monkeypatch, torch_=1.0, onednn=1.0, packed=1.0):
    """Let every shape measure these seconds; returns the list of measured shapes."""
    seen = []

    def measure(weight):
        seen.append(tuple(weight.shape))
        return {"torch": [torch_] * 3, "onednn": [onednn] * 3, "packed": [packed] * 3}

    monkeypatch.setattr(selection, "measure", measure)
    return seen


@torch.no_grad()
def test_packed_packs_what_nobody_shares():
    model = Tied()
    ids = torch.arange(6)[None]
    wanted, count = model(ids), sum(p.numel() for p in model.parameters())
    assert used(model, "packed") == {"torch": 1, "onednn": 1, "packed": 1}
    assert type(model.body) is PackedLinear and type(model.head) is OneDNNLinear and type(model.special) is Doubled
    assert model.head.weight is model.embed.weight
    assert torch.allclose(model(ids), wanted, atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) == count
    assert type(model.body) is PackedLinear


def test_torch_leaves_the_model_alone():
    model = Tied()
    assert used(model, "torch") == {"torch": 3}
    assert type(model.body) is nn.Linear and type(model.head) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_stay_with_torch(dtype):
    assert used(Tied(dtype), "packed") == {"torch": 3}


def test_auto_takes_the_fastest(monkeypatch):
    seen = pretend(monkeypatch, packed=0.5, onednn=0.8)
    model = Tied()
    assert used(model) == {"torch": 1, "onednn": 1, "packed": 1}
    assert seen == [(240, 240), (400, 240)]
    model = Tied()
    assert used(model) == {"torch": 1, "onednn": 1, "packed": 1}
    assert len(seen) == 2  # the second model reads the file


def test_auto_stays_with_torch_unless_it_gains(monkeypatch):
    pretend(monkeypatch, packed=0.99, onednn=1.2)
    assert used(Tied()) == {"torch": 3}


def test_fastest_weighs_all_numbers_of_rows():
    times = {"torch": [1.0, 1.0, 1.0], "onednn": [1.0, 1.0, 0.9], "packed": [2.0, 0.5, 0.5]}
    assert linear.fastest(times) == "packed"
    assert linear.fastest(times, shared=True) == "onednn"


def test_unknown_setting():
    with pytest.raises(UserError, match=r"cpu_linear=pack is not known, these are: auto, torch, packed.*packed"):
        linear.use_fastest(Tied(), "pack")


def test_measured_times_are_positive_and_cached():
    torch.manual_seed(0)
    times = linear.measure(torch.randn(40, 24))
    assert set(times) == set(linear.PRODUCTS)
    assert all(len(row) == len(selection.ROWS) and all(0 < t < math.inf for t in row) for row in times.values())
    linear.use_fastest(Tied())
    assert set(linear.cached_times()) == {"float32 240 -> 240", "float32 240 -> 400"}
    assert list(json.loads(linear.cache_file().read_text())) == [selection.machine()]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"MACHINE": 3}', '{"MACHINE": {"float32 240 -> 240": {"torch": "x"}}}']
)
def test_damaged_cache_is_replaced(text, monkeypatch):
    linear.cache_file().parent.mkdir(parents=True)
    linear.cache_file().write_text(text.replace("MACHINE", selection.machine().replace('"', "")))
    seen = pretend(monkeypatch, packed=0.5)
    linear.use_fastest(Tied())
    assert len(seen) == 2 and len(linear.cached_times()) == 2


def test_other_machines_times_are_kept_and_not_used(monkeypatch):
    seen = pretend(monkeypatch, packed=0.5)
    linear.use_fastest(Tied())
    with monkeypatch.context() as patch:
        patch.setattr(selection, "processor", lambda: "another")
        assert linear.cached_times() == {}
        linear.use_fastest(Tied())
    assert len(seen) == 4 and len(linear.cached_times()) == 2
    assert len(json.loads(linear.cache_file().read_text())) == 2


def test_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pretend(monkeypatch, packed=0.5)
    assert used(Tied()) == {"torch": 2, "packed": 1}


def test_small_layers_are_not_measured(monkeypatch):
    seen = pretend(monkeypatch, packed=0.5)
    assert used(nn.Linear(20, 30).eval()) == {"torch": 1} and not seen
