"""Which two frames make a pair: the past frame f1, and the future frame f2 a random gap later.

SiamMAE (Gupta et al. 2023) draws the gap from 4…48 frames of 30 fps video, both ends included. Here a gap is a time,
g/30 s, so that it means the same at every frame rate, and f1 comes before f2 by construction.
"""

import numpy as np
import torch
from torch import Tensor

from mae.files import InputError

# Containers round presentation times to milliseconds: a gap that is longer than the clip by less than this still fits.
TOLERANCE = 1e-3


class RandomTemporalSubsample:
    """Draws pairs of frames from a clip, and serves as a transform that leaves those two frames of a video tensor.

    min_gap, max_gap: the gap's limits, both included, in frames at `fps`. temporal_dim: the dimension of time in the
    tensors it is called with (-3: [..., F, H, W]). repeated_sampling: R pairs, each a fresh draw.
    """

    def __init__(
        self, min_gap: int = 4, max_gap: int = 48, temporal_dim: int = -3, repeated_sampling: int = 1, fps: float = 30
    ) -> None:
        if not 1 <= min_gap <= max_gap:
            raise InputError(f"gaps of {min_gap} to {max_gap} frames were asked for; needed is 1 ≤ min_gap ≤ max_gap")
        if repeated_sampling < 1:
            raise InputError(f"repeated_sampling is {repeated_sampling}; it must be at least 1")
        if not 0 < fps <= 1000:
            raise InputError(f"fps is {fps}; it must be above 0 and at most 1000")
        self.min_gap = min_gap
        self.max_gap = max_gap
        self.temporal_dim = temporal_dim
        self.repeated_sampling = repeated_sampling
        self.fps = fps

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw R pairs: int64 [R, 2], numbers of the past and the future frame into `times` (seconds, ascending).

        The gap is uniform among those that fit the clip; f1 is uniform over what remains, each frame with the share of
        time around it; f2 is the frame nearest to f1's time plus the gap. A clip shorter than the smallest gap gives
        its first and last frame. Raises InputError for fewer than two frames.
        """
        times = _checked(times)
        gaps = self._gaps(times)
        pairs = np.empty((self.repeated_sampling, 2), dtype=np.int64)
        for pair in pairs:
            if len(gaps) == 0:
                pair[:] = 0, len(times) - 1
                continue
            gap = gaps[generator.integers(len(gaps))]
            shares = _shares(times, gap)
            first = int(np.searchsorted(np.cumsum(shares), generator.random(), side="right"))
            first = min(first, len(shares) - 1)  # the shares may sum to a hair less than 1
            pair[:] = first, _partner(times, first, gap)
        return pairs

    def probabilities(self, times: np.ndarray) -> np.ndarray:
        """The exact distribution that `draw` follows: float64 [N, N], the probability of each (past, future)."""
        times = _checked(times)
        table = np.zeros((len(times), len(times)))
        gaps = self._gaps(times)
        if len(gaps) == 0:
            table[0, -1] = 1
        for gap in gaps:
            for first, share in enumerate(_shares(times, gap)):
                table[first, _partner(times, first, gap)] += share / len(gaps)
        return table

    def __call__(
        self, video: Tensor, times: np.ndarray | None = None, generator: np.random.Generator | None = None
    ) -> Tensor:
        """Reduce the temporal dimension of a video to the two frames of a pair; R > 1 pairs get a leading dimension.

        times: seconds of its frames; without them its frames are taken to be 1/fps apart. generator: without one,
        a new one is seeded from torch's, so that torch's seed decides.
        """
        if times is None:
            times = np.arange(video.shape[self.temporal_dim]) / self.fps
        if len(times) != video.shape[self.temporal_dim]:
            raise InputError(f"{len(times)} times were given for {video.shape[self.temporal_dim]} frames of a video")
        if generator is None:
            generator = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        pairs = [video.index_select(self.temporal_dim, torch.from_numpy(pair)) for pair in self.draw(times, generator)]
        return pairs[0] if self.repeated_sampling == 1 else torch.stack(pairs)

    def _gaps(self, times: np.ndarray) -> np.ndarray:
        """The gaps in seconds that fit the clip."""
        gaps = np.arange(self.min_gap, self.max_gap + 1) / self.fps
        return gaps[gaps <= times[-1] - times[0] + TOLERANCE]


def _checked(times: np.ndarray) -> np.ndarray:
    times = np.asarray(times, dtype=np.float64)
    if len(times) < 2:
        raise InputError(f"a pair needs two frames; the clip has {len(times)}")
    if not (np.diff(times) > 0).all():
        raise InputError("the times of a clip's frames must increase")
    return times


def _shares(times: np.ndarray, gap: float) -> np.ndarray:
    """Probability of each frame that has `gap` seconds after it to be f1: proportional to the time around the frame.

    At a constant rate all are equal; at a variable one, f1 is uniform over time, not over frames.
    """
    last = int(np.searchsorted(times, times[-1] - gap + TOLERANCE, side="right"))
    widths = np.gradient(times)[: min(max(last, 1), len(times) - 1)]
    return widths / widths.sum()


def _partner(times: np.ndarray, first: int, gap: float) -> int:
    """The frame nearest to `gap` seconds after `first`, always a later one; of two equally near ones the earlier."""
    wanted = times[first] + gap
    after = int(np.searchsorted(times, wanted))
    after = min(max(after, first + 1), len(times) - 1)
    before = max(after - 1, first + 1)
    hair = 1e-9  # sums of times that are equal on paper
    return before if wanted - times[before] <= times[after] - wanted + hair else after
