"""Which frames make a sample: a past frame and one or more future ones a random gap later, or a clip at a stride.

SiamMAE (Gupta et al. 2023) draws the gap from 4…48 frames of 30 fps video, both ends included. Here a gap is a time,
g/30 s, so that it means the same at every frame rate, and f1 comes before f2 by construction. A clip (Feichtenhofer et
al. 2022: 16 frames at stride 4) is drawn in the same way: its gaps are fixed, the place of its first frame is not.

Legend: N frames of a video, R samples drawn from it, F frames of a sample, K futures of a past.
"""

import math
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError

# Containers round presentation times to milliseconds: a gap that is longer than the clip by less than this still fits.
TOLERANCE = 1e-3


class TemporalSampler(Protocol):
    """What draws the frames of a sample."""

    repeated_sampling: int  # R
    frames: int  # F
    futures: int  # pairs in a sample: K, or 1 of a clip

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int64 [R, F]: numbers into `times` (seconds, ascending)."""
        ...


class RandomTemporalSubsample:
    """Draws pairs of frames from a clip, and serves as a transform that leaves those two frames of a video tensor.

    min_gap, max_gap: the gap's limits, both included, in frames at `fps` or, by `unit`, in seconds; the gaps drawn are
    in either case whole frames at `fps`. temporal_dim: the dimension of time in the tensors it is called with (-3:
    [..., F, H, W]). repeated_sampling: R pairs, each a fresh draw. futures: K future frames of one past, each with a
    gap of its own.
    """

    def __init__(
        self,
        min_gap: float = 4,
        max_gap: float = 48,
        temporal_dim: int = -3,
        repeated_sampling: int = 1,
        fps: float = 30,
        *,
        futures: int = 1,
        unit: Literal["frames", "seconds"] = "frames",
    ) -> None:
        _check(repeated_sampling=repeated_sampling, futures=futures)
        _check_fps(fps)
        least, most = _in_frames(min_gap, max_gap, fps, unit)
        if not 1 <= least <= most:
            raise InputError(
                f"gaps of {min_gap:g} to {max_gap:g} {unit} were asked for; needed is 1/{fps:g} s ≤ min_gap ≤ max_gap, "
                f"with a whole number of frames at {fps:g} fps between them"
            )
        self.min_gap = least
        self.max_gap = most
        self.temporal_dim = temporal_dim
        self.repeated_sampling = repeated_sampling
        self.fps = fps
        self.futures = futures
        self.frames = 1 + futures
        self._all_gaps = np.arange(least, most + 1) / fps  # seconds

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw R samples: int64 [R, 1 + K], numbers of the past and its futures into `times` (seconds, ascending).

        Each gap is uniform among those that fit the clip, whatever the others; f1 is uniform over what the longest of
        them leaves, each frame with the share of time around it; a future is the frame nearest to f1's time plus its
        gap. A clip shorter than the smallest gap gives its first and last frame. Raises InputError for fewer than two
        frames.
        """
        times = _checked(times)
        gaps = self._gaps(times)
        samples = np.empty((self.repeated_sampling, self.frames), dtype=np.int64)
        for sample in samples:
            if len(gaps) == 0:
                sample[0], sample[1:] = 0, len(times) - 1
                continue
            drawn = gaps[generator.integers(len(gaps), size=self.futures)]
            sample[0] = _first(times, drawn.max(), generator)
            sample[1:] = [_partner(times, sample[0], gap) for gap in drawn]
        return samples

    def probabilities(self, times: np.ndarray) -> np.ndarray:
        """The exact distribution that `draw` follows with K = 1: float64 [N, N], the probability of (past, future)."""
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
        """Reduce the temporal dimension of a video to the frames of a sample; R > 1 samples get a leading dimension.

        times: seconds of its frames; without them its frames are taken to be 1/fps apart. generator: without one,
        a new one is seeded from torch's, so that torch's seed decides.
        """
        if times is None:
            times = np.arange(video.shape[self.temporal_dim]) / self.fps
        if len(times) != video.shape[self.temporal_dim]:
            raise InputError(f"{len(times)} times were given for {video.shape[self.temporal_dim]} frames of a video")
        if generator is None:
            generator = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        drawn = torch.from_numpy(self.draw(times, generator)).to(video.device)
        pairs = [video.index_select(self.temporal_dim, pair) for pair in drawn]
        return pairs[0] if self.repeated_sampling == 1 else torch.stack(pairs)

    def _gaps(self, times: np.ndarray) -> np.ndarray:
        """The gaps in seconds that fit the clip."""
        return self._all_gaps[self._all_gaps <= times[-1] - times[0] + TOLERANCE]


def random_temporal_subsample(
    video: Tensor, min_gap: float, max_gap: float, temporal_dim: int = -3, repeated_sampling: int = 1
) -> Tensor:
    """Reduce the temporal dimension of a 30 fps video to a random pair; R > 1 pairs get a leading dimension.

    `RandomTemporalSubsample` in one call, for frames that are 1/30 s apart.
    """
    return RandomTemporalSubsample(min_gap, max_gap, temporal_dim, repeated_sampling)(video)


class RandomClip:
    """Draws clips of `frames` frames at a stride, given in frames at `fps` or, by `unit`, in seconds.

    repeated_sampling: R clips, each a fresh draw.
    """

    def __init__(
        self,
        frames: int = 16,
        stride: float = 4,
        *,
        repeated_sampling: int = 1,
        fps: float = 30,
        unit: Literal["frames", "seconds"] = "frames",
    ) -> None:
        _check(repeated_sampling=repeated_sampling, frames=frames)
        _check_fps(fps)
        if not 0 < stride < float("inf"):
            raise InputError(f"stride is {stride}; it must be above 0")
        self.frames = frames
        self.futures = 1
        self.stride = stride / _unit(unit, fps)
        self.repeated_sampling = repeated_sampling

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw R clips: int64 [R, F], numbers into `times` (seconds, ascending).

        The first frame is uniform over what the clip's span leaves, each with the share of time around it; the others
        are the frames nearest to their times. A video shorter than the span gives F frames spread over all of it, some
        of them repeatedly if it has fewer. Raises InputError for fewer than two frames.
        """
        times = _checked(times)
        duration = times[-1] - times[0]
        clips = np.empty((self.repeated_sampling, self.frames), dtype=np.int64)
        for clip in clips:
            span = (self.frames - 1) * self.stride
            first = 0 if span > duration + TOLERANCE else _first(times, span, generator)
            wanted = times[first] + np.linspace(0, min(span, duration), self.frames)
            clip[:] = [_nearest(times, time) for time in wanted]
        return clips


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1")


def _check_fps(fps: float) -> None:
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}; it must be above 0 and at most 1000")


def _unit(unit: str, fps: float) -> float:
    """How many of a unit make a second."""
    if unit not in ("frames", "seconds"):
        raise InputError(f"the unit is {unit!r}; it must be 'frames' or 'seconds'")
    return fps if unit == "frames" else 1.0


def _in_frames(low: float, high: float, fps: float, unit: str) -> tuple[int, int]:
    """Limits as whole frames at `fps` that lie between them; a millisecond beyond them counts as between."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"gaps of {low} to {high} were asked for; both must be finite")
    factor = fps / _unit(unit, fps)
    slack = TOLERANCE * fps if unit == "seconds" else 0
    return math.ceil(low * factor - slack), math.floor(high * factor + slack)


def _checked(times: np.ndarray) -> np.ndarray:
    times = np.asarray(times, dtype=np.float64)
    if len(times) < 2:
        raise InputError(f"a pair needs two frames; the clip has {len(times)}")
    if not (times[1:] > times[:-1]).all():
        raise InputError("the times of a clip's frames must increase")
    return times


def _shares(times: np.ndarray, gap: float) -> np.ndarray:
    """Probability of each frame that has `gap` seconds after it to be f1: proportional to the time around the frame.

    At a constant rate all are equal; at a variable one, f1 is uniform over time, not over frames.
    """
    last = int(np.searchsorted(times, times[-1] - gap + TOLERANCE, side="right"))
    widths = np.gradient(times)[: min(max(last, 1), len(times) - 1)]
    return widths / widths.sum()


def _first(times: np.ndarray, span: float, generator: np.random.Generator) -> int:
    """Draw the frame at which a span of seconds begins: the one nearest to a time that is uniform over what remains.

    It has the distribution of `_shares` without computing it: the time around a frame is that nearest to it.
    """
    last = int(np.searchsorted(times, times[-1] - span + TOLERANCE, side="right"))
    last = min(max(last, 1), len(times) - 1)
    begin = times[0] - (times[1] - times[0]) / 2
    end = (times[last - 1] + times[last]) / 2
    place = begin + generator.random() * (end - begin)
    after = int(np.searchsorted(times[:last], place))
    if after == 0 or after == last:
        return min(after, last - 1)
    return after if place - times[after - 1] >= times[after] - place else after - 1


def _partner(times: np.ndarray, first: int, gap: float) -> int:
    """The frame nearest to `gap` seconds after `first`, always a later one."""
    return _nearest(times, times[first] + gap, first + 1)


def _nearest(times: np.ndarray, wanted: float, least: int = 0) -> int:
    """The frame nearest to a time, from number `least` on; of two equally near ones the earlier."""
    after = min(int(np.searchsorted(times, wanted)), len(times) - 1)
    before = max(after - 1, least)
    hair = 1e-9  # sums of times that are equal on paper
    return before if wanted - times[before] <= times[after] - wanted + hair else after
