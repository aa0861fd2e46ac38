"""One draw for all frames: recovered from the pixels of a picture whose colours are its coordinates."""

import numpy as np
import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, unnormalize, unnormalize_for_plot
from dataset_loader.pairings import boxes
from dataset_loader.transforms import Augmentation, Crop, View, apply_view, centre_view, draw_colours, draw_crop
from mae.patches import MAE_ST_MEAN, MAE_ST_STD, normalize

ALL = Augmentation(rotation=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


def ramp(height: int, width: int, blue: int) -> np.ndarray:
    """uint8 [H, W, 3]: red grows with x, green with y."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[..., 0] = (np.arange(width) + 0.5) / width * 255
    image[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    image[..., 2] = blue
    return image


def drawn(height: int, width: int, generator: np.random.Generator, a: Augmentation) -> View:
    return draw_colours(draw_crop(height, width, generator, a.scale, a.ratio, a.flip), generator, a)


def recover(image: torch.Tensor, height: int, width: int) -> tuple[float, float, float, float, bool]:
    """Top, left, bottom, right and flip of the crop that made a picture [3, S, S] of a ramp."""
    x, y = image[0].float().mean(0) / 255 * width, image[1].float().mean(1) / 255 * height
    step = abs(x[-1] - x[0]) / (len(x) - 1)
    down = (y[-1] - y[0]) / (len(y) - 1)
    left, right = float(min(x[0], x[-1]) - step / 2), float(max(x[0], x[-1]) + step / 2)
    return float(y[0] - down / 2), left, float(y[-1] + down / 2), right, bool(x[-1] < x[0])


@pytest.mark.parametrize(("height", "width"), [(120, 160), (200, 90), (64, 64)])
def test_both_frames_are_cut_alike(height, width):
    generator = np.random.default_rng(0)
    for _ in range(20):
        crop = draw_crop(height, width, generator)
        frames = apply_view(np.stack([ramp(height, width, 0), ramp(height, width, 255)]), View(crop), 48)
        assert frames.shape == (2, 3, 48, 48)
        assert frames.dtype == torch.uint8
        assert torch.equal(frames[0, :2], frames[1, :2])
        assert frames[0, 2].max() == 0
        assert frames[1, 2].min() == 255
        top, left, bottom, right, flip = recover(frames[1], height, width)
        expected = (crop.top, crop.left, crop.top + crop.height, crop.left + crop.width)
        np.testing.assert_allclose((top, left, bottom, right), expected, atol=2.5)
        assert flip == crop.flip


def test_crops_have_the_stated_areas_and_shapes():
    """On a square of 400 pixels: the area uniform in 0.5…1, the aspect within 3/4…4/3, half of them mirrored."""
    generator = np.random.default_rng(0)
    crops = [draw_crop(400, 400, generator, ratio=(1, 1)) for _ in range(4000)]
    areas = np.array([crop.height * crop.width for crop in crops]) / 400**2
    deciles = np.histogram(areas, bins=10, range=(0.5, 1))[0]
    assert (np.abs(deciles - 400) < 100).all()
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 0.04
    for crop in (draw_crop(400, 400, generator) for _ in range(2000)):
        assert 3 / 4 * 0.99 < crop.width / crop.height < 4 / 3 * 1.01
        assert 0.49 < crop.height * crop.width / 400**2 <= 1
        assert 0 <= crop.top <= 400 - crop.height
        assert 0 <= crop.left <= 400 - crop.width


def test_crops_reach_every_place():
    generator = np.random.default_rng(0)
    crops = [draw_crop(100, 140, generator) for _ in range(8000)]
    crops = [crop for crop in crops if crop.height < 90 and crop.width < 130]
    assert min(crop.top for crop in crops) == min(crop.left for crop in crops) == 0
    assert max(crop.top + crop.height for crop in crops) == 100
    assert max(crop.left + crop.width for crop in crops) == 140


def test_the_log_of_the_aspect_is_uniform():
    generator = np.random.default_rng(0)
    crops = [draw_crop(1000, 1000, generator, scale=(0.3, 0.4)) for _ in range(4000)]
    aspects = np.log([crop.width / crop.height for crop in crops]) / np.log(4 / 3)
    assert (np.abs(np.histogram(aspects, bins=8, range=(-1, 1))[0] - 500) < 120).all()


def test_the_aspect_is_width_by_height():
    crop = draw_crop(100, 100, np.random.default_rng(0), scale=(0.5, 0.5), ratio=(2, 2))
    assert (crop.height, crop.width) == (50, 100)


def test_what_is_too_narrow_gives_its_centre():
    generator = np.random.default_rng(0)
    assert {(c.top, c.left, c.height, c.width) for c in (draw_crop(30, 300, generator) for _ in range(9))} == {
        (0, 130, 30, 40)
    }
    crop = draw_crop(1, 1, generator)
    assert (crop.top, crop.left, crop.height, crop.width) == (0, 0, 1, 1)


def test_scale_one_and_ratio_of_the_image_is_the_image():
    crop = draw_crop(60, 80, np.random.default_rng(0), scale=(1, 1), ratio=(4 / 3, 4 / 3), flip=0)
    assert crop == Crop(0, 0, 60, 80)


def test_centre_crop():
    assert centre_view(100, 161).crop == Crop(0, 30, 100, 100)
    assert centre_view(161, 100).crop == Crop(30, 0, 100, 100)


def test_an_untouched_square_keeps_its_pixels():
    frames = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    assert torch.equal(apply_view(frames, centre_view(32, 32), 32), torch.from_numpy(frames).permute(0, 3, 1, 2))
    mirrored = apply_view(frames, View(Crop(0, 0, 32, 32, flip=True)), 32)
    assert torch.equal(mirrored, torch.from_numpy(frames).permute(0, 3, 1, 2).flip(-1))


@pytest.mark.parametrize(
    "augmentation",
    [ALL, Augmentation(rotation=30), Augmentation(brightness=0.5), Augmentation(hue=0.5), Augmentation(saturation=1)],
)
def test_one_draw_for_all_frames(carphone, augmentation):
    still = np.repeat(carphone[:1], 3, axis=0)
    generator = np.random.default_rng(0)
    views = [drawn(144, 176, generator, augmentation) for _ in range(5)]
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
    noise = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3), dtype=np.uint8)
    frames = np.repeat(np.repeat(noise, 5, axis=1), 5, axis=2)
    turned = apply_view(frames, View(Crop(0, 0, 60, 60), degrees=90), 60)
    expected = torch.from_numpy(np.rot90(frames[0]).copy()).permute(2, 0, 1)
    assert (turned[0].int() - expected.int()).abs().max() <= 1


def test_what_is_drawn_covers_its_range():
    generator = np.random.default_rng(0)
    views = [drawn(50, 80, generator, ALL) for _ in range(2000)]
    for name, middle, most in (("degrees", 0, 20), ("brightness", 1, 0.4), ("contrast", 1, 0.4), ("hue", 0, 0.1)):
        values = np.array([getattr(view, name) for view in views])
        counts, _ = np.histogram(values, bins=4, range=(middle - most, middle + most))
        assert counts.sum() == 2000
        assert np.abs(counts - 500).max() < 100


def test_what_is_not_asked_for_draws_nothing():
    """So that samples stay what they were when an option is added."""
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    view = drawn(50, 80, one, Augmentation())
    assert view == View(view.crop)
    drawn(50, 80, other, Augmentation(rotation=5))
    assert one.integers(2**63) != other.integers(2**63)


def test_bad_settings_are_named():
    for settings in ({"rotation": -1}, {"hue": 0.6}, {"flip": 2}, {"scale": (0, 1)}, {"scale": (1, 0.5)}):
        with pytest.raises(InputError, match=next(iter(settings))):
            Augmentation(**settings)


def test_the_options_of_a_dataset(clips):
    still = get_kinetics_dataset(clips, image_size=24, augment=False)[0]["video"]
    augmentation = Augmentation(scale=(1, 1), ratio=(1, 1), flip=0, brightness=0.9)
    dataset = get_kinetics_dataset(clips, image_size=24, augment=augmentation)
    factors = {round(float(dataset[epoch, 0]["video"].float().mean() / still.float().mean()), 2) for epoch in range(8)}
    assert len(factors) > 4


def test_the_box_says_what_was_cut_out(clips):
    """The frame's own pixels, cut and mirrored by the box, are the sample's."""
    assert boxes([Crop(1, 2, 3, 4), Crop(5, 6, 7, 8, flip=True)]).tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 8, 1]]
    seen = set()
    for epoch in range(6):
        dataset = get_kinetics_dataset(clips, image_size=24)
        sample = dataset[epoch, 0]
        with dataset.source.open(0) as clip:
            whole, _ = clip.frames(np.searchsorted(clip.times, sample["time"].numpy() - 1e-6))
        assert torch.equal(sample["box"][0], sample["box"][1])
        *crop, flip = sample["box"][0].tolist()
        assert torch.equal(apply_view(whole, View(Crop(*crop, bool(flip))), 24), sample["video"])
        seen.add(flip)
    assert seen == {0, 1}


@pytest.mark.parametrize("statistics", [(), (MAE_ST_MEAN, MAE_ST_STD)])
def test_unnormalize_undoes_the_models_normalisation(statistics):
    frames = torch.randint(0, 256, (4, 2, 3, 5, 6), dtype=torch.uint8)
    torch.testing.assert_close(
        unnormalize(normalize(frames, *statistics), *statistics), frames / 255, atol=1e-6, rtol=0
    )
    assert unnormalize_for_plot(normalize(frames, *statistics), *statistics).shape == (4, 2, 5, 6, 3)
    np.testing.assert_array_equal(
        unnormalize_for_plot(normalize(frames, *statistics), *statistics), frames.movedim(-3, -1).numpy()
    )
    overshoot = torch.full((3, 2, 2), 9.0, requires_grad=True)
    assert (unnormalize_for_plot(overshoot) == 255).all()
    assert (unnormalize_for_plot(-overshoot) == 0).all()
