"""Does a sampler draw what it says? Draws counted against an exact distribution, with Pearson's chi-square test.

Legend: N frames of a video, K values that are counted (gaps in frames, or places of f1).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import chi2

from dataset_loader.random_temporal_subsample import RandomTemporalSubsample

LEAST_EXPECTED = 5  # in a bin of the test; rarer values are counted together with their neighbours


@dataclass(frozen=True)
class Comparison:
    """Counts of the values 0 … K - 1 beside the probabilities they should have.

    observed: int64 [K]; expected: float64 [K], of the same sum. statistic, degrees, p: of the chi-square test. p is the
    probability of counts at least as far from the exact ones by chance.
    """

    name: str
    observed: np.ndarray
    expected: np.ndarray
    statistic: float
    degrees: int
    p: float

    def __str__(self) -> str:
        return f"{self.name}: chi-square {self.statistic:.1f} at {self.degrees} degrees of freedom, p = {self.p:.3g}"


def compare(name: str, values: np.ndarray, probabilities: np.ndarray) -> Comparison:
    """Count values (integers from 0 on) and test them against probabilities [K].

    A value that should never occur makes the statistic infinite and p zero.
    """
    observed = np.bincount(values, minlength=len(probabilities))
    expected = np.zeros(len(observed))
    expected[: len(probabilities)] = probabilities * len(values)
    if observed[expected == 0].any():
        return Comparison(name, observed, expected, float("inf"), 0, 0.0)
    bins = _bins(expected)
    seen, due = (np.bincount(bins, weights=counts) for counts in (observed, expected))
    statistic, degrees = float(((seen - due) ** 2 / due).sum()), len(due) - 1
    return Comparison(name, observed, expected, statistic, degrees, float(chi2.sf(statistic, degrees)))


def draws(times: np.ndarray, count: int, *, seed: int = 0, **settings: Any) -> np.ndarray:
    """`count` pairs from a clip with these times: int64 [count, 2], numbers of f1 and f2. settings: of the sampler."""
    sampler = RandomTemporalSubsample(repeated_sampling=count, **settings)
    return sampler.draw(times, np.random.default_rng(seed))


def gap_probabilities(table: np.ndarray) -> np.ndarray:
    """From the probabilities of (past, future) [N, N] those of future - past = 0 … N - 1: float64 [N]."""
    return np.array([np.trace(table, offset=gap) for gap in range(len(table))])


def place_probabilities(table: np.ndarray) -> np.ndarray:
    """From the probabilities of (past, future) [N, N] those of past = 0 … N - 1: float64 [N]."""
    return table.sum(axis=1)


def compare_pairs(name: str, pairs: np.ndarray, table: np.ndarray) -> list[Comparison]:
    """Gaps, places and whole pairs [count, 2] of frame numbers against the probabilities of (past, future) [N, N]."""
    past, future = pairs.T
    return [
        compare(f"{name}, gaps", future - past, gap_probabilities(table)),
        compare(f"{name}, places of f1", past, place_probabilities(table)),
        compare(f"{name}, pairs", past * len(table) + future, table.ravel()),
    ]


def histogram_figure(gaps: Comparison, places: Comparison, times: np.ndarray, heading: str = "") -> Figure:
    """Two histograms in one row, of gaps and of f1's places in seconds; the exact distribution as a line."""
    figure = Figure(figsize=(10.5, 3.1), layout="constrained")
    spacing = float(np.median(np.diff(times)))
    for axis, counted, label in zip(
        figure.subplots(1, 2), (gaps, places), ("gap between f1 and f2 (s)", "time of f1 (s)"), strict=True
    ):
        possible = np.flatnonzero(counted.expected + counted.observed)
        seen, due = (counts[possible] / counted.observed.sum() for counts in (counted.observed, counted.expected))
        where = possible * spacing
        axis.bar(where, seen, width=0.85 * spacing, color="0.75", label=f"{counted.observed.sum():,} draws")
        axis.step(where, due, where="mid", color="C3", linewidth=1.2, label="exact")
        axis.set(xlabel=label, ylabel="share", title=f"p = {counted.p:.2g}")
        axis.set_ylim(0, 1.25 * max(seen.max(), due.max()))
        axis.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    figure.suptitle(heading, fontsize=11)
    return figure


def _bins(expected: np.ndarray) -> np.ndarray:
    """For each value the number of its bin: neighbours are joined until a bin expects LEAST_EXPECTED."""
    bins = np.zeros(len(expected), dtype=np.int64)
    number, inside = 0, 0.0
    for k, count in enumerate(expected):
        if inside >= LEAST_EXPECTED:
            number, inside = number + 1, 0.0
        bins[k] = number
        inside += count
    if inside < LEAST_EXPECTED and number:
        bins[bins == number] = number - 1
    return bins
