"""What each pairing promises: which frames, which crops, and that the boxes tell the true correspondence."""

from collections import Counter

import numpy as np
import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.pairings import PAIRINGS, SHIFT, parse_pairing
from dataset_loader.transforms import Augmentation, Crop

SIZES = [(96, 128), (128, 96), (31, 57), (9, 40), (2, 2), (1, 3)]


def draws(name: str, height: int, width: int, count: int = 200, frames: int = 3, grid: int = 8) -> list[list[Crop]]:
    generator = np.random.default_rng(0)
    pairing = PAIRINGS[name]
    return [pairing.draw(height, width, frames, generator, Augmentation(), grid) for _ in range(count)]


def inside(inner: Crop, outer: Crop) -> bool:
    rows = outer.top <= inner.top and inner.top + inner.height <= outer.top + outer.height
    return rows and outer.left <= inner.left and inner.left + inner.width <= outer.left + outer.width


def overlap(one: Crop, other: Crop) -> float:
    """The share of the first's area that lies in the second."""
    rows = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    columns = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    return max(rows, 0) * max(columns, 0) / (one.height * one.width)


@pytest.mark.parametrize("name", PAIRINGS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_crop_lies_in_its_frame(name, height, width):
    for crops in draws(name, height, width):
        assert len(crops) == 3
        assert len({crop.flip for crop in crops}) == 1
        for crop in crops:
            assert crop.height >= 1
            assert crop.width >= 1
            assert inside(crop, Crop(0, 0, height, width))


def test_crops_are_global_and_local():
    for past, *futures in draws("crops", 96, 128):
        assert all(inside(future, past) for future in futures)
        assert all(0.28 < f.height * f.width / (past.height * past.width) < 0.82 for f in futures)
    for past, *futures in draws("crops_reversed", 96, 128):
        assert all(inside(past, future) for future in futures)


@pytest.mark.parametrize("name", ["shifted", "shifted_patches", "video_shifted"])
def test_windows_are_moved_and_not_scaled(name):
    seen = Counter()
    for past, *futures in draws(name, 96, 128, count=500):
        for future in futures:
            assert past.height == past.width == future.height == future.width
            assert past.height % 8 == 0
            move = np.array([future.top - past.top, future.left - past.left])
            assert np.abs(move).max() <= SHIFT * past.height + 0.5
            if name == "shifted_patches":
                assert (move % (past.height // 8) == 0).all()
            seen[tuple((np.abs(move) > 0).tolist())] += 1
    assert len(seen) >= 3  # to the side, up or down, and both


def test_moves_are_even():
    """In the middle of a large frame each whole shift from -3 to 3 patches comes equally often."""
    counts = Counter()
    for past, *futures in draws("shifted_patches", 960, 960, count=3000, grid=8):
        patch = past.height // 8
        if min(past.top, past.left, 960 - past.top - past.height, 960 - past.left - past.width) >= 3 * patch:
            counts.update((future.top - past.top) // patch for future in futures)
    assert set(counts) == set(range(-3, 4))
    total = sum(counts.values())
    assert all(abs(n - total / 7) < 5 * (total / 7) ** 0.5 for n in counts.values())


@pytest.mark.parametrize(("height", "width"), SIZES[:2])
def test_jittered_crops_overlap(height, width):
    shares = [overlap(future, past) for past, *futures in draws("jittered", height, width, 2000) for future in futures]
    assert min(shares) > 0.44  # 0.46 but for rounding
    assert min(shares) < 0.6  # the bound says something
    assert max(shares) == 1


def test_mixes_follow_their_shares():
    mix = parse_pairing("mixed:video=1,shifted=3")
    generator = np.random.default_rng(0)
    picked = Counter(mix.pick(generator).one_frame for _ in range(2000))
    assert abs(picked[True] - 1500) < 100
    assert all(mix.pick(generator, still=True).one_frame for _ in range(20))
    assert parse_pairing("mixed:video,jittered").shares == (0.5, 0.5)


def test_one_pairing_costs_no_draw():
    """So that the samples of `video` are those of before there were pairings."""
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    parse_pairing("video").pick(one)
    assert one.integers(2**63) == other.integers(2**63)


@pytest.mark.parametrize(
    "text", ["", "vdieo", "mixed:", "mixed:video=0", "mixed:video=x", "mixed:video=nan", "mixed:video,video",
             "mixed:video=1,vdieo=1", "Video"],
)  # fmt: skip
def test_what_is_no_pairing_is_named(text):
    with pytest.raises(InputError, match="pairing"):
        parse_pairing(text)


def test_no_pairing_without_augmentation(clips):
    with pytest.raises(InputError, match="without augmentation it is video"):
        get_kinetics_dataset(clips, augment=False, pairing="shifted")
    with pytest.raises(InputError, match="clips of 4 frames have none"):
        get_kinetics_dataset(clips, clip_frames=4, pairing="shifted")


@pytest.mark.parametrize("workers", [0, 1])
def test_boxes_tell_the_true_correspondence(clips, workers):
    """f1's pixels, taken from where the boxes say f2's patches lie, are f2's pixels: in one frame, by whole patches."""
    options = dict(image_size=64, repeated_sampling=4, futures=2, pairing="shifted_patches", patch_size=8)
    compared = 0
    for batch in make_loader(get_kinetics_dataset(clips, **options), 8, workers=workers):
        assert batch["box"].shape == (8, 3, 5)
        assert torch.equal(batch["time"], batch["time"][:, :1].expand(-1, 3))
        for video, box in zip(batch["video"].int(), batch["box"], strict=True):
            for future in (1, 2):
                down, right = ((box[future, k] - box[0, k]) * 64 // box[0, 2] for k in (0, 1))
                right = -right if box[0, 4] else right
                rows, columns = slice(max(0, down), 64 + min(0, down)), slice(max(0, right), 64 + min(0, right))
                there = slice(max(0, -down), 64 + min(0, -down)), slice(max(0, -right), 64 + min(0, -right))
                difference = (video[0][:, rows, columns] - video[future][:, there[0], there[1]]).abs()
                assert difference[:, 4:-4, 4:-4].max() <= 1  # at a window's edge the filter sees less
                compared += bool(down or right)
    assert compared > 20


def test_two_frames_or_one(clips):
    for name, pairing in PAIRINGS.items():
        sample = get_kinetics_dataset(clips, image_size=16, pairing=name, repeated_sampling=3)[0]
        assert (sample["time"][:, 0] == sample["time"][:, 1]).all() == pairing.one_frame


def test_a_schedule_is_followed_whoever_loads(clips):
    """By the epoch alone: whatever came before, in other processes."""
    options = dict(image_size=48, schedule="0 shifted; 2 mixed:video=1,jittered=1", repeated_sampling=2)
    dataset = get_kinetics_dataset(clips, **options)
    plain, other = make_loader(dataset, 4), make_loader(dataset, 4, workers=1)
    for epoch in (3, 1, 2):
        plain.set_epoch(epoch)
        other.set_epoch(epoch)
        for one, two in zip(plain, other, strict=True):
            assert (one["time"][:, 0] == one["time"][:, 1]).all() == (epoch < 3)
            assert torch.equal(one["box"], two["box"])
            assert torch.equal(one["video"], two["video"])
