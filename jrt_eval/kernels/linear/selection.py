"""Which product each linear layer of a model uses: measured once per machine, shape and dtype, then read from a file.

The file is `jrt_eval/cpu_linear.json` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache).
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.errors import UserError, nearest
from jrt_eval.files import write_text
from jrt_eval.kernels.linear.modules import OneDNNLinear, PackedLinear, onednn_linear, pack

log = logging.getLogger(__name__)

PRODUCTS = ("torch", "onednn", "packed")
SETTINGS = ("auto", "torch", "packed")
ROWS = (1, 8, 64)  # tokens of one call: a decode step of one row and of a batch, and a prefill
ROUNDS = (5, 15)  # timed runs of each product: at least, and at most while they take less than
BUDGET = 0.02  # seconds for one number of rows
SMALLEST = 2**14  # elements of a weight below which F.linear, with the shortest way to its kernel, is taken unmeasured
LARGEST = 2**23  # elements of a weight that are timed: the first rows represent all of a vocabulary
MARGIN = 0.97  # another product than F.linear must take less than this share of its time

# product -> seconds for each entry of ROWS
Times: TypeAlias = dict[str, list[float]]


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch multiplies in `dtype` through oneDNN on this processor."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        x, weight = torch.ones(2, 16, dtype=dtype), torch.ones(16, 16, dtype=dtype)
        for w in (weight, pack(weight)):
            if not torch.equal(onednn_linear(x, w, None), F.linear(x, weight)):
                return False
    except (RuntimeError, AttributeError) as error:
        log.debug("no oneDNN products in %s: %s", dtype, error)
        return False
    return True


def use_fastest(model: nn.Module, setting: str = "auto") -> None:
    """Give every `nn.Linear` of `model` that is on the CPU its product.

    setting: "auto" takes the fastest of PRODUCTS by measurement, "torch" leaves the model as it is, "packed" packs every
    weight that can be packed. Raises `UserError` for another setting. The model should be in evaluation mode, and no
    reference to its weights should be kept elsewhere: packing releases them.
    """
    if setting not in SETTINGS:
        raise UserError(
            f"cpu_linear={setting} is not known, these are: {', '.join(SETTINGS)}" + nearest(setting, list(SETTINGS))
        )
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    known = cached_times() if setting == "auto" else {}
    measured: dict[str, Times] = {}
    for layer in model.modules():
        if type(layer) is not nn.Linear or layer.weight.device.type != "cpu":
            continue
        product = "torch"
        if setting != "torch" and available(layer.weight.dtype) and layer.weight.numel():
            shared = owners[id(layer.weight)] > 1
            if setting == "packed":
                product = "onednn" if shared else "packed"
            else:
                if layer.weight.numel() < SMALLEST:
                    continue
                key = shape_key(layer.weight)
                if key not in known:
                    known[key] = measured[key] = measure(layer.weight.detach())
                product = fastest(known[key], shared)
        if product == "onednn":
            OneDNNLinear.convert(layer)
        elif product == "packed":
            PackedLinear.convert(layer)
    if measured:
        _remember(measured)


def products(model: nn.Module) -> dict[str, int]:
    """How many linear layers on the CPU use which product; products without layers are left out."""
    used: Counter[str] = Counter()
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            used["packed"] += 1
        elif isinstance(layer, nn.Linear) and layer.weight.device.type == "cpu":
            used["onednn" if isinstance(layer, OneDNNLinear) else "torch"] += 1
    return {product: used[product] for product in PRODUCTS if used[product]}


def fastest(times: Times, shared: bool = False) -> str:
    """The product with the smallest geometric mean over ROWS; a weight that two modules share cannot be packed."""
    mean = {product: math.prod(seconds) ** (1 / len(seconds)) for product, seconds in times.items()}
    if shared:
        del mean["packed"]
    best = min(mean, key=lambda product: mean[product])
    return best if mean[best] < MARGIN * mean["torch"] else "torch"


@torch.inference_mode()
def measure(weight: Tensor) -> Times:
    """Seconds that each product takes with `weight` (out, in), for each of ROWS: the least of interleaved runs.

    One thread runs, and its processor time counts: on a busy machine the threads of a pool wait for each other, which would
    decide more than the products do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(weight)
    finally:
        torch.set_num_threads(threads)


def _measure(weight: Tensor) -> Times:
    weight = weight[: max(1, LARGEST // weight.shape[1])]
    packed = pack(weight)
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "torch": lambda x: F.linear(x, weight),
        "onednn": lambda x: onednn_linear(x, weight, None),
        "packed": lambda x: onednn_linear(x, packed, None),
    }
    times: Times = {product: [] for product in runs}
    for rows in ROWS:
        x = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
        least = dict.fromkeys(runs, math.inf)
        start = time.perf_counter()
        for number in range(ROUNDS[1] + 1):
            for product, run in runs.items():
                begin = time.thread_time()
                run(x)
                if number:  # the first run sets up oneDNN's kernel
                    least[product] = min(least[product], time.thread_time() - begin)
            if number >= ROUNDS[0] and time.perf_counter() - start > BUDGET:
                break
        for product, seconds in least.items():
            times[product].append(seconds)
    return times


# --- the file


def cache_file() -> Path:
    """Where measured times are kept between runs."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "jrt_eval" / "cpu_linear.json"


def shape_key(weight: Tensor) -> str:
    """What the measured times of a weight (out, in) depend on besides the machine."""
    out, width = weight.shape
    return f"{str(weight.dtype).removeprefix('torch.')} {width} -> {out}"


@cache
def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> str:
    """What all times depend on: the processor and PyTorch's version."""
    return f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}"


def cached_times() -> dict[str, Times]:
    """This machine's measured times by shape; empty without a readable file."""
    times: dict[str, Times] = {}
    for key, held in _read().get(machine(), {}).items():
        if isinstance(held, dict) and set(held) == set(PRODUCTS) and all(_is_row(row) for row in held.values()):
            times[key] = held
    return times


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == len(ROWS) and all(isinstance(t, float) and t > 0 for t in row)


def _read() -> dict[str, dict[str, object]]:
    try:
        held = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in held.items() if isinstance(v, dict)} if isinstance(held, dict) else {}


def _remember(measured: Mapping[str, Times]) -> None:
    held = _read()
    held[machine()] = {**held.get(machine(), {}), **measured}
    try:
        write_text(cache_file(), json.dumps(held, indent=1) + "\n")
    except UserError as error:
        log.debug("times of linear layers are measured again next time: %s", error)
