"""One draw for all frames of a sample, and the same picture whether it is made by the CPU or in a batch on a device."""

import numpy as np
import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.transforms import (
    Augmentation,
    Crop,
    View,
    apply_view,
    apply_views,
    centre_view,
    draw_view,
    padded,
)

ALL = Augmentation(rotation=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def in_a_batch(frames: list[np.ndarray], views: list[View], size: int) -> torch.Tensor:
    videos = [torch.from_numpy(f).permute(0, 3, 1, 2)[None] for f in frames]
    batch = padded(videos, lambda shape: torch.full(tuple(shape), 77, dtype=torch.uint8))
    numbers = [view.as_tensor(*f.shape[1:3]) for view, f in zip(views, frames, strict=True)]
    return apply_views(batch, torch.stack(numbers), size)


@pytest.mark.parametrize("size", [32, 100])
def test_a_batch_on_a_device_agrees_with_the_cpu(size):
    """Frames of different sizes, hard noise (every overshoot is cut off), shrunk and enlarged, mirrored and not."""
    generator = np.random.default_rng(1)
    frames = [noise(2, h, w, 3, seed=h) for h, w in ((90, 160), (160, 90), (64, 64), (33, 250))]
    views = [draw_view(f.shape[1], f.shape[2], generator, Augmentation()) for f in frames]
    views += [centre_view(90, 160), View(Crop(3, 5, 7, 9, True))]
    frames += [frames[0], frames[2]]
    together = in_a_batch(frames, views, size)
    assert together.shape == (6, 2, 3, size, size)
    assert together.dtype == torch.uint8
    for one, f, view in zip(together, frames, views, strict=True):
        difference = (one.int() - apply_view(f, view, size).int()).abs()
        assert difference.max() <= 2  # a rounding in the first pass, amplified in the second
        assert (difference > 1).float().mean() < 1e-3
        assert difference.float().mean() < 0.05


def test_rotation_and_colours_agree_too(carphone):
    generator = np.random.default_rng(2)
    frames = [carphone[n : n + 2, : 144 - 9 * n] for n in range(6)]
    views = [draw_view(f.shape[1], f.shape[2], generator, ALL) for f in frames]
    for one, f, view in zip(in_a_batch(frames, views, 64), frames, views, strict=True):
        difference = (one.int() - apply_view(f, view, 64).int()).abs()
        assert difference.float().mean() < 0.3
        assert difference.max() <= 6  # a rounding, enlarged by brightness, contrast and saturation, each up to 1.4


@pytest.mark.parametrize(
    "augmentation",
    [ALL, Augmentation(rotation=30), Augmentation(brightness=0.5), Augmentation(hue=0.5), Augmentation(saturation=1)],
)
def test_one_draw_for_all_frames(carphone, augmentation):
    still = np.repeat(carphone[:1], 3, axis=0)
    generator = np.random.default_rng(0)
    views = [draw_view(144, 176, generator, augmentation) for _ in range(5)]
    shown = [apply_view(still, view, 40) for view in views]
    for frames in shown:
        assert frames.shape == (3, 3, 40, 40)
        assert frames.dtype == torch.uint8
        assert torch.equal(frames[0], frames[1])
        assert torch.equal(frames[0], frames[2])
    plain = [apply_view(still, View(view.crop), 40) for view in views]
    assert all((one.int() - other.int()).abs().float().mean() > 0.5 for one, other in zip(shown, plain, strict=True))


def test_rotation_turns_by_its_degrees():
    """Counter-clockwise by 90 degrees, a square picture is numpy's rot90 of itself, but for the rounding."""
    frames = np.repeat(np.repeat(noise(1, 12, 12, 3), 5, axis=1), 5, axis=2)
    turned = apply_view(frames, View(Crop(0, 0, 60, 60), degrees=90), 60)
    expected = torch.from_numpy(np.rot90(frames[0]).copy()).permute(2, 0, 1)
    assert (turned[0].int() - expected.int()).abs().max() <= 1


def test_what_is_drawn_covers_its_range():
    generator = np.random.default_rng(0)
    views = [draw_view(50, 80, generator, ALL) for _ in range(2000)]
    for name, middle, most in (("degrees", 0, 20), ("brightness", 1, 0.4), ("contrast", 1, 0.4), ("hue", 0, 0.1)):
        values = np.array([getattr(view, name) for view in views])
        counts, _ = np.histogram(values, bins=4, range=(middle - most, middle + most))
        assert counts.sum() == 2000
        assert np.abs(counts - 500).max() < 100


def test_what_is_not_asked_for_draws_nothing():
    """So that samples stay what they were when an option is added."""
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    view = draw_view(50, 80, one, Augmentation())
    assert view == View(view.crop)
    draw_view(50, 80, other, Augmentation(rotation=5))
    assert one.integers(2**63) != other.integers(2**63)


def test_a_view_travels_as_numbers():
    view = draw_view(50, 80, np.random.default_rng(0), ALL)
    assert View.from_tensor(view.as_tensor(50, 80)) == (view, 50, 80)


def test_bad_settings_are_named():
    for settings in ({"rotation": -1}, {"hue": 0.6}, {"flip": 2}, {"scale": (0, 1)}, {"scale": (1, 0.5)}):
        with pytest.raises(InputError, match=next(iter(settings))):
            Augmentation(**settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_crops_on_a_device(clips, workers):
    """The same batches as one that crops in its workers, up to rounding; the dataset itself is left as it is."""
    dataset = get_kinetics_dataset(clips, image_size=48, repeated_sampling=2)
    plain = make_loader(dataset, 4)
    later = make_loader(dataset, 4, workers=workers, crop_device="cpu")
    for one, other in zip(plain, later, strict=True):
        assert set(one) == set(other)
        assert one["path"] == other["path"]
        assert torch.equal(one["seed"], other["seed"])
        assert one["video"].shape == other["video"].shape
        assert (one["video"].int() - other["video"].int()).abs().max() <= 2
    assert "view" not in dataset[0]


def test_the_options_of_a_dataset(clips):
    still = get_kinetics_dataset(clips, image_size=24, augment=False)[0]["video"]
    augmentation = Augmentation(scale=(1, 1), ratio=(1, 1), flip=0, brightness=0.9)
    dataset = get_kinetics_dataset(clips, image_size=24, augment=augmentation)
    factors = {round(float(dataset[epoch, 0]["video"].float().mean() / still.float().mean()), 2) for epoch in range(8)}
    assert len(factors) > 4
