"""The pairs that are drawn follow the distribution that the paper states, at every frame rate."""

import math
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from dataset_loader import RandomTemporalSubsample, get_kinetics_dataset, make_loader
from dataset_loader.dataset import PairDataset
from dataset_loader.random_temporal_subsample import RandomClip, random_temporal_subsample
from dataset_loader.times import ascending, holes, mend, resets, runs

VARIABLE = np.cumsum(np.random.default_rng(3).uniform(0.005, 0.12, 80))
CLIPS = {
    "30 fps": np.arange(90) / 30,
    "25 fps": np.arange(75) / 25,
    "6 fps": np.arange(20) / 6,
    "60 fps, starts late": 7.5 + np.arange(150) / 60,
    "29.97 fps, rounded to milliseconds": np.round(np.arange(90) * 1001 / 30000, 3),
    "variable": VARIABLE,
    "a second": np.arange(31) / 30,
    "a third of a second": np.arange(11) / 30,
    "a pause of 2 s": np.concatenate([np.arange(40) / 30, 3.3 + np.arange(50) / 30]),
    "an hour's hole": np.concatenate([np.arange(30) / 30, 3600 + np.arange(60) / 30]),
    "two recordings, joined": np.concatenate([1 + np.arange(70) / 30, np.arange(20) / 15]),
}


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


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("gaps", [(4, 48), (1, 3), (10, 10)])
def test_the_stated_distribution_is_the_definition(name, gaps):
    table = RandomTemporalSubsample(*gaps).probabilities(CLIPS[name])
    np.testing.assert_allclose(table, by_brute_force(CLIPS[name], *gaps), atol=1e-12)
    assert table.sum() == pytest.approx(1)
    assert np.tril(table).max() == 0  # the future is never the past, nor before it


@pytest.mark.parametrize("name", CLIPS)
def test_draws_follow_it(name):
    times = CLIPS[name]
    pairs = RandomTemporalSubsample(repeated_sampling=20_000).draw(times, np.random.default_rng(0))
    counts = np.zeros((len(times), len(times)))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    table = RandomTemporalSubsample().probabilities(times)
    assert counts[table == 0].sum() == 0
    assert chi_square_is_plausible(counts, table)


def test_every_gap_is_equally_likely_both_ends_included():
    """At 30 fps the gap is 4, 5, … 48 frames with 1/45 each (not 4…47), and f1 is uniform over what a gap leaves."""
    times = np.arange(100) / 30
    table = RandomTemporalSubsample(4, 48).probabilities(times)
    gaps = np.array([np.trace(table, offset=gap) for gap in range(100)])
    np.testing.assert_allclose(gaps[4:49], 1 / 45)
    assert gaps[:4].sum() + gaps[49:].sum() == 0
    for gap in (4, 30, 48):
        np.testing.assert_allclose(np.diagonal(table, offset=gap), 1 / 45 / (100 - gap))


@pytest.mark.parametrize("fps", [6, 25, 50, 60])
def test_a_gap_is_a_time_whatever_the_rate(fps):
    """The mean gap is 26/30 s at every rate, up to the rounding to frames; counted in frames it would vary tenfold."""
    times = np.arange(0, 10 * fps) / fps
    table = RandomTemporalSubsample(4, 48).probabilities(times)
    past, future = np.nonzero(table)
    mean = ((times[future] - times[past]) * table[past, future]).sum()
    assert mean == pytest.approx(26 / 30, abs=0.01)


def test_the_first_frame_is_uniform_over_time():
    """At a variable rate a burst of frames does not attract the draws."""
    times = np.concatenate([np.arange(0, 5, 0.1), 5 + np.arange(0, 5, 0.025)])  # 50 frames, then 200, 5 s each
    past = RandomTemporalSubsample(15, 18).probabilities(times).sum(axis=1)
    assert past[:50].sum() == pytest.approx(5 / 9.45, abs=0.01)


@pytest.mark.parametrize(("frames", "longest"), [(5, 4), (11, 10), (12, 11), (31, 30), (49, 48), (200, 48)])
def test_the_longest_gap_that_fits_is_used(frames, longest):
    """Also where the container rounded the times to milliseconds."""
    for times in (
        np.arange(frames) / 30,
        np.round(np.arange(frames) / 30, 3),
        np.floor(np.arange(frames) / 0.03) / 1e3,
    ):
        table = RandomTemporalSubsample(4, 48).probabilities(times)
        assert np.trace(table, offset=longest) == pytest.approx(1 / (longest - 3))


def test_what_leaves_no_pair_is_refused():
    """Too sparse, or in pieces: the reason says how long it lasts, and in how many pieces."""
    for times, said in (
        (np.array([0.0, 60.0]), r"no two frames 0\.133 to 1\.6 s apart \(2 frames, at most 60 s without a pause\)"),
        (
            np.tile(np.arange(3) / 30, 4),
            "12 frames, at most 0.0667 s without a pause, in 4 runs between pauses or resets",
        ),
    ):
        for sampler in (RandomTemporalSubsample(4, 48), RandomTemporalSubsample(4, 48, futures=2)):
            with pytest.raises(InputError, match=said):
                sampler.draw(times, np.random.default_rng(0))
    with pytest.raises(InputError, match="has no 4 frames that are 0.133 s apart, up to half a frame"):
        RandomClip(4, 4).draw(np.tile(np.arange(9) / 30, 4), np.random.default_rng(0))


@pytest.mark.parametrize("sampler", [RandomTemporalSubsample(4, 48, futures=2), RandomClip(5, 4)])
def test_what_is_shorter_than_a_sample_is_refused(sampler):
    """Unless nobody knows its times: a sequence without them is taken to be slower."""
    for times in (np.arange(4) / 30, np.arange(2) / 240, np.arange(9) / 90):
        with pytest.raises(InputError, match=f"{len(times)} frames, at most"):
            sampler.draw(times, np.random.default_rng(0))
        assert not RandomTemporalSubsample(4, 48).pasts(times).any()
    with pytest.raises(InputError, match="4 frames, at most"):
        RandomTemporalSubsample()(torch.zeros(4, 2, 2), np.arange(4) / 30)
    pair = RandomTemporalSubsample()(torch.arange(4).view(4, 1, 1).expand(4, 2, 2))
    assert pair[:, 0, 0].tolist() == [0, 3]


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


@given(st.integers(2, 60), st.sampled_from([1, 10, 30, 120]), st.booleans(), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_only_assumed_times_are_slowed_down(frames, fps, assumed, futures):
    """A data set gives samples within the limits, refuses the clip, or stretches times that were assumed anyway: the
    first and the last picture then."""
    times = np.arange(frames) / fps
    fits = by_brute_force(times, 4, 48).any()
    short = (frames - 1) / fps < 4 / 30
    for temporal in (RandomTemporalSubsample(futures=futures), RandomClip(4, 4)):
        data = PairDataset(Sequence(times, assumed), temporal, image_size=4, augment=False)
        try:
            drawn = data[0]["video"][:, 0, 0, 0].tolist()
        except InputError:
            assert not fits or isinstance(temporal, RandomClip)
            continue
        if isinstance(temporal, RandomClip):
            assert (frames - 1) / fps > 12 / 30 - 2e-3 or (assumed and (drawn[0], drawn[-1]) == (0, frames - 1))
        elif short:
            assert assumed and drawn == [0] + [frames - 1] * futures
        else:
            gaps = times[drawn[1:]] - times[drawn[0]]
            assert gaps.min() >= 4 / 30 - 0.5 / fps - 1e-5 and gaps.max() <= 48 / 30 + 0.5 / fps + 1e-5


def test_repeated_pairs_are_independent():
    """Each of R pairs has the whole distribution: no sorting of gaps against each other, f2 relative to its own f1."""
    times = np.arange(90) / 30
    generator = np.random.default_rng(1)
    sampler = RandomTemporalSubsample(4, 48, repeated_sampling=4)
    pairs = np.stack([sampler.draw(times, generator) for _ in range(4000)])  # [draws, R, 2]
    gaps = pairs[:, :, 1] - pairs[:, :, 0]
    assert gaps.min() == 4
    assert gaps.max() == 48
    table = sampler.probabilities(times)
    for row in range(4):
        counts = np.zeros((90, 90))
        np.add.at(counts, (pairs[:, row, 0], pairs[:, row, 1]), 1)
        assert chi_square_is_plausible(counts, table)
    correlation = np.corrcoef(np.concatenate([gaps, pairs[:, :, 0]], axis=1).T)
    assert np.abs(correlation[:4, :4] - np.eye(4)).max() < 0.06
    assert np.abs(correlation[4:, 4:] - np.eye(4)).max() < 0.06


def test_as_a_transform():
    """On a clip [C, F, H, W] it leaves the two frames that `draw` names; with R > 1 a leading dimension of pairs."""
    video = torch.arange(3 * 60 * 2 * 5).reshape(3, 60, 2, 5)
    sampler = RandomTemporalSubsample()
    (pair,) = sampler.draw(np.arange(60) / 30, np.random.default_rng(5))
    assert torch.equal(sampler(video, generator=np.random.default_rng(5)), video[:, pair])
    assert torch.equal(
        RandomTemporalSubsample(temporal_dim=1)(video, generator=np.random.default_rng(5)), video[:, pair]
    )
    pairs = RandomTemporalSubsample(repeated_sampling=3).draw(np.arange(60) / 10, np.random.default_rng(6))
    repeated = RandomTemporalSubsample(repeated_sampling=3)(video, np.arange(60) / 10, np.random.default_rng(6))
    assert torch.equal(repeated, torch.stack([video[:, pair] for pair in pairs]))


def test_as_a_transform_torch_seed_decides():
    """Of the class, and of the function beside it."""
    video = torch.arange(60).view(60, 1, 1).expand(60, 2, 2)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(torch.stack([RandomTemporalSubsample()(video) for _ in range(5)]))
        torch.manual_seed(seed)
        assert torch.equal(random_temporal_subsample(video, 4, 48), drawn[-1][0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert random_temporal_subsample(video.movedim(0, 1), 1, 9, temporal_dim=1, repeated_sampling=3).shape == (
        3,
        2,
        2,
        2,
    )


def test_bad_values_are_named():
    for arguments in ({"min_gap": 0}, {"min_gap": 9, "max_gap": 8}, {"repeated_sampling": 0}, {"fps": 0}):
        with pytest.raises(InputError):
            RandomTemporalSubsample(**arguments)
    for times in ([], [1.0], [0.0, 0.0], [1.0, 0.5]):
        with pytest.raises(InputError):
            RandomTemporalSubsample().draw(np.array(times), np.random.default_rng(0))
    with pytest.raises(InputError, match="3 times were given for 4 frames"):
        RandomTemporalSubsample()(torch.zeros(4, 2, 2), np.arange(3.0))


# Several futures of one past


def test_futures_have_gaps_of_their_own():
    """Each gap is uniform whatever the others; f1 is uniform over what the longest of them leaves."""
    times = np.arange(100) / 30
    sampler = RandomTemporalSubsample(4, 48, futures=3, repeated_sampling=30_000)
    samples = sampler.draw(times, np.random.default_rng(0))
    assert samples.shape == (30_000, 4)
    gaps = samples[:, 1:] - samples[:, :1]
    for column in gaps.T:
        counts = np.bincount(column, minlength=49)
        assert counts[:4].sum() == 0
        assert chi_square_is_plausible(counts[4:], np.full(45, 1 / 45))
    correlation = np.corrcoef(gaps.T)
    assert np.abs(correlation - np.eye(3)).max() < 0.03
    longest = gaps.max(1)
    past = np.concatenate([samples[longest == gap, 0] / (99 - gap) for gap in range(4, 49)])
    assert abs(past.mean() - 0.5) < 0.01
    for gap in (20, 48):
        counts = np.bincount(samples[longest == gap, 0], minlength=100)
        assert counts[100 - gap :].sum() == 0
        assert chi_square_is_plausible(counts[: 100 - gap], np.full(100 - gap, 1 / (100 - gap)))


def test_one_future_is_a_pair():
    times = CLIPS["variable"]
    pairs = RandomTemporalSubsample(repeated_sampling=50).draw(times, np.random.default_rng(4))
    one = RandomTemporalSubsample(repeated_sampling=50, futures=1).draw(times, np.random.default_rng(4))
    assert pairs.tolist() == one.tolist()
    short = RandomTemporalSubsample(futures=2).draw(np.arange(5) / 30, np.random.default_rng(0))
    assert short.tolist() == [[0, 4, 4]]


# Limits in seconds


@pytest.mark.parametrize(
    ("low", "high", "fps", "least", "most"),
    [
        (0.133, 1.6, 30, 4, 48),
        (4 / 30, 48 / 30, 30, 4, 48),
        (0.5, 0.5, 30, 15, 15),
        (0.14, 1.59, 30, 5, 47),
        (1, 2, 10, 10, 20),
    ],
)
def test_limits_in_seconds(low, high, fps, least, most):
    seconds = RandomTemporalSubsample(low, high, unit="seconds", fps=fps)
    assert (seconds.min_gap, seconds.max_gap) == (least, most)
    frames = RandomTemporalSubsample(least, most, fps=fps)
    np.testing.assert_array_equal(seconds.probabilities(VARIABLE), frames.probabilities(VARIABLE))


def test_limits_that_are_none():
    for low, high in ((0.51, 0.52), (0.0, 1.0), (2.0, 1.0), (0.1, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(InputError):
            RandomTemporalSubsample(low, high, unit="seconds")
    with pytest.raises(InputError, match="the unit is 'minutes'"):
        RandomTemporalSubsample(1, 2, unit="minutes")
    with pytest.raises(InputError, match="futures is 0"):
        RandomTemporalSubsample(futures=0)


# Clips


def test_a_clip_has_its_stride_and_any_place():
    """16 frames at stride 4 (MAE-ST): 0.133 s apart whatever the rate, each start that fits equally likely."""
    for fps, step in ((30, 4), (60, 8), (15, 2)):
        times = 3 + np.arange(100 * fps // 30) / fps
        clips = RandomClip(16, 4, repeated_sampling=4000).draw(times, np.random.default_rng(0))
        assert clips.shape == (4000, 16)
        assert (np.diff(clips) == step).all()
        starts = len(times) - 15 * step
        counts = np.bincount(clips[:, 0], minlength=starts)
        assert len(counts) == starts
        assert chi_square_is_plausible(counts, np.full(starts, 1 / starts))


def test_a_clip_of_a_variable_rate_takes_the_nearest_frames():
    """Where they are within half a frame of their times."""
    clips = RandomClip(5, 0.4, unit="seconds", repeated_sampling=50).draw(VARIABLE, np.random.default_rng(0))
    for clip in clips:
        wanted = VARIABLE[clip[0]] + 0.4 * np.arange(5)
        assert clip.tolist() == np.abs(VARIABLE - wanted[:, None]).argmin(1).tolist()
        assert np.abs(VARIABLE[clip] - wanted).max() <= np.median(np.diff(VARIABLE)) / 2 + 1e-3
    assert len({tuple(clip) for clip in clips}) > 5


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_the_stamps_do(data):
    """Pauses, resets, doubles, jitter and missing stamps at 6 to 240 fps: pairs, futures and clips stay in one run of
    the clock, and their real gaps within their limits; or the video is refused."""
    times = mend(*data.draw(stamps()))
    median = np.median([b - a for a, b in pairwise(times) if b > a] or [0])
    run = np.repeat(np.arange(len(parts := stretches(times))), [len(part) for part in parts])
    generator = np.random.default_rng(data.draw(st.integers(0, 9)))
    for sampler in (RandomTemporalSubsample(repeated_sampling=20), RandomTemporalSubsample(futures=3)):
        table = by_brute_force(times, 4, 48)
        try:
            samples = sampler.draw(times, generator)
        except InputError:
            assert not table.any()
            continue
        assert (run[samples] == run[samples[:, :1]]).all()
        gaps = times[samples[:, 1:]] - times[samples[:, :1]]
        assert gaps.min() >= 4 / 30 - median / 2 - 1e-5 and gaps.max() <= 48 / 30 + median / 2 + 1e-5
        assert set(np.flatnonzero(sampler.pasts(times))) == set(np.nonzero(table)[0]) >= set(samples[:, 0])
        assert (table[samples[:, 0], samples[:, 1]] > 0).all()
        np.testing.assert_allclose(sampler.probabilities(times), table, atol=1e-12)
    try:
        (clip,) = RandomClip(4, 4).draw(times, generator)
    except InputError:
        return
    assert (run[clip] == run[clip[0]]).all()
    assert np.abs(times[clip] - times[clip[0]] - 4 / 30 * np.arange(4)).max() <= median / 2 + 2e-3


@st.composite
def stamps(draw):
    """(stamps in seconds, None where one is missing; the nominal spacing)."""
    fps = draw(st.sampled_from([6, 10, 24, 25, 29.97, 30, 50, 60, 120, 240]))
    count = draw(st.integers(2, 90))
    steps = np.full(count, 1 / fps)
    places = st.lists(st.integers(1, count - 1), max_size=3)
    for place in draw(places):
        steps[place] += draw(st.sampled_from([0.1, 0.5, 2.0, 300.0, 3600.0]))  # a pause
    for place in draw(places):
        steps[place] = -draw(st.sampled_from([0.01, 0.5, 100.0]))  # the clock goes back
    for place in draw(places):
        steps[place] = 0  # a double
    times = np.round(np.cumsum(steps), 3)
    jitter = draw(st.sampled_from([0, 0.1, 0.3])) / fps
    times = times + jitter * np.random.default_rng(draw(st.integers(0, 3))).uniform(-0.5, 0.5, count)
    missing = set(draw(places))
    return [None if k in missing else float(time) for k, time in enumerate(times)], 1 / fps


def test_stamps_are_mended_one_by_one():
    """A missing or a double stamp goes between its neighbours, at most a usual spacing behind the one before."""
    assert mend([0, 1, None, 3, 4], 9).tolist() == mend([0, 1, 1, 3, 4], 9).tolist() == [0, 1, 2, 3, 4]
    assert mend([0, 1, 2, 2, 100, 101], 9).tolist() == [0, 1, 2, 3, 100, 101]
    assert mend([0, 1, 1, 1, 2], 9).tolist() == pytest.approx([0, 1, 4 / 3, 5 / 3, 2])
    assert mend([None, None, 5, 6, None], 9).tolist() == [3, 4, 5, 6, 7]
    assert mend([5, 6, 7, 7, 0, 1], 9).tolist() == [5, 6, 7, 8, 0, 1]  # a reset stays
    assert mend([None] * 3, 0.5).tolist() == [0, 0.5, 1] and mend([4, None], 0.5).tolist() == [4, 4.5]


def test_runs_pauses_and_resets():
    times = np.array([0, 1, 2, 3, 30, 31, 32, 5, 6, 7, 8])
    assert (resets(times).tolist(), holes(times).tolist()) == ([7], [4])
    assert runs(times) == [(0, 4), (4, 7), (7, 11)]
    assert list(ascending(times, 1)) == [0, 1, 2, 3, 30, 31, 32, 33, 34, 35, 36]
    assert runs(np.array(list(ascending(times, 10)))) == runs(times)
    assert runs(np.arange(9) / 30) == [(0, 9)] and runs(np.arange(0)) == [(0, 0)]


def test_a_video_shorter_than_the_clip_is_spread_over_it():
    """If its times are assumed. One that is just long enough gives all of it."""

    def drawn(frames: int, count: int) -> list[int]:
        data = PairDataset(Sequence(np.arange(count) / 30, True), RandomClip(frames, 4), image_size=4, augment=False)
        return data[0]["video"][:, 0, 0, 0].tolist()

    assert drawn(5, 9) == [0, 2, 4, 6, 8]
    assert drawn(5, 17) == [0, 4, 8, 12, 16]
    short = drawn(8, 3)
    assert (short[0], short[-1]) == (0, 2) and sorted(short) == short
    for arguments in ({"frames": 0}, {"stride": 0}, {"repeated_sampling": 0}, {"fps": -1}, {"stride": float("nan")}):
        with pytest.raises(InputError):
            RandomClip(**arguments)


def test_samples_of_a_dataset(videos):
    futures = get_kinetics_dataset(videos, image_size=16, futures=3, repeated_sampling=2)
    sample = futures[0, 3]
    assert sample["video"].shape == (2, 4, 3, 16, 16)
    assert sample["time"].shape == (2, 4)
    assert (sample["time"][:, :1] < sample["time"][:, 1:]).all()
    clips = get_kinetics_dataset(videos, image_size=16, clip_frames=5, stride=0.1, unit="seconds")
    sample = clips[0, 4]  # 50 fps
    np.testing.assert_allclose(np.diff(sample["time"]), 0.1, atol=1e-3)
    (batch,) = make_loader(clips, 6)
    assert batch["video"].shape == (6, 5, 3, 16, 16)
    short = get_kinetics_dataset(videos, image_size=16, clip_frames=12, stride=0.01, unit="seconds")
    assert short[0, 0]["video"].shape == (12, 3, 16, 16)  # at 6 fps frames repeat, which is no damage
