"""How good an uncertainty is: does it rank errors (AUSE, Spearman), and does it have their size (ENCE, coverage, NLL)?

Legend: M places (hidden patches, or their pixels), f a share of them.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 100  # shares at which sparsification is looked at
LEVELS = tuple(k / 10 for k in range(1, 10))  # of coverage
BINS = 10  # of ENCE


def sparsification(squared: Floats, uncertainty: Floats) -> Floats:
    """Squared errors and uncertainties [M] → RMSE of what is left without the most uncertain share f = 0, 0.01 … 0.99,
    relative to f = 0 (Ilg et al. 2018, §4.2): [100]. Places that are equally uncertain go in their own order."""
    order = np.argsort(-uncertainty, kind="stable")
    left = np.cumsum(squared[order][::-1])[::-1] / np.arange(len(squared), 0, -1)  # mean of those from k on
    curve = np.sqrt(left[np.arange(STEPS) * len(squared) // STEPS])
    return curve / curve[0] if curve[0] else np.ones(STEPS)


def ause(squared: Floats, uncertainty: Floats) -> float:
    """Area between the curve of an uncertainty and that of the errors themselves, as a mean over the 100 shares."""
    return float((sparsification(squared, uncertainty) - sparsification(squared, squared)).mean())


def spearman(squared: Floats, uncertainty: Floats) -> float:
    """Correlation of the ranks; NaN of a constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (squared, uncertainty)]
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(uncertainty) and np.ptp(squared) else math.nan


def nll(squared: Floats, variance: Floats) -> float:
    """Mean Gaussian negative log-likelihood, with its constant."""
    return float((0.5 * (squared / variance + np.log(variance) + math.log(2 * math.pi))).mean())


def ence(squared: Floats, variance: Floats) -> float:
    """Mean of |RMV − RMSE| / RMV over ten bins of equal count along the variance (Levi et al. 2022, eq. 8)."""
    order = np.argsort(variance, kind="stable")
    pairs = zip(np.array_split(variance[order], BINS), np.array_split(squared[order], BINS), strict=True)
    roots = [(math.sqrt(v.mean()), math.sqrt(e.mean())) for v, e in pairs if len(v)]
    return float(np.mean([abs(rmv - rmse) / rmv for rmv, rmse in roots]))


def coverage(squared: Floats, variance: Floats) -> Floats:
    """For each of `LEVELS` the share of errors within the central interval of that probability: [9]."""
    ratio = np.sqrt(squared / variance)
    return np.array([(ratio <= NormalDist().inv_cdf(0.5 + level / 2)).mean() for level in LEVELS])


def coverage_error(squared: Floats, variance: Floats) -> float:
    """Mean of |share − level|."""
    return float(np.abs(coverage(squared, variance) - LEVELS).mean())


def recalibration(squared: Floats, variance: Floats) -> float:
    """a² = mean(e² / σ²): the factor of the variance with the largest likelihood; fit it on other videos."""
    return float((squared / variance).mean())
