"""The grid's data frame and figure: accuracy against state size with the short set first, the long set first, and their difference."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jrt_eval.files import replacing

if TYPE_CHECKING:
    import pandas as pd

    from jrt_eval.experiments.state_size.points import PointResult

_KEY = ["width", "feature_dim", "causal", "state_bytes"]


def frame(found: list[PointResult]) -> pd.DataFrame:
    """A row for each model and pair of sizes; `order` is short_first or long_first."""
    import pandas as pd

    rows = [
        {
            **asdict(result.point),
            "state_bytes": result.state_bytes,
            "parameters": result.parameters,
            "steps": result.settings.steps,
            **asdict(score),
            "order": "short_first" if score.first < score.second else "long_first",
            "examples": result.settings.evaluation_examples,
        }
        for result in found
        for score in result.scores
    ]
    return pd.DataFrame(rows).sort_values([*_KEY, "rate", "seed", "first", "second"], ignore_index=True)


def by_order(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each model: mean accuracy over the pairs of each order, their difference, and whether it is the best of its shape.

    The best has the highest mean over both orders; the paper also shows the best of its runs.
    """
    means = scores.pivot_table(index=[*_KEY, "rate", "seed"], columns="order", values="accuracy").reset_index()
    means["difference"] = means["short_first"] - means["long_first"]
    total = means["short_first"] + means["long_first"]
    means["best"] = total.groupby([means[key] for key in _KEY]).rank(method="first", ascending=False) == 1
    return means


def summary(scores: pd.DataFrame) -> str:
    """A table of the best model of each shape, with the mean difference of all its models and how many are worse with the long set first."""
    means = by_order(scores)
    every = (
        means.groupby(_KEY)["difference"].agg(mean="mean", worse=lambda d: (d > 0).sum(), models="count").reset_index()
    )
    best = means.query("best").merge(every, on=_KEY).sort_values(["causal", "state_bytes"])
    lines = [
        f"{'':<10}{'width':>6}{'features':>10}{'state':>11}{'short first':>13}{'long first':>12}{'difference':>12}"
        f"{'mean of all':>13}{'worse long first':>18}"
    ]
    for row in best.itertuples():
        kind = "causal" if row.causal else "non-causal"
        lines.append(
            f"{kind:<10}{row.width:>6}{row.feature_dim:>10}{row.state_bytes:>9,} B{row.short_first:>13.3f}"
            f"{row.long_first:>12.3f}{row.difference:>+12.3f}{row.mean:>+13.3f}{f'{row.worse} of {row.models}':>18}"
        )
    return "\n".join(lines)


def by_pair(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each shape and pair of sizes: the accuracy of its best model in both orders, and their difference.

    `guess` is the accuracy of naming a random element of the shorter set.
    """
    best = by_order(scores).query("best")[[*_KEY, "rate", "seed"]]
    chosen = scores.merge(best, on=[*_KEY, "rate", "seed"])
    chosen = chosen.assign(
        shorter=chosen[["first", "second"]].min(axis=1), longer=chosen[["first", "second"]].max(axis=1)
    )
    pairs = chosen.pivot_table(index=[*_KEY, "shorter", "longer"], columns="order", values="accuracy").reset_index()
    pairs["difference"] = pairs["short_first"] - pairs["long_first"]
    pairs["guess"] = 1 / pairs["shorter"]
    return pairs


def pair_summary(scores: pd.DataFrame) -> str:
    """A table of the best model of each shape, for each pair of sizes."""
    lines = [f"{'':<10}{'state':>11}{'sets':>10}{'guess':>8}{'short first':>13}{'long first':>12}{'difference':>12}"]
    for row in by_pair(scores).sort_values(["causal", "state_bytes", "longer", "shorter"]).itertuples():
        kind, pair = "causal" if row.causal else "non-causal", f"{row.shorter}, {row.longer}"
        lines.append(
            f"{kind:<10}{row.state_bytes:>9,} B{pair:>10}{row.guess:>8.3f}{row.short_first:>13.3f}"
            f"{row.long_first:>12.3f}{row.difference:>+12.3f}"
        )
    return "\n".join(lines)


def draw(scores: pd.DataFrame, path: Path) -> None:
    """Draw three panels that share the axis of state size. Every model is a dot; lines join the best of each shape."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    means = by_order(scores)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharex=True, layout="constrained")
    panels = (
        ("short_first", "short set first, |A| < |B|"),
        ("long_first", "long set first, |A| > |B|"),
        ("difference", "short first less long first"),
    )
    for axis, (column, title) in zip(axes, panels, strict=True):
        for causal, colour, marker in ((True, "#c44e52", "o"), (False, "#4c72b0", "s")):
            part = means[means["causal"] == causal]
            best = part[part["best"]].sort_values("state_bytes")
            axis.plot(part["state_bytes"], part[column], marker, color=colour, alpha=0.25, markersize=3)
            axis.plot(
                best["state_bytes"], best[column], f"-{marker}", color=colour, markersize=5,
                label="causal" if causal else "non-causal",
            )  # fmt: skip
        axis.set(title=title, xlabel="recurrent state (bytes, float32)")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="accuracy", ylim=(0, 1.02))
    axes[1].set(ylim=(0, 1.02))
    axes[2].axhline(0, color="black", linewidth=0.8)
    axes[0].legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
