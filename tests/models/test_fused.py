"""The Triton kernels between matrix products against the PyTorch code of `layers`; without a GPU Triton's interpreter runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import released_config

from jrt_eval.models import from_config

HERE = Path(__file__).parent


def test_on_the_processor() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "fused_cases.py"), "cpu"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 20


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")


@gpu
def test_on_a_gpu() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(HERE / "fused_cases.py"), "cuda"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 20


@gpu
@pytest.mark.parametrize("family", ["jrt", "based_decay", "attn"])
def test_a_model_is_the_same_on_a_gpu(family: str) -> None:
    """In float32, with and without a gradient (which takes the PyTorch code)."""
    model = from_config(released_config(family), seed=0, device="cuda").eval()
    ids = torch.randint(0, 251, (2, 60), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        fused = model(ids).logits
    torch.testing.assert_close(fused, model(ids).logits, rtol=1e-4, atol=1e-4)
