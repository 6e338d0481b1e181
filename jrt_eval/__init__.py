"""jrt-eval: recall of recurrent language models, measured on the stock lm-eval harness.

Importing this package imports neither torch nor lm_eval; the names below load what they need when used.
"""

from __future__ import annotations

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from jrt_eval._version import __version__

if TYPE_CHECKING:
    from jrt_eval.analysis import Results, load_results
    from jrt_eval.models import load_model
    from jrt_eval.plugin import register

# Run inside a checkout, the source tree comes before the installed package and has no compiled part:
# look for that (and for tasks/ and model_adapters/) in the installed one too.
__path__ = extend_path(__path__, __name__)

__all__ = ["Results", "__version__", "load_model", "load_results", "register"]

_HOME = {
    "Results": "jrt_eval.analysis",
    "load_model": "jrt_eval.models",
    "load_results": "jrt_eval.analysis",
    "register": "jrt_eval.plugin",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
