"""One draw for all frames: recovered from the pixels of a picture whose colours are its coordinates."""

import numpy as np
import pytest
import torch

from dataset_loader.transforms import Crop, apply_crop, centre_crop, draw_crop


def ramp(height: int, width: int, blue: int) -> np.ndarray:
    """uint8 [H, W, 3]: red grows with x, green with y."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[..., 0] = (np.arange(width) + 0.5) / width * 255
    image[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    image[..., 2] = blue
    return image


def recover(image: torch.Tensor, height: int, width: int) -> tuple[float, float, float, float, bool]:
    """Top, left, bottom, right and flip of the crop that made a picture [3, S, S] of a ramp."""
    x, y = image[0].float().mean(0) / 255 * width, image[1].float().mean(1) / 255 * height
    step = abs(x[-1] - x[0]) / (len(x) - 1)
    down = (y[-1] - y[0]) / (len(y) - 1)
    return (
        float(y[0] - down / 2),
        float(min(x[0], x[-1]) - step / 2),
        float(y[-1] + down / 2),
        float(max(x[0], x[-1]) + step / 2),
        bool(x[-1] < x[0]),
    )


@pytest.mark.parametrize(("height", "width"), [(120, 160), (200, 90), (64, 64)])
def test_both_frames_are_cut_alike(height, width):
    generator = np.random.default_rng(0)
    for _ in range(20):
        crop = draw_crop(height, width, generator)
        frames = apply_crop(np.stack([ramp(height, width, 0), ramp(height, width, 255)]), crop, 48)
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
    assert centre_crop(100, 161) == Crop(0, 30, 100, 100)
    assert centre_crop(161, 100) == Crop(30, 0, 100, 100)


def test_an_untouched_square_keeps_its_pixels():
    frames = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    assert torch.equal(apply_crop(frames, centre_crop(32, 32), 32), torch.from_numpy(frames).permute(0, 3, 1, 2))
    mirrored = apply_crop(frames, Crop(0, 0, 32, 32, flip=True), 32)
    assert torch.equal(mirrored, torch.from_numpy(frames).permute(0, 3, 1, 2).flip(-1))
