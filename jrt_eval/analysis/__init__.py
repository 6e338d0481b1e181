"""lm-eval output as tidy data frames, and the comparisons, tables, plots and report made from them.

Importing this package imports neither torch nor lm_eval; each name below loads its module when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jrt_eval.analysis.collecting import collect
    from jrt_eval.analysis.comparison import Comparison, compare_models, compare_variants
    from jrt_eval.analysis.load import Results, load_results
    from jrt_eval.analysis.published import published_scores
    from jrt_eval.analysis.tables import gain_table, length_table, prompt_table, scores_table

__all__ = [
    "Comparison",
    "Results",
    "collect",
    "compare_models",
    "compare_variants",
    "gain_table",
    "length_table",
    "load_results",
    "prompt_table",
    "published_scores",
    "scores_table",
]

_HOME = {
    "Comparison": "comparison",
    "Results": "load",
    "collect": "collecting",
    "compare_models": "comparison",
    "compare_variants": "comparison",
    "gain_table": "tables",
    "length_table": "tables",
    "load_results": "load",
    "prompt_table": "tables",
    "published_scores": "published",
    "scores_table": "tables",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"jrt_eval.analysis.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
