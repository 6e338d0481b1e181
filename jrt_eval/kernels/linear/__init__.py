"""Linear layers on a CPU: y = x W^T + b through oneDNN, with the weight packed in the layout that its kernels read.

`F.linear` calls the BLAS library that PyTorch was built with for float32, and oneDNN for bfloat16 with a weight in row order.
`use_fastest(model)` gives each `nn.Linear` of a model whichever of three products is fastest on this machine:

    torch     F.linear
    onednn    oneDNN on the weight as it is, which also serves weights that two modules share
    packed    oneDNN on a packed copy, which replaces the weight

float16 and float64 always use F.linear.
"""

from jrt_eval.kernels.linear.modules import OneDNNLinear, PackedLinear
from jrt_eval.kernels.linear.selection import (
    PRODUCTS,
    SETTINGS,
    Times,
    available,
    cache_file,
    cached_times,
    fastest,
    measure,
    products,
    use_fastest,
)

__all__ = [
    "PRODUCTS",
    "SETTINGS",
    "OneDNNLinear",
    "PackedLinear",
    "Times",
    "available",
    "cache_file",
    "cached_times",
    "fastest",
    "measure",
    "products",
    "use_fastest",
]
