"""What works on this machine, what does not, and how to fix it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from jrt_eval._version import __version__

# package -> (what needs it, how to get it)
OPTIONAL = {
    "matplotlib": ("plots of `report` and `bench`", "pip install 'jrt-eval[report]'"),
    "scipy": ("intervals of `compare`", "pip install 'jrt-eval[report]'"),
    "statsmodels": ("tests of `compare`", "pip install 'jrt-eval[report]'"),
    "ray": ("`sweep` over several GPUs or machines", "pip install 'jrt-eval[sweep]'"),
    "fla": ("GLA and other fla models on a GPU", "pip install 'jrt-eval[gpu]'"),
    "flash_attn": ("faster attention on a GPU", "pip install flash-attn --no-build-isolation"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. The command exits with status 1 if any finding is `broken`."""

    topic: str
    works: bool
    text: str
    fix: str = ""
    broken: bool = False


def _lm_eval() -> list[Finding]:
    try:
        version = metadata.version("lm_eval")
        from lm_eval.api import registry
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        return [Finding("lm-eval", False, f"not importable: {error}", "pip install 'lm_eval[hf]'", broken=True)]
    from jrt_eval import plugin

    hook = sys.modules.get("jrt_eval_autoload")
    if hook is None:
        how = Finding(
            "hook", False, "jrt_eval_autoload.pth was not read at start-up", "reinstall jrt-eval", broken=True
        )
    elif hook.switched_off():
        value = os.environ.get("JRT_EVAL_AUTOLOAD")
        how = Finding("hook", False, f"off: JRT_EVAL_AUTOLOAD={value!r}", "unset it, or call jrt_eval.register()")
    elif hasattr(registry, "load_plugins"):
        how = Finding("hook", True, "models through lm-eval's entry points, tasks through the start-up hook")
    else:
        how = Finding("hook", True, "models and tasks through the start-up hook (jrt_eval_autoload.pth)")

    findings = [Finding("lm-eval", True, version), how]
    try:
        adapter = registry.get_model("jrt")
        findings.append(Finding("model jrt", True, f"{adapter.__module__}.{adapter.__name__}"))
    except (KeyError, ValueError, ImportError) as error:
        line = str(error).strip("'\"").splitlines()[0]
        findings.append(Finding("model jrt", False, line, "see `hook`; JRT_EVAL_DEBUG=1 for more", broken=how.works))
    ours = str(plugin.task_folder())
    names = [n for n in TaskManager(include_defaults=True).all_tasks if n.startswith("jrt_")] if how.works else []
    findings.append(
        Finding("tasks", bool(names), f"{len(names)} tasks and groups from {ours}", "", how.works and not names)
    )
    return findings


def _kernels() -> Finding:
    from jrt_eval import kernels

    status = kernels.status()
    return Finding("kernels", status.compiled, status.text, status.mend)


def _cuda_kernels() -> Finding:
    from jrt_eval.kernels import compiled

    text, _, fix = (compiled.cuda_missing or "compiled").partition("; ")
    return Finding("cuda kernels", compiled.cuda_missing is None, text, fix)


def _triton_kernels() -> Finding:
    from jrt_eval.kernels.dispatch import BACKENDS, OPERATORS

    folders = [
        folder for folder, functions in OPERATORS.items() if any("triton" in names for names in functions.values())
    ]
    text, _, fix = (BACKENDS["triton"].missing or f"on a GPU: {', '.join(folders)}").partition("; ")
    return Finding("triton kernels", BACKENDS["triton"].missing is None, text, fix)


def _cpu_linear() -> Finding:
    import torch

    from jrt_eval.kernels import linear

    dtypes = [d for d in (torch.float32, torch.bfloat16) if linear.available(d)]
    if not dtypes:
        return Finding("cpu linear", False, "this PyTorch has no oneDNN: linear layers use F.linear")
    names = " and ".join(str(d).removeprefix("torch.") for d in dtypes)
    fastest = Counter(linear.fastest(times) for times in linear.cached_times().values())
    if not fastest:
        return Finding("cpu linear", True, f"oneDNN in {names}; nothing is measured on this machine yet")
    counts = ", ".join(f"{product} {fastest[product]}" for product in linear.PRODUCTS if fastest[product])
    return Finding("cpu linear", True, f"oneDNN in {names}; fastest product by shape: {counts} ({linear.cache_file()})")


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", False, str(error), "pip install torch", broken=True)]
    findings = [Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} CPU threads")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gib = torch.cuda.get_device_properties(i).total_memory / 2**30
            findings.append(Finding(f"cuda:{i}", True, f"{torch.cuda.get_device_name(i)}, {gib:.0f} GiB"))
    elif torch.version.cuda is None:
        findings.append(Finding("cuda", False, "this torch is built without CUDA", "pip install a CUDA build of torch"))
    else:
        findings.append(Finding("cuda", False, f"no GPU found (torch is built for CUDA {torch.version.cuda})"))
    return findings


def _optional() -> list[Finding]:
    findings = []
    for name, (use, fix) in OPTIONAL.items():
        if util.find_spec(name) is None:
            findings.append(Finding(name, False, f"not installed: {use}", fix))
        else:
            findings.append(Finding(name, True, use))
    return findings


def _data() -> Finding:
    folder = os.environ.get("JRT_EVAL_DATA_DIR")
    if folder is None:
        return Finding("documents", True, "from the Hugging Face hub (JRT_EVAL_DATA_DIR not set)")
    if not Path(folder).is_dir():
        return Finding(
            "documents", False, f"JRT_EVAL_DATA_DIR={folder}: no such folder", "correct it or unset it", broken=True
        )
    sets = sorted(p.parent.name for p in Path(folder).glob("*/validation.*"))
    return Finding("documents", bool(sets), f"{folder}: {', '.join(sets) or 'no <dataset>/validation.jsonl in it'}")


def examine_model(name: str) -> list[Finding]:
    """Load a model and say how it is evaluated. Raises `UserError` if it cannot be loaded."""
    import torch

    from jrt_eval.errors import UserError
    from jrt_eval.models.auto import load_model
    from jrt_eval.models.context import context_length
    from jrt_eval.models.tokenizers import load_tokenizer

    model = load_model(name, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = load_tokenizer(name)
        found = Finding("tokenizer", True, f"{tokenizer.name_or_path}, {len(tokenizer):,} tokens")
    except UserError as error:
        tokenizer, found = None, Finding("tokenizer", False, str(error), "give one as tokenizer=...", broken=True)
    length = context_length(model.raw_config, tokenizer)
    size = model.state_bytes(length)
    dtype = str(model.dtype).removeprefix("torch.")
    return [
        Finding("model", True, f"{name}: {model.family}, {model.num_parameters():,} parameters, {dtype}"),
        found,
        Finding("context", True, f"{length:,} tokens"),
        Finding("batches", True, f"{model.batching.decode}: {model.batching.reason}"),
        Finding(
            "functions", True, ", ".join(f"{name}: {by}" for name, by in model.kernels.items()) or "none to replace"
        ),
        Finding(
            "state",
            True,
            f"{size.total:,} bytes after {length:,} tokens: attention cache {size.attention:,}, recurrent "
            f"{size.recurrent:,}, convolution {size.convolution:,}",
        ),
    ]


def examine() -> list[Finding]:
    """All findings. Imports torch and lm_eval."""
    python = f"{sys.version.split()[0]} ({sys.executable})"
    return [
        Finding("jrt-eval", True, f"{__version__} from {Path(__file__).parent}"),
        Finding("python", True, python),
        *_lm_eval(),
        _kernels(),
        _cuda_kernels(),
        _triton_kernels(),
        _cpu_linear(),
        *_devices(),
        _data(),
        *_optional(),
    ]
