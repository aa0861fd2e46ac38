"""Synthetic videos: the truth is held against nested loops and school geometry, the pictures against the truth."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from common.errors import InputError
from dataset_loader import synthetic
from dataset_loader.synthetic import Layer, SyntheticVideo, make_scene, synthetic_video

SMALL = dict(height=13, width=17)
SEEDS = range(6)


def sines(layer: Layer, quantity: int, time: float) -> float:
    path = layer.path
    value = path.middle[quantity]
    for i in range(2):
        turns = path.hertz[quantity, i] * time + path.phase[quantity, i]
        value += path.swing[quantity, i] * math.sin(2 * math.pi * turns)
    return value


def to_plane(layer: Layer, time: float, x: float, y: float, unit: int) -> tuple[float, float]:
    """Pixel coordinates → the layer's plane, by the inverse of a rotation matrix."""
    x, y = (x + 0.5) / unit - sines(layer, 0, time), (y + 0.5) / unit - sines(layer, 1, time)
    c, s, scale = math.cos(sines(layer, 2, time)), math.sin(sines(layer, 2, time)), math.exp(sines(layer, 3, time))
    return (c * x + s * y) / scale, (-s * x + c * y) / scale


def to_screen(layer: Layer, time: float, x: float, y: float, unit: int) -> tuple[float, float]:
    c, s, scale = math.cos(sines(layer, 2, time)), math.sin(sines(layer, 2, time)), math.exp(sines(layer, 3, time))
    x, y = scale * (c * x - s * y) + sines(layer, 0, time), scale * (s * x + c * y) + sines(layer, 1, time)
    return x * unit - 0.5, y * unit - 0.5


def inside(layer: Layer, x: float, y: float) -> bool:
    """An ellipse by its equation, a star by the crossings of a ray with the outline through its corners."""
    if not layer.tips:
        return (x / layer.radius) ** 2 + (y / (layer.radius * layer.stretch)) ** 2 <= 1
    corners = []
    for i in range(2 * layer.tips):
        distance = layer.radius * (layer.inner if i % 2 else 1)
        angle = math.pi * i / layer.tips
        corners.append((distance * math.cos(angle), distance * math.sin(angle) * layer.stretch))
    crossings = 0
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        crossings += (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    return crossings % 2 == 1


def seen(layers: list[Layer], time: float, x: float, y: float, unit: int) -> int:
    """The label at a point of the screen."""
    return max(label for label, layer in enumerate(layers) if inside(layer, *to_plane(layer, time, x, y, unit)))


def warp(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """image [H, W, C] read at (x, y), bilinear, the border repeated."""
    h, w = image.shape[:2]
    x, y = np.clip(x, 0, w - 1), np.clip(y, 0, h - 1)
    left, top = np.minimum(x.astype(int), w - 2), np.minimum(y.astype(int), h - 2)
    a, b = (x - left)[..., None], (y - top)[..., None]
    above = image[top, left] * (1 - a) + image[top, left + 1] * a
    below = image[top + 1, left] * (1 - a) + image[top + 1, left + 1] * a
    return above * (1 - b) + below * b


@pytest.mark.parametrize("seed", SEEDS)
def test_every_truth_equals_nested_loops(seed: int) -> None:
    times = [0.0, 0.7, 2.3, 1.1]  # gaps of all signs
    video = synthetic_video(seed, **SMALL, times=times, objects=4, keypoints=3)
    layers = make_scene(seed, **SMALL, objects=4, keypoints=3)
    unit = 13
    for f, time in enumerate(times):
        for y in range(13):
            for x in range(17):
                label = seen(layers, time, x, y, unit)
                assert video.masks[f, y, x] == label
                a, b = to_plane(layers[label], time, x, y, unit)
                distances = [math.hypot(a - k.real, b - k.imag) for k in layers[label].keypoints]
                assert video.parts[f, y, x] == (1 + distances.index(min(distances)) if label else 0)
                if f + 1 < len(times):
                    x1, y1 = to_screen(layers[label], times[f + 1], a, b, unit)
                    assert video.motion[f, y, x] == pytest.approx((x1 - x, y1 - y), abs=1e-4)
                    there = -0.5 <= x1 < 16.5 and -0.5 <= y1 < 12.5
                    assert video.occluded[f, y, x] == (not there or seen(layers, times[f + 1], x1, y1, unit) != label)
        for m, layer in enumerate(layers[1:]):
            for k, point in enumerate(layer.keypoints):
                x, y = to_screen(layer, time, point.real, point.imag, unit)
                assert video.keypoints[f, m, k] == pytest.approx((x, y), abs=1e-9)
                there = -0.5 <= x < 16.5 and -0.5 <= y < 12.5
                assert video.visible[f, m, k] == (there and seen(layers, time, x, y, unit) == m + 1)


@pytest.mark.parametrize("seed", [0, 3])
def test_colours_are_bilinear_texels_away_from_edges(seed: int) -> None:
    video = synthetic_video(seed, height=31, width=41, times=[0.5])
    layers = make_scene(seed, height=31, width=41, objects=3, keypoints=4)
    compared = np.zeros(4, int)
    for y in range(2, 29):
        for x in range(2, 39):
            label = video.masks[0, y, x]
            if (video.masks[0, y - 2 : y + 3, x - 2 : x + 3] != label).any():
                continue
            layer = layers[label]
            a, b = to_plane(layer, 0.5, x, y, 31)
            _, h, w = layer.texture.shape
            u, v = (a / layer.reach.real + 1) / 2 * w - 0.5, (b / layer.reach.imag + 1) / 2 * h - 0.5
            expected = warp(layer.texture.transpose(1, 2, 0), np.array([u]), np.array([v]))[0]
            assert video.frames[0, :, y, x] == pytest.approx(expected, abs=2)
            compared[label] += 1
    assert compared[0] > 200 and compared[1:].max() > 20, compared


def test_edges_are_mixed_by_the_share_of_the_pixel_that_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    def white_on_black(seed: int, **sizes: int) -> list[Layer]:
        layers = make_scene(seed, **sizes)
        return [replace(each, texture=np.full((3, 2, 2), 255 * bool(i), np.int32)) for i, each in enumerate(layers)]

    monkeypatch.setattr(synthetic, "make_scene", white_on_black)
    for seed in SEEDS:
        coarse = synthetic_video(seed, height=30, width=40, objects=1, fps=2)
        fine = synthetic_video(seed, height=270, width=360, objects=1, fps=2)
        covered = fine.masks.reshape(4, 30, 9, 40, 9).mean((2, 4))
        edge = (covered > 0) & (covered < 1)
        assert np.abs(coarse.frames[:, 0] / 255 - covered)[edge].mean() < 0.06  # the mask alone: 0.22
        assert np.abs(coarse.frames[:, 0] / 255 - covered)[~edge].max() < 0.35


def test_the_loops_have_seen_every_shape_and_case() -> None:
    videos = [synthetic_video(s, **SMALL, times=[0.0, 0.7, 2.3, 1.1], objects=4, keypoints=3) for s in SEEDS]
    shapes = [layer for s in SEEDS for layer in make_scene(s, **SMALL, objects=4, keypoints=3)[1:]]
    assert {layer.tips for layer in shapes} == {0, 3, 4, 5, 6, 7}
    stars = [layer.tips >= 5 and layer.inner < 0.9 * math.cos(math.pi / layer.tips) for layer in shapes]
    assert 3 < sum(stars) < len(shapes) - 3
    for truth in ("visible", "occluded"):
        share = np.mean([getattr(video, truth) for video in videos])
        assert 0.1 < share < 0.9, f"{truth}: {share}"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_keypoints_move_with_the_motion_around_them(seed: int) -> None:
    video = synthetic_video(seed, height=61, width=90, seconds=1)
    compared = 0
    for f, m, k in np.argwhere(video.visible[:-1]):
        x, y = video.keypoints[f, m, k]
        left, top = math.floor(x), math.floor(y)
        around = video.masks[f, max(top, 0) : top + 2, max(left, 0) : left + 2]
        if around.shape == (2, 2) and (around == m + 1).all():  # the motion within an object is linear in x and y
            motion = warp(video.motion[f].astype(float), np.array([x]), np.array([y]))[0]
            assert motion == pytest.approx(video.keypoints[f + 1, m, k] - video.keypoints[f, m, k], abs=1e-4)
            compared += 1
    assert compared > 150


@pytest.mark.parametrize("gap", [1 / 30, 0.4, 1.6])
def test_the_next_frame_warped_back_is_this_frame(gap: float) -> None:
    warped, still = [], []
    for seed in SEEDS:
        video = synthetic_video(seed, height=120, width=160, times=[0.3, 0.3 + gap])
        now, after = video.frames.transpose(0, 2, 3, 1).astype(float)
        y, x = np.mgrid[:120, :160]
        back = warp(after, x + video.motion[0, ..., 0], y + video.motion[0, ..., 1])
        valid = ~video.occluded[0]
        assert valid.mean() > 0.15
        warped.append(np.abs(back - now)[valid].mean())
        still.append(np.abs(after - now)[valid].mean())
    assert max(warped) < 5, warped
    assert np.mean(warped) < 3.5, warped
    assert np.mean(still) > 4 * np.mean(warped), (still, warped)


def equal(one: SyntheticVideo, other: SyntheticVideo) -> bool:
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


def test_a_seed_is_a_scene() -> None:
    assert equal(synthetic_video(3, seconds=0.2), synthetic_video(3, seconds=0.2))
    one, other = synthetic_video(3, seconds=0.2), synthetic_video(4, seconds=0.2)
    for name in ("frames", "masks", "keypoints", "motion"):
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_frame_rate_and_explicit_times_only_choose_when_to_look() -> None:
    slow, fast = synthetic_video(5, **SMALL, fps=30), synthetic_video(5, **SMALL, fps=60)
    uneven = synthetic_video(5, **SMALL, times=slow.times[[40, 3, 3, 59]])
    assert np.array_equal(slow.times, np.arange(60) / 30)
    for name in ("frames", "masks", "parts", "visible"):
        assert np.array_equal(getattr(slow, name), getattr(fast, name)[::2])
        assert np.array_equal(getattr(slow, name)[[40, 3, 3, 59]], getattr(uneven, name))
    np.testing.assert_allclose(slow.keypoints, fast.keypoints[::2], atol=1e-9)
    assert np.abs(uneven.motion[1]).max() < 1e-6 < np.abs(uneven.motion[2]).max()  # 3 and 3 are the same moment


def test_size_only_chooses_how_finely_to_look() -> None:
    small, large = synthetic_video(6, height=40, width=56, fps=4), synthetic_video(6, height=120, width=168, fps=4)
    assert np.array_equal(small.masks, large.masks[:, 1::3, 1::3])  # the centres of 3 x 3 pixels
    assert np.array_equal(small.parts, large.parts[:, 1::3, 1::3])
    assert np.array_equal(small.occluded, large.occluded[:, 1::3, 1::3])
    assert np.array_equal(small.visible, large.visible)
    np.testing.assert_allclose(3 * (small.keypoints + 0.5), large.keypoints + 0.5)
    np.testing.assert_allclose(3 * small.motion, large.motion[:, 1::3, 1::3], atol=1e-4)
    shrunk = large.frames.reshape(8, 3, 40, 3, 56, 3).mean((3, 5))
    assert np.abs(shrunk - small.frames).mean() < 6


@pytest.mark.parametrize(
    ("height", "width", "objects"), [(240, 320, 3), (64, 48, 8), pytest.param(90, 300, 20, marks=pytest.mark.slow)]
)
def test_at_time_0_every_object_is_in_sight(height: int, width: int, objects: int) -> None:
    for seed in SEEDS:
        video = synthetic_video(seed, height=height, width=width, objects=objects, times=[0])
        assert set(np.unique(video.masks)) == set(range(objects + 1))
        layers = make_scene(seed, height=height, width=width, objects=objects, keypoints=4)
        unit = min(height, width)
        middles = [to_screen(layer, 0, 0, 0, unit) for layer in layers[1:]]
        assert [seen(layers, 0, x, y, unit) for x, y in middles] == list(range(1, objects + 1))


def test_objects_move_fast_occlude_one_another_and_stay() -> None:
    videos = [synthetic_video(seed, height=60, width=80, fps=10) for seed in SEEDS]
    speeds = np.concatenate([np.hypot(*np.moveaxis(np.diff(v.keypoints, axis=0), -1, 0)).ravel() for v in videos])
    assert np.quantile(speeds * 10 / 60, [0.1, 0.9]) == pytest.approx([0.25, 1.1], abs=0.25)  # short sides a second
    middles = np.concatenate([v.keypoints.mean(2).reshape(-1, 2) for v in videos])
    assert (middles > -15).all() and (middles < [95, 75]).all()
    hidden = [np.mean(~v.visible) for v in videos]
    assert 0.05 < np.mean(hidden) < 0.4, hidden


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (31, 5), (2, 2)])
def test_odd_sizes_and_single_frames(height: int, width: int) -> None:
    video = synthetic_video(0, height=height, width=width, seconds=0, objects=2, keypoints=1)
    assert {name: (value.shape, str(value.dtype)) for name, value in vars(video).items()} == {
        "frames": ((1, 3, height, width), "uint8"),
        "times": ((1,), "float64"),
        "masks": ((1, height, width), "uint8"),
        "parts": ((1, height, width), "uint8"),
        "keypoints": ((1, 2, 1, 2), "float64"),
        "visible": ((1, 2, 1), "bool"),
        "motion": ((0, height, width, 2), "float32"),
        "occluded": ((0, height, width), "bool"),
    }


def test_frames_are_rich_pictures() -> None:
    video = synthetic_video(1, times=[0, 1])
    assert video.frames.min() < 20 and video.frames.max() > 235
    for label in range(4):
        assert video.frames.transpose(0, 2, 3, 1)[video.masks == label].std() > 20


def test_the_photograph_alone() -> None:
    video = synthetic_video(0, **SMALL, objects=0, fps=3)
    assert not video.masks.any() and video.keypoints.shape == (6, 0, 4, 2) and video.motion.any()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (dict(height=0), "height, not 0"),
        (dict(width=3.5), "width, not 3.5"),
        (dict(objects=256), "from 0 to 255 as objects, not 256"),
        (dict(keypoints=0), "keypoints, not 0"),
        (dict(fps=0), "fps above 0"),
        (dict(seconds=math.nan), "not 30.0 and nan"),
        (dict(times=[]), "one or more finite numbers"),
        (dict(times=[0, math.inf]), "one or more finite numbers"),
        (dict(seed=-1), "seed, not -1"),
    ],
)
def test_bad_requests_get_a_sentence(bad: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        synthetic_video(**{"seed": 0, **bad})


def test_without_scikit_learn_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    synthetic._photographs.cache_clear()
    with pytest.raises(InputError, match="pip install scikit-learn"):
        synthetic_video(0, **SMALL)
