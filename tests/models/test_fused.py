"""A whole model with the fused Triton kernels between its matrix products."""

from __future__ import annotations

import pytest
import torch
from tiny_models import released_config

from jrt_eval.models import from_config


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("family", ["jrt", "based_decay", "attn"])
def test_a_model_is_the_same_on_a_gpu(family: str) -> None:
    """In float32, with and without a gradient (which takes the PyTorch code)."""
    model = from_config(released_config(family), seed=0, device="cuda").eval()
    ids = torch.randint(0, 251, (2, 60), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        fused = model(ids).logits
    torch.testing.assert_close(fused, model(ids).logits, rtol=1e-4, atol=1e-4)
