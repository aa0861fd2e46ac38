"""Which frames make a sample: a past frame and one or more future ones a random gap later, or a clip at a stride.

SiamMAE (Gupta et al. 2023) draws the gap from 4…48 frames of 30 fps video, both ends included. Here a gap is a time,
g/30 s, so that it means the same at every frame rate, and f1 comes before f2 by construction. A clip (Feichtenhofer et
al. 2022: 16 frames at stride 4) is drawn in the same way: its gaps are fixed, the place of its first frame is not.

Legend: N frames of a video, R samples drawn from it, F frames of a sample, K futures of a past.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from common.errors import InputError
from dataset_loader.times import at_least, runs, usual_spacing

if TYPE_CHECKING:
    from torch import Tensor

# Containers round presentation times to milliseconds: a gap that is longer than the clip by less than this still fits.
TOLERANCE = 1e-3
ROUNDING, HAIR = 1e-6, 1e-9  # sums of times that are equal on paper
TRIES = 100  # of drawing gaps that fit the clip

_Partners = tuple[np.ndarray, np.ndarray]
"""For each frame its future at a gap, int64 [N], and whether the two may be a pair [N]"""


class TemporalSampler(Protocol):
    """What draws the frames of a sample."""

    repeated_sampling: int  # R
    frames: int  # F
    futures: int  # pairs in a sample: K, or 1 of a clip
    shortest: float  # seconds from the first frame of the shortest sample to its last

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int64 [R, F]: numbers into `times` (seconds, ascending within their runs)."""
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
        self.shortest = least / fps
        self._all_gaps = np.arange(least, most + 1) / fps  # seconds

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw R samples: int64 [R, 1 + K], numbers of the past and its futures into `times` (see `times.runs`).

        Each gap is uniform among those that fit the clip, whatever the others; f1 is uniform over where all of them
        fit, each frame with the share of time around it; a future is the frame nearest to f1's time plus its gap.
        Nothing is drawn across a pause or a reset of the clock, and no gap is more than half a frame outside
        min_gap…max_gap. Raises InputError if that leaves nothing.
        """
        clock = _Clock(times)
        partners = cache(partial(self._partners, clock))
        samples = [self._sample(clock, partners, generator) for _ in range(self.repeated_sampling)]
        return np.array(samples, dtype=np.int64)

    def pasts(self, times: np.ndarray) -> np.ndarray:
        """Which frames can be the past of a pair: bool [N]."""
        if len(times) < 2:
            return np.zeros(len(times), dtype=bool)
        clock = _Clock(times)
        return np.logical_or.reduce([self._partners(clock, gap)[1] for gap in self._all_gaps])

    def _sample(
        self, clock: "_Clock", partners_at: Callable[[float], _Partners], generator: np.random.Generator
    ) -> list[int]:
        gaps = self._all_gaps[self._all_gaps <= clock.longest + TOLERANCE]
        for attempt in range(TRIES):
            if len(gaps) == 0:
                break
            drawn = gaps[generator.integers(len(gaps), size=self.futures)]
            partners, allowed = zip(*map(partners_at, drawn.tolist()), strict=True)
            fitting = [place.any() for place in allowed]
            together = np.logical_and.reduce(allowed)
            if attempt == TRIES - 1 and fitting[0]:  # gaps that fit no common past: all futures at the first of them
                partners, together = partners[:1] * self.futures, allowed[0]
            if together.any():
                past = clock.pick(together, generator)
                return [past, *(int(partner[past]) for partner in partners)]
            gaps = np.setdiff1d(gaps, drawn[~np.array(fitting)])
        low, high = self._all_gaps[[0, -1]]
        raise InputError(
            f"shows no two frames {low:.3g} to {high:.3g} s apart ({clock}); another min_gap and max_gap may"
        )

    def _partners(self, clock: "_Clock", gap: float) -> _Partners:
        """For each frame the one nearest to `gap` seconds later, int64 [N], and whether the two may be a pair [N]."""
        partners, past = clock.nearest(gap, at_least=1), clock.has_after(gap)
        real = clock.times[partners] - clock.times
        low, high = self._all_gaps[[0, -1]]
        return partners, past & (real >= low - clock.half - ROUNDING) & (real <= high + clock.half + ROUNDING)

    def probabilities(self, times: np.ndarray) -> np.ndarray:
        """The exact distribution that `draw` follows with K = 1: float64 [N, N], the probability of (past, future)."""
        clock = _Clock(times)
        table = np.zeros((len(times), len(times)))
        drawn = [self._partners(clock, gap) for gap in self._all_gaps]
        drawn = [(partners, allowed) for partners, allowed in drawn if allowed.any()]
        for partners, allowed in drawn:
            shares = clock.widths * allowed
            np.add.at(table, (np.arange(len(table)), partners), shares / shares.sum() / len(drawn))
        return table

    def __call__(
        self, video: "Tensor", times: np.ndarray | None = None, generator: np.random.Generator | None = None
    ) -> "Tensor":
        """Reduce the temporal dimension of a video to the frames of a sample; R > 1 samples get a leading dimension.

        times: seconds of its frames; without them its frames are taken to be 1/fps apart, or farther, so that the
        smallest gap fits. generator: without one, a new one is seeded from torch's, so that torch's seed decides.
        """
        import torch

        if times is None:
            times = at_least(np.arange(video.shape[self.temporal_dim]) / self.fps, self.shortest)
        if len(times) != video.shape[self.temporal_dim]:
            raise InputError(f"{len(times)} times were given for {video.shape[self.temporal_dim]} frames of a video")
        if generator is None:
            generator = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        drawn = torch.from_numpy(self.draw(times, generator)).to(video.device)
        pairs = [video.index_select(self.temporal_dim, pair) for pair in drawn]
        return pairs[0] if self.repeated_sampling == 1 else torch.stack(pairs)


def random_temporal_subsample(
    video: "Tensor", min_gap: float, max_gap: float, temporal_dim: int = -3, repeated_sampling: int = 1
) -> "Tensor":
    """Reduce the temporal dimension of a 30 fps video to a random pair; R > 1 pairs get a leading dimension.

    `RandomTemporalSubsample` in one call, for frames that are 1/30 s apart.
    """
    return RandomTemporalSubsample(min_gap, max_gap, temporal_dim, repeated_sampling)(video)


class ChosenGaps:
    """Draws a past and one future at each of some gaps, in seconds and ascending: what figures show."""

    def __init__(self, gaps: Sequence[float], *, repeated_sampling: int = 1) -> None:
        _check(repeated_sampling=repeated_sampling, gaps=len(gaps))
        if not all(0 < gap < math.inf for gap in gaps) or list(gaps) != sorted(set(gaps)):
            raise InputError(
                f"gaps are {', '.join(f'{gap:g}' for gap in gaps)} seconds; expected ascending ones above 0"
            )
        self.gaps, self.futures, self.frames = tuple(gaps), len(gaps), 1 + len(gaps)
        self.repeated_sampling, self.shortest = repeated_sampling, self.gaps[-1]

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int64 [R, 1 + K]; the past is uniform over where the longest gap fits, and no real gap is more than half a
        frame from what was asked for. Raises InputError if that is nowhere."""
        clock = _Clock(times)
        partners = np.stack([np.arange(len(times)), *(clock.nearest(gap, at_least=1) for gap in self.gaps)], axis=1)
        errors = np.abs(clock.times[partners[:, 1:]] - clock.times[:, None] - self.gaps)
        allowed = clock.has_after(self.gaps[-1]) & (errors <= clock.half[:, None] + TOLERANCE).all(1)
        if not allowed.any():
            raise InputError(f"shows no two frames {self.gaps[-1]:g} s apart ({clock}): choose shorter gaps")
        return np.stack([partners[clock.pick(allowed, generator)] for _ in range(self.repeated_sampling)])


class WithSecond:
    """Draws three frames, the last of which is to be predicted from the others: two pasts of it (`past`), or a past and
    a frame that is later than it (`later`; T-CoRe's sandwich, Liu et al. 2025).

    pairs: with two futures, each at a gap of its own from the first frame.
    """

    def __init__(self, pairs: RandomTemporalSubsample, second: str) -> None:
        if second not in SECONDS or pairs.futures != 2:
            raise InputError(
                f"second is {second!r}, with {pairs.futures - 1} futures; expected {' or '.join(SECONDS)}, 1"
            )
        self.pairs, self.order = pairs, SECONDS[second]
        self.repeated_sampling, self.frames, self.futures = pairs.repeated_sampling, 3, 1
        self.shortest = pairs.shortest

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int64 [R, 3]. Raises InputError for a clip in which the three are never different frames."""
        for _ in range(TRIES):
            drawn = np.sort(self.pairs.draw(times, generator), axis=1)
            if (np.diff(drawn, axis=1) > 0).all():
                return drawn[:, self.order]
        raise InputError(f"shows no three frames at the gaps that were asked for ({len(times)} frames)")


SECONDS = {"past": [0, 1, 2], "later": [0, 2, 1]}  # where the earliest, the middle and the latest frame stand


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
        self.shortest = (frames - 1) * self.stride
        self.repeated_sampling = repeated_sampling

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw R clips: int64 [R, F], numbers into `times` (see `times.runs`).

        The first frame is uniform over where the clip's span fits, each with the share of time around it; the others
        are the frames nearest to their times, and no further from them than half a usual spacing; at a large spacing
        some occur twice. Raises InputError for fewer than two frames, or if no clip fits.
        """
        clock = _Clock(times)
        steps = self.stride * np.arange(self.frames)
        places = np.stack([clock.nearest(step) for step in steps], axis=1)  # [N, F]
        errors = np.abs(clock.times[places] - clock.times[:, None] - steps)
        allowed = clock.has_after(self.shortest) & (errors <= clock.half[:, None] + TOLERANCE).all(1)
        if not allowed.any():
            raise InputError(
                f"has no {self.frames} frames that are {self.stride:.3g} s apart, up to half a frame ({clock})"
            )
        return np.stack([places[clock.pick(allowed, generator)] for _ in range(self.repeated_sampling)])


class _Clock:
    """The times of a video's frames, in runs between holes and resets.

    widths: float64 [N], the time around each frame within its run; half: [N], half a usual spacing of it. longest: the
    seconds of the longest run.
    """

    def __init__(self, times: np.ndarray) -> None:
        self.times = np.asarray(times, dtype=np.float64)
        if len(self.times) < 2:
            raise InputError(f"a pair needs two frames; the clip has {len(self.times)}")
        if not np.isfinite(self.times).all():
            raise InputError("the times of a clip's frames must be numbers")
        self.runs = runs(self.times)
        self.widths, self.half, self.longest = np.zeros(len(self.times)), np.zeros(len(self.times)), 0.0
        usual = usual_spacing(self.times)
        for first, end in self.runs:
            if end - first > 1:
                part = self.times[first:end]
                self.widths[first:end] = np.gradient(part)
                self.half[first:end] = (usual if len(self.runs) == 1 else min(usual, usual_spacing(part))) / 2
                self.longest = max(self.longest, float(part[-1] - part[0]))

    def nearest(self, after: float, at_least: int = 0) -> np.ndarray:
        """For each frame the one of its run that is nearest to so many seconds later, int64 [N].

        at_least: so many frames later, if the run has them. Of two equally near ones the earlier.
        """
        numbers = np.empty(len(self.times), dtype=np.int64)
        for first, end in self.runs:
            part = self.times[first:end]
            wanted, last = part + after, len(part) - 1
            later = np.minimum(np.searchsorted(part, wanted), last)
            sooner = np.minimum(np.maximum(later - 1, np.arange(len(part)) + at_least), last)
            later = np.maximum(later, sooner)
            nearer = wanted - part[sooner] <= part[later] - wanted + HAIR
            numbers[first:end] = first + np.where(nearer, sooner, later)
        return numbers

    def has_after(self, span: float) -> np.ndarray:
        """Whether so many seconds of its run follow on a frame: bool [N]. Never on the last frame of a run."""
        has = np.empty(len(self.times), dtype=bool)
        for first, end in self.runs:
            has[first:end] = self.times[first:end] <= self.times[end - 1] - span + TOLERANCE
            has[first] |= self.times[end - 1] - self.times[first] + TOLERANCE >= span
            has[end - 1] = False
        return has

    def pick(self, allowed: np.ndarray, generator: np.random.Generator) -> int:
        """Draw one of the frames that are allowed [N], each with the time around it."""
        ends = np.cumsum(self.widths * allowed)
        return int(np.searchsorted(ends, generator.random() * ends[-1], side="right"))

    def __str__(self) -> str:
        apart = f", in {len(self.runs)} runs between pauses or resets of the clock" if len(self.runs) > 1 else ""
        return f"{len(self.times)} frames, at most {self.longest:.3g} s without a pause{apart}"


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
