"""When frames are shown: repaired time stamps, and the stretches between which the clock paused or was reset.

Times are seconds in the order of showing. They increase within a run; after a reset of the clock they may go back.

Legend: N frames of a video.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

HOLE = 4.0  # a pause is longer than four fifths of all spacings so many times …
LEAST_HOLE = 4 / 30  # … and than this, in seconds: the smallest gap of a pair


def mend(stamps: Sequence[float | None] | np.ndarray, spacing: float) -> np.ndarray:
    """Times of frames whose stamps may be missing (None, NaN) or occur twice: float64 [N].

    Such a frame is put between its neighbours, or a usual spacing behind the one before it if that is nearer; all other
    stamps stay. spacing: seconds between frames where no stamps tell.
    """
    times = np.array(stamps, dtype=np.float64)
    good = ~np.isnan(times)
    good[1:] &= times[1:] != times[:-1]  # NaN differs from all
    known = np.flatnonzero(good)
    if len(known) == 0:
        return np.arange(len(times)) * spacing
    if len(known) == len(times):
        return times
    usual = usual_spacing(times[good]) if len(known) > 1 else spacing
    times[: known[0]] = times[known[0]] - usual * np.arange(known[0], 0, -1)
    for begin, end in zip(known, np.append(known[1:], len(times)), strict=True):
        step = usual
        if end < len(times) and times[end] > times[begin]:
            step = min(usual, (times[end] - times[begin]) / (end - begin))
        times[begin:end] = times[begin] + step * np.arange(end - begin)
    return times


def usual_spacing(times: np.ndarray) -> float:
    """The median distance in seconds from a frame to the next; 0 of fewer than two."""
    spacings = np.diff(times)
    forwards = spacings[spacings > 0]
    return float(np.median(forwards)) if len(forwards) else 0.0


def resets(times: np.ndarray) -> np.ndarray:
    """The numbers of the frames before which the clock goes back: int64."""
    return np.flatnonzero(np.diff(times) <= 0) + 1


def holes(times: np.ndarray) -> np.ndarray:
    """The numbers of the frames before which the clock pauses, much longer than between other frames: int64."""
    spacings = np.diff(times)
    forwards = spacings[spacings > 0]
    most = float(np.quantile(forwards, 0.8, method="lower")) if len(forwards) else 0.0
    return np.flatnonzero(spacings > max(HOLE * most, LEAST_HOLE)) + 1


def runs(times: np.ndarray) -> list[tuple[int, int]]:
    """(first, last + 1) of the frames between holes and resets."""
    spacings = np.diff(times)
    # One comparison for the many files that have neither.
    if len(times) < 2 or (spacings.min() > 0 and spacings.max() <= LEAST_HOLE):
        return [(0, len(times))]
    ends = [0, *np.union1d(resets(times), holes(times)).tolist(), len(times)]
    return list(pairwise(ends))


def at_least(times: np.ndarray, seconds: float) -> np.ndarray:
    """Assumed times, slowed down to last so many seconds if they last less: of a rate that nobody knows this is as
    likely, and so the first and the last frame of a short sequence are used."""
    lasting = float(times[-1] - times[0]) if len(times) else 0.0
    return times * (seconds / lasting) if 0 < lasting < seconds else times


def ascending(times: Iterable[float], pause: float) -> Iterator[float]:
    """The same times, but after a reset the clock continues, a pause in seconds later.

    For what cannot be written otherwise, such as a video file. With a pause longer than every gap no pair is drawn
    across the place from what was written.
    """
    before, shift = -np.inf, 0.0
    for time in times:
        if time + shift <= before:
            shift = before + pause - time
        before = time + shift
        yield before
