"""Checks before a sweep starts that its checkpoints exist."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jrt_eval.errors import UserError, nearest
from jrt_eval.sweep.plan import model_commit
from jrt_eval.sweep.spec import Sweep

# Hub checkpoints of the papers, suggested in place of a misspelt one.
_SIZES = {"mamba": ("130m", "370m", "1.4b", "2.8b"), "mamba2": ("130m", "370m", "1.3b", "2.7b")}
CHECKPOINTS = [
    *(f"hazyresearch/{name}-360M-30B" for name in ("JRT", "based", "mamba", "attn")),
    *(f"hazyresearch/{name}" for name in ("JRT-1B-50B", "based-1b-50b", "mamba-1b-50b", "attn-1b-50bn")),
    *(f"state-spaces/{family}-{size}" for family, sizes in _SIZES.items() for size in sizes),
    *("fla-hub/gla-1.3B-100B", "fla-hub/gla-2.7B-100B"),
]


def check_checkpoints(sweep: Sweep) -> None:
    """Raise `UserError` for a checkpoint folder that does not exist or, if the hub can be reached, a repository that does not."""
    reachable = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("1", "true", "yes")
    reachable = reachable and os.environ.get("TRANSFORMERS_OFFLINE", "0") != "1"
    for model in sweep.models:
        name = model.args.get("pretrained") or model.args.get("checkpoint_name")
        if not isinstance(name, str) or os.path.exists(name):
            continue
        where = f"model {model.name!r} of {Path(sweep.source).name}"
        if name.startswith(("/", "~", ".")) or name.count("/") != 1:
            parent = Path(name).parent
            beside = [str(p) for p in parent.iterdir() if p.is_dir()] if os.path.isdir(parent) else []
            if name.startswith(("/", "~", ".")):
                raise UserError(f"no checkpoint folder {name} ({where}){nearest(name, beside)}")
            continue
        if reachable and model_commit(model.args) is None:
            reachable = _ask_hub(name, model.args.get("revision"), where)


def _ask_hub(name: str, revision: Any, where: str) -> bool:
    """Look a repository up on the hub. Returns whether the hub could be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(name, revision=revision, timeout=5)
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r} on the hub ({where})") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name} is not on the hub, or not open to you ({where}){nearest(name, CHECKPOINTS)}") from None
    except HfHubHTTPError:
        return True
    except Exception:  # noqa: BLE001 - no network, reported in many ways: the job itself will report it
        return False
    return True
