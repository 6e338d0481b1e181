"""Coverage and error rates by simulation, seeded; and p values against scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar

from jrt_eval.analysis.intervals import Sums, estimate, interval, sign_flip_p

REPEATS = 800
NOISE = 0.015  # two standard errors of a coverage of .95 in so many repeats


def draw(rng: np.random.Generator, documents: int, rows: int, better: float, worse: float, alike: float) -> Sums:
    """Documents of `rows` rows on average; a row repeats its document's change with probability `alike`."""
    sizes = np.full(documents, 1) if rows == 1 else rng.integers(1, 2 * rows, documents)
    chance = [better, worse, 1 - better - worse]
    changes = rng.choice([1.0, -1.0, 0.0], p=chance, size=(documents, sizes.max()))
    common = rng.choice([1.0, -1.0, 0.0], p=chance, size=(documents, 1))
    changes = np.where(rng.random(changes.shape) < alike, common, changes)
    return Sums((changes * (np.arange(sizes.max()) < sizes[:, None])).sum(axis=1), sizes.astype(float))


@pytest.mark.parametrize("documents", [10, 12, 20, 40, 100, 400])
@pytest.mark.parametrize(("better", "worse"), [(0.3, 0.1), (0.15, 0.15), (0.04, 0.02)])
@pytest.mark.parametrize(("rows", "alike"), [(1, 0.0), (6, 0.3)])
def test_coverage(documents: int, better: float, worse: float, rows: int, alike: float) -> None:
    rng = np.random.default_rng([documents, rows, int(100 * better)])
    covered = 0
    for _ in range(REPEATS):
        low, high, _ = interval([draw(rng, documents, rows, better, worse, alike)], share=True)
        covered += low <= better - worse <= high
    coverage = covered / REPEATS
    assert coverage > 0.93 - NOISE
    changing = documents * (1 - (1 - better - worse) ** rows)
    if changing > 12:  # with fewer changes the interval is wider than need be: nothing else is known
        assert coverage < 0.97 + NOISE


@pytest.mark.parametrize("documents", [20, 40, 100, 400])
def test_coverage_of_shares_between_zero_and_one(documents: int) -> None:
    """Such as f1: 40% of the documents change, by -0.6 to 1."""
    rng = np.random.default_rng([5, documents])
    covered = 0
    for _ in range(REPEATS):
        change = np.where(rng.random(documents) < 0.4, rng.uniform(-0.6, 1, documents), 0)
        low, high, _ = interval([Sums(change, np.ones(documents))], share=True)
        covered += low <= 0.4 * 0.2 <= high
    assert 0.93 - NOISE < covered / REPEATS < 0.97 + NOISE


def test_coverage_pooled_over_data_sets() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(REPEATS):
        low, high, _ = interval([draw(rng, n, 1, 0.25, 0.05, 0.0) for n in (20, 40, 60, 80, 100)], share=True)
        covered += low <= 0.2 <= high
    assert 0.93 - NOISE < covered / REPEATS < 0.97 + NOISE


@pytest.mark.parametrize("rows", [1, 6])
def test_a_true_null_is_rejected_in_five_percent(rows: int) -> None:
    """Rows that share documents made McNemar's test reject in 17%."""
    rng = np.random.default_rng(4)
    drawn = [draw(rng, 40, rows, 0.15, 0.15, 0.8) for _ in range(500)]
    assert np.mean([sign_flip_p(part.difference) < 0.05 for part in drawn]) < 0.07


def test_p_is_mcnemars_exact_one() -> None:
    for fixed, broken in ((13, 0), (10, 3), (8, 7), (1, 0)):
        differences = np.array([1.0] * fixed + [-1.0] * broken + [0.0] * 20)
        assert sign_flip_p(differences) == pytest.approx(mcnemar([[5, fixed], [broken, 5]], exact=True).pvalue)
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_p_of_documents_with_several_rows() -> None:
    assert sign_flip_p(np.array([2.0, 2.0, 2.0, -2.0])) == pytest.approx(binomtest(3, 4).pvalue)
    # every sign of 3, 2, 1: sums 6, 4, 2, 0, 0, -2, -4, -6
    assert sign_flip_p(np.array([3.0, 2.0, -1.0])) == pytest.approx(4 / 8)
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, 200)
    assert sign_flip_p(values) == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flip_p(rng.normal(0, 1, 3000)) > 0.001  # the normal approximation


def test_nothing_changed_and_nothing_known() -> None:
    still = estimate([Sums(np.zeros(40), np.ones(40))], share=True)
    assert still.gain == 0 and still.low == -still.high and 0.05 < still.high < 0.1
    assert np.isnan(estimate([Sums(np.zeros(40), np.ones(40))], share=False).low)
    assert np.isnan(estimate([Sums(np.ones(1), np.ones(1))], share=False).low)


def test_unbounded_metrics_have_the_t_interval() -> None:
    values = np.random.default_rng(1).normal(5, 2, 30)
    found = estimate([Sums(values, np.ones(30))], share=False)
    direct = ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(direct.low), pytest.approx(direct.high))


def test_detectable_gain_is_found_with_the_power_it_says() -> None:
    rng = np.random.default_rng(2)
    detectable = np.mean([estimate([draw(rng, 100, 1, 0.1, 0.1, 0)], share=True).detectable for _ in range(50)])
    better, worse = 0.1 + detectable / 2, 0.1 - detectable / 2
    found = [interval([draw(rng, 100, 1, better, worse, 0)], share=True)[0] > 0 for _ in range(400)]
    assert 0.68 < np.mean(found) < 0.88


def test_pooling_by_size() -> None:
    parts = [Sums(np.ones(10), np.ones(10)), Sums(np.zeros(30), np.ones(30))]
    assert estimate(parts, share=True).gain == pytest.approx(0.5)
    assert estimate(parts, share=True, by_size=True).gain == pytest.approx(0.25)
