"""Which pairs may be drawn, and how often, in nested loops; and whether draws are plausible."""

import math
from contextlib import nullcontext
from itertools import pairwise

import numpy as np

VARIABLE = np.cumsum(np.random.default_rng(3).uniform(0.005, 0.12, 80))


def stretches(times: np.ndarray) -> list[list[int]]:
    """Runs of frames: a new one where the clock goes back, or pauses for four times what four fifths of it stay below,
    and longer than the smallest gap."""
    steps = [b - a for a, b in pairwise(times)]
    forwards = sorted(step for step in steps if step > 0) or [0]
    limit = max(4 * forwards[math.floor(0.8 * (len(forwards) - 1))], 4 / 30)
    found = [[0]]
    for k, step in enumerate(steps, 1):
        if step <= 0 or step > limit:
            found.append([])
        found[-1].append(k)
    return found


def by_brute_force(times: np.ndarray, min_gap: int, max_gap: int) -> np.ndarray:
    """The definition in nested loops: probability of (past, future)."""
    table = np.zeros((len(times), len(times)))
    tables = []
    median = np.median([b - a for a, b in pairwise(times) if b > a] or [0])
    for g in range(min_gap, max_gap + 1):
        shares = np.zeros_like(table)
        for run in stretches(times):
            if len(run) < 2:
                continue
            half = min(median, np.median(np.diff(times[run]))) / 2
            for k in run[:-1]:
                if times[k] > times[run[-1]] - g / 30 + 1e-3:
                    continue
                later = run[run.index(k) + 1 :]
                nearest = later[int(np.argmin(np.abs(times[later] - times[k] - g / 30).round(9)))]
                if not min_gap / 30 - half - 1e-6 <= times[nearest] - times[k] <= max_gap / 30 + half + 1e-6:
                    continue
                left = times[k] - times[k - 1] if k > run[0] else times[k + 1] - times[k]
                shares[k, nearest] = (left + times[k + 1] - times[k]) / 2
        if shares.any():
            tables.append(shares / shares.sum())
    return sum(tables) / len(tables) if tables else table


def chi_square_is_plausible(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """Pearson's statistic lies within five standard deviations; what is expected fewer than five times is pooled."""
    expected = probabilities * counts.sum()
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = max(len(expected) - 1, 1)
    statistic = ((observed - expected) ** 2 / expected).sum()
    return statistic < freedom + 5 * np.sqrt(2 * freedom)


def draws_follow(pairs: np.ndarray, table: np.ndarray) -> bool:
    """Whether pairs (past, future) [draws, 2] are plausible: by past, by future, by gap, and where they are many as
    pairs; and none is impossible."""
    counts = np.zeros_like(table)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    seen, due = (
        (x.sum(1), x.sum(0), np.array([np.trace(x, gap) for gap in range(len(x))]), x) for x in (counts, table)
    )
    return counts[table == 0].sum() == 0 and all(map(chi_square_is_plausible, seen, due))


class Sequence:
    """A source of one clip whose pictures show their numbers."""

    names = ("a",)
    path = "a"

    def __init__(self, times: np.ndarray, assumed: bool) -> None:
        self.times, self.assumed = times, assumed

    def open(self, _):
        return nullcontext(self)

    def frames(self, numbers):
        return np.tile(numbers.astype(np.uint8)[:, None, None, None], (4, 4, 3)), self.times[numbers]
