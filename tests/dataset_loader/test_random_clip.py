"""Clips have their stride whatever the rate, and stay in one run of the clock whatever its stamps do, as pairs do."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from dataset_loader import RandomTemporalSubsample
from dataset_loader.dataset import PairDataset
from dataset_loader.random_temporal_subsample import RandomClip
from dataset_loader.times import ascending, holes, mend, resets, runs
from tests.dataset_loader.by_loops import VARIABLE, Sequence, by_brute_force, chi_square_is_plausible, stretches


def test_a_clip_has_its_stride_and_any_place():
    """16 frames at stride 4 (MAE-ST): 0.133 s apart whatever the rate, each start that fits equally likely."""
    for fps, step in ((30, 4), (60, 8), (15, 2)):
        times = 3 + np.arange(100 * fps // 30) / fps
        clips = RandomClip(16, 4, repeated_sampling=1000).draw(times, np.random.default_rng(0))
        assert clips.shape == (1000, 16)
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
@settings(max_examples=30, deadline=None)
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
