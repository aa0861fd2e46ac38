"""The pairs that are drawn follow the distribution that the paper states, at every frame rate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from dataset_loader import RandomTemporalSubsample, get_kinetics_dataset, make_loader
from dataset_loader.dataset import PairDataset
from dataset_loader.random_temporal_subsample import RandomClip, random_temporal_subsample
from tests.dataset_loader.by_loops import VARIABLE, Sequence, by_brute_force, chi_square_is_plausible, draws_follow
from tests.slowly import slowly

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


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("gaps", [(4, 48), (1, 3), (10, 10)])
def test_the_stated_distribution_is_the_definition(name, gaps):
    table = RandomTemporalSubsample(*gaps).probabilities(CLIPS[name])
    np.testing.assert_allclose(table, by_brute_force(CLIPS[name], *gaps), atol=1e-12)
    assert table.sum() == pytest.approx(1)
    assert np.tril(table).max() == 0  # the future is never the past, nor before it


@pytest.mark.parametrize("count", [2000, *slowly(20_000)])
@pytest.mark.parametrize("name", CLIPS)
def test_draws_follow_it(name, count):
    times = CLIPS[name]
    pairs = RandomTemporalSubsample(repeated_sampling=count).draw(times, np.random.default_rng(0))
    assert draws_follow(pairs, RandomTemporalSubsample().probabilities(times))


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
    pairs = np.stack([sampler.draw(times, generator) for _ in range(1000)])  # [draws, R, 2]
    gaps = pairs[:, :, 1] - pairs[:, :, 0]
    assert gaps.min() == 4
    assert gaps.max() == 48
    assert all(draws_follow(pairs[:, row], sampler.probabilities(times)) for row in range(4))
    correlation = np.corrcoef(np.concatenate([gaps, pairs[:, :, 0]], axis=1).T)
    assert np.abs(correlation[:4, :4] - np.eye(4)).max() < 0.12
    assert np.abs(correlation[4:, 4:] - np.eye(4)).max() < 0.12


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
    pairs = random_temporal_subsample(video.movedim(0, 1), 1, 9, temporal_dim=1, repeated_sampling=3)
    assert pairs.shape == (3, 2, 2, 2)


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
    sampler = RandomTemporalSubsample(4, 48, futures=3, repeated_sampling=8000)
    samples = sampler.draw(times, np.random.default_rng(0))
    assert samples.shape == (8000, 4)
    gaps = samples[:, 1:] - samples[:, :1]
    for column in gaps.T:
        counts = np.bincount(column, minlength=49)
        assert counts[:4].sum() == 0
        assert chi_square_is_plausible(counts[4:], np.full(45, 1 / 45))
    correlation = np.corrcoef(gaps.T)
    assert np.abs(correlation - np.eye(3)).max() < 0.05
    longest = gaps.max(1)
    past = np.concatenate([samples[longest == gap, 0] / (99 - gap) for gap in range(4, 49)])
    assert abs(past.mean() - 0.5) < 0.015
    for gap in (40, 48):
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
