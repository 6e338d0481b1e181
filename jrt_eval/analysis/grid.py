"""Depth grids: scores by the answer's place in the context and by the context's length, of both arms of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from jrt_eval.analysis.comparison import Comparison
from jrt_eval.analysis.runs import VARIANTS
from jrt_eval.analysis.schema import DEPTH, LENGTH
from jrt_eval.analysis.table import Name, Table, with_columns
from jrt_eval.analysis.tables import Unit, comparison_unit, dataset_name
from jrt_eval.errors import UserError

EXACT = 12  # as many different depths or lengths are shown as they are; more are put into bins
_DEPTH_BINS = 5
_SEPARATE = 12  # as many grids are shown task by task; of more, the tasks of a model are taken together


@dataclass(frozen=True)
class Grid:
    """One model's grid of one task.

    task: empty for all tasks together. lengths, depths: names of the columns and rows. first, second: mean scores, and n: pairs; all of shape (depths,
    lengths). An empty cell is nan.
    """

    model: str
    task: str
    lengths: list[str]
    depths: list[str]
    first: np.ndarray
    second: np.ndarray
    n: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """second - first, of shape (depths, lengths)."""
        return np.asarray(self.second - self.first)


def depth_grids(comparison: Comparison) -> list[Grid]:
    """The grids of every model and task, with equal rows and columns; empty where no pair has both a depth and a length.

    Of many models and tasks, each model has one grid of all its pairs.
    """
    pairs = comparison.pairs
    known = pairs[pairs[DEPTH].notna() & pairs[LENGTH].notna()]
    if known.empty:
        return []
    depth, depths = _depth_bins(known[DEPTH])
    length, lengths = _length_bins(known[LENGTH])
    shape = (len(depths), len(lengths))
    model = known["model"].astype(str).to_numpy()
    task = known["dataset"].astype(str).str.partition(" @")[0].to_numpy()
    if len(set(zip(model, task, strict=True))) > _SEPARATE or len(set(task)) == 1:
        task = np.full(len(task), "")
    grids = []
    for name, of_task in sorted(set(zip(model, task, strict=True))):
        mine = (model == name) & (task == of_task)
        cell, weight = depth[mine] * len(lengths) + length[mine], known["weight"].to_numpy()[mine]
        total = np.bincount(cell, weight, minlength=shape[0] * shape[1])
        means = []
        for side in ("first", "second"):
            sums = np.bincount(cell, weight * known[side].to_numpy()[mine], minlength=len(total))
            means.append(np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0).reshape(shape))
        n = np.bincount(cell, minlength=len(total)).reshape(shape)
        grids.append(Grid(name, of_task, lengths, depths, means[0], means[1], n))
    return grids


def has_grid(comparison: Comparison) -> bool:
    """Whether there are several depths at several lengths, so that a grid says more than one curve."""
    known = comparison.pairs[[DEPTH, LENGTH]].dropna()
    return known[LENGTH].nunique() > 1 and known[DEPTH].nunique() > 1


def grid_table(grids: list[Grid], comparison: Comparison) -> Table:
    """A row per model, task and depth; first, second and gain of each length. Raises UserError if there is no grid."""
    if not grids:
        raise UserError(
            f"no sample says its {DEPTH} and {LENGTH}: run the tasks jrt_depth or jrt_needle, or write both into documents"
        )
    unit: Unit = comparison_unit(comparison)
    arms = comparison.arms if comparison.arms[0] in VARIANTS else ("first", "second")
    gain = "gain" if comparison.higher_is_better else "change"
    by_task = any(grid.task for grid in grids)
    labels = ["model", *(["task"] if by_task else []), "answer's depth"]
    columns: list[Name] = [(label, label) for label in labels]
    columns += [(length, name) for length in grids[0].lengths for name in (*arms, gain)]
    records = [
        [grid.model, *([dataset_name(grid.task)] if by_task else []), depth]
        + [
            unit.of(values[row, column])
            for column in range(len(grid.lengths))
            for values in (grid.first, grid.second, grid.gain)
        ]
        for grid in grids
        for row, depth in enumerate(grid.depths)
    ]
    filled = [int(n) for grid in grids for n in grid.n.ravel() if n]
    low, high = min(filled), max(filled)
    cells = f"{low:,} pairs in each cell" if low == high else f"{low:,} to {high:,} pairs in a cell"
    notes = [cells, *comparison.warnings]
    formats = {(length, gain): "signed" for length in grids[0].lengths}
    title = f"{unit.title}: by the answer's depth (0: start, 1: end) and the context length (tokens)"
    frame = with_columns(records, columns)
    return Table(title, frame, len(labels), [], notes, unit.decimals, formats, slug="grid")


def _depth_bins(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """A bin per value, and the bins' names, from 0 to 1."""
    rounded = values.round(2)
    places = np.sort(rounded.unique())
    if len(places) <= EXACT:
        return np.searchsorted(places, rounded.to_numpy()), [f"{place:g}" for place in places]
    bins = np.minimum((values.to_numpy() * _DEPTH_BINS).astype(int), _DEPTH_BINS - 1)
    edges = [i / _DEPTH_BINS for i in range(_DEPTH_BINS + 1)]
    return bins, [f"{low:g} to {high:g}" for low, high in pairwise(edges)]


def _length_bins(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """A bin per value, and the bins' names; many different lengths are put between powers of two."""
    lengths = np.sort(values.unique())
    if len(lengths) <= EXACT:
        return np.searchsorted(lengths, values.to_numpy()), [f"{length:.0f}" for length in lengths]
    powers = np.ceil(np.log2(values.to_numpy())).astype(int)
    low, high = int(powers.min()), int(powers.max())
    return powers - low, [f"to {2**power}" for power in range(low, high + 1)]
