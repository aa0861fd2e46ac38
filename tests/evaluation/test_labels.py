"""Masks and joints to patches and back: what each protocol does to them, by hand and against the public scripts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from evaluation.follow import follow_mask, resize_frame
from evaluation.labels import (
    joints_to_patches,
    mask_to_patches,
    patches_to_joints,
    patches_to_mask,
    resize_labels,
    stretch,
    winners,
)
from evaluation.protocols import protocol
from evaluation.videos import read_frame, read_mask

GOLDEN = Path(__file__).parents[1] / "golden" / "label_propagation.npz"


def test_labels_are_resized_to_the_pixel_under_the_centre():
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for size in [(2, 3), (3, 4), (8, 13), (4, 6)]:
        expected = [
            [labels[int((y + 0.5) * 4 / size[0]), int((x + 0.5) * 6 / size[1])] for x in range(size[1])]
            for y in range(size[0])
        ]
        np.testing.assert_array_equal(resize_labels(labels, size), expected)


def test_bilinear_masks_are_the_mean_of_the_four_pixels_around_a_patch_s_centre():
    mask = np.zeros((8, 12), np.uint8)
    mask[1, 1:3], mask[6, 5] = 5, 9
    mask[0, 0] = 9  # far from all centres: without antialiasing it is not seen
    soft, values = mask_to_patches(mask, (2, 3), (8, 12), protocol("paper"))
    assert values.tolist() == [0, 5, 9] and soft.shape == (2, 3, 3)
    np.testing.assert_array_equal(soft[0, 0], [0.5, 0.5, 0])
    np.testing.assert_array_equal(soft[1, 1], [0.75, 0, 0.25])
    np.testing.assert_array_equal(soft.sum(-1), np.ones((2, 3)))
    doubled, _ = mask_to_patches(resize_labels(mask, (16, 24)), (2, 3), (8, 12), protocol("paper"))
    assert torch.equal(doubled, soft)  # by way of the input size


def test_nearest_masks_are_hard():
    mask = np.zeros((8, 12), np.uint8)
    mask[2, 2] = mask[6:, 9:] = 3
    soft, values = mask_to_patches(mask, (2, 3), (999, 999), protocol("dino"))
    np.testing.assert_array_equal(values[soft.argmax(-1)], [[3, 0, 0], [0, 0, 3]])
    assert set(soft.unique().tolist()) == {0, 1}


def test_the_first_of_equals_wins():
    soft = torch.tensor([[[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]], [[0.0, 0.0, 0.0], [0.1, 0.2, 0.7]]])
    for name in ("paper", "dinov3"):
        found = winners(soft, (2, 2), protocol(name))
        assert found.dtype == torch.uint8 and found.tolist() == [[1, 0], [0, 2]]
    many = torch.randint(0, 3, (300, 7, 40), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(winners(many, (300, 7), protocol("dinov3")), many.argmax(-1).to(torch.uint8))


@pytest.mark.parametrize("name", ["paper", "rsp", "dino"])
def test_a_mask_survives_the_way_to_the_patches_and_back(name):
    mask = np.zeros((96, 160), np.uint8)
    mask[16:64, 32:96], mask[64:, 112:] = 7, 200
    soft, values = mask_to_patches(mask, (6, 10), (96, 160), protocol(name))
    back = patches_to_mask(soft, values, (96, 160), (96, 160), protocol(name))
    assert set(np.unique(back)) == {0, 7, 200} and back.dtype == np.uint8
    assert (back == mask).mean() > 0.95
    doubled = patches_to_mask(soft, values, (96, 160), (192, 320), protocol(name))
    np.testing.assert_array_equal(doubled, resize_labels(back, (192, 320)))


def test_stretching_lets_a_weak_object_win():
    soft = torch.tensor([[[0.9, 0.1], [0.6, 0.4]]])  # [1, 2, 2]: the object never has the larger share
    values = np.array([0, 1], np.uint8)
    assert patches_to_mask(soft, values, (1, 2), (1, 2), protocol("paper")).tolist() == [[0, 0]]
    assert patches_to_mask(soft, values, (1, 2), (1, 2), protocol("dino")).tolist() == [[0, 1]]


def test_a_label_without_contrast_does_what_zero_by_zero_does_in_the_public_script():
    maps = torch.stack([torch.full((2, 2), 0.3), torch.tensor([[0.0, 0.2], [0.4, 0.8]]), torch.zeros(2, 2)])
    public = maps.clone()
    for channel in public:
        if channel.max() > 0:
            channel -= channel.min()
            channel /= channel.max()
    assert public[0].isnan().all()
    assert torch.equal(stretch(maps).argmax(0), public.argmax(0))
    assert torch.equal(stretch(maps)[1:], public[1:])


def test_joints_read_from_heat_equal_the_public_script():
    with np.load(GOLDEN) as golden:
        joints = patches_to_joints(torch.from_numpy(golden["pose_map"]), (6, 9))  # one pixel a cell
        np.testing.assert_allclose(joints.T, golden["pose_coords"], rtol=0, atol=1e-5)
        scaled = patches_to_joints(torch.from_numpy(golden["pose_map"]), (240, 320))
        np.testing.assert_allclose(scaled, joints * [320 / 9, 240 / 6], rtol=1e-6)


def test_lost_joints_are_marked():
    heat = torch.zeros(4, 5, 3)
    heat[2, 3, 2] = 0.1
    np.testing.assert_allclose(patches_to_joints(heat, (40, 50)), [[-1, -1], [30, 20]])


def test_heat_of_a_joint_by_hand():
    # x = 100 of 320 → cell 6.25, y = 120 of 240 → cell 10: four cells from the nearest − 2, height 1 at the nearest
    heat = joints_to_patches(np.array([[100.0, 120.0], [np.nan, np.nan], [1000.0, 0.0]]), (240, 320), (20, 20)).numpy()
    assert heat.shape == (20, 20, 4)
    bell = np.exp(-2.0 * np.array([-2, -1, 0, 1]) ** 2)
    np.testing.assert_allclose(heat[8:12, 4:8, 1], bell[:, None] * bell, rtol=1e-6)
    assert heat[..., 1].sum() == pytest.approx((bell.sum()) ** 2, rel=1e-6)
    assert not heat[..., 2].any() and not heat[..., 3].any()  # unknown; outside of the picture
    np.testing.assert_array_equal(heat[..., 0], heat[..., 1] == 0)
    np.testing.assert_allclose(patches_to_joints(torch.from_numpy(heat), (240, 320))[0], [96, 120], atol=2.5)
    edge = joints_to_patches(np.array([[16.0, 16.0]]), (320, 320), (20, 20)).numpy()[..., 1]
    assert np.unravel_index(edge.argmax(), edge.shape) == (2, 2)  # cell 1 is drawn at 2: rounded towards 0 at borders


def test_frames_are_resized_without_antialiasing_and_checked():
    frame = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(frame).permute(2, 0, 1)[None].float(), (6, 30), mode="bilinear", align_corners=False
    )[0].permute(1, 2, 0)
    assert np.abs(resize_frame(frame, (6, 30)) - expected.numpy()).max() <= 1
    with pytest.raises(InputError, match=r"a frame is float64 of shape \(12, 20, 3\); expected RGB, uint8"):
        resize_frame(frame / 255, (6, 30))


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_following_gives_a_mask_per_frame_whatever_the_batch(batch):
    generator = np.random.default_rng(0)
    background = generator.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    frames = [np.roll(background, 8 * t, axis=1) for t in range(5)]
    first = np.zeros((64, 96), np.uint8)
    first[16:48, 16:48] = 4
    encoded = []

    def encode(images):
        from evaluation.features import pixel_features

        encoded.append(len(images))
        return pixel_features(images, patch_size=8)

    rules = protocol("dino", size="64x96", top_k=1)
    masks = list(follow_mask(iter(frames), first, encode, rules, patch_size=8, batch=batch))
    assert len(masks) == 4 and sum(encoded) == 5 and max(encoded) == min(batch, 5)
    for t, mask in enumerate(masks, start=1):
        assert (mask == np.roll(first, 8 * t, axis=1)).mean() > 0.97
    with pytest.raises(InputError, match="a video without frames"):
        next(follow_mask([], first, encode, rules))


def test_masks_in_every_form_that_holds_numbers(tmp_path):
    labels = (np.arange(48) % 3).reshape(6, 8).astype(np.uint8)
    opaque, other = np.full_like(labels, 255), np.arange(48, dtype=np.uint8).reshape(6, 8)
    forms = {
        "bits": Image.fromarray(labels == 1),
        "grey": Image.fromarray(labels),
        "16 bits": Image.fromarray(labels.astype(np.uint16)),
        "with alpha": Image.merge("LA", [Image.fromarray(labels), Image.fromarray(opaque)]),
    }
    for name, picture in forms.items():
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), labels == 1 if name == "bits" else labels)
    Image.merge("LA", [Image.fromarray(labels), Image.fromarray(other)]).save(tmp_path / "soft.png")
    with pytest.raises(InputError, match=r"soft.png is grey with an alpha that varies"):
        read_mask(tmp_path / "soft.png")


def test_a_jpeg_is_no_mask_unless_a_threshold_makes_it_one(tmp_path):
    disk = ((np.mgrid[:40, :60] - [[[20]], [[30]]]) ** 2).sum(0) < 150
    Image.fromarray((255 * disk).astype(np.uint8)).save(tmp_path / "m.jpg", quality=60)
    with pytest.raises(InputError, match=r"m.jpg holds \d+ labels: is it a JPEG, or antialiased\?.*--threshold 128"):
        read_mask(tmp_path / "m.jpg")
    found = read_mask(tmp_path / "m.jpg", 128)
    assert np.unique(found).tolist() == [0, 1] and (found != disk).mean() < 0.01


def test_16_bit_grey_pictures_keep_their_brightness(tmp_path):
    grey = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "p.png")
    expected = np.repeat(np.round(grey / 257)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_frame(tmp_path / "p.png"), expected)
