"""Clips for MAE-ST: one view for all frames of a clip, R clips from one opened file, and MAE3D's segments."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.video_frame_dataset import Segments, VideoFrameDataset
from ml.checkpoints import find_checkpoint, load_model
from ml.logs import read_losses
from ml.SiamMAE import build_model
from ml.utils import train

H, W, FRAMES = 64, 96, 40


@pytest.fixture(scope="module")
def ramps(tmp_path_factory) -> Path:
    """Two folders of 40 pictures that tell where they are: red is twice the column, green thrice the row, blue 6 times
    the frame's number; and a ledger of them."""
    root = tmp_path_factory.mktemp("ramps")
    y, x = np.mgrid[:H, :W]
    for name in ("video_1", "video_2"):
        (root / name).mkdir()
        for n in range(FRAMES):
            picture = np.stack([2 * x, 3 * y, np.full_like(x, 6 * n)], axis=-1).astype(np.uint8)
            Image.fromarray(picture).save(root / name / f"img_{n:05d}.png")
    (root / "ledger.csv").write_text(f"video_1 0 {FRAMES - 1} 3\nvideo_2 0 {FRAMES - 1} 5\n")
    return root


def view_of(frame: torch.Tensor) -> tuple[float, float, float, float, bool]:
    """The crop that a frame of the ramps shows, from its slopes: centre x and y, width and height, mirrored?"""
    size = frame.shape[-1]
    inner = slice(size // 8, size - size // 8)  # off the borders, where a filter has only one side
    red, green, _ = frame.double()
    columns, rows = red.mean(0)[inner], green.mean(1)[inner]
    across = (columns[-1] - columns[0]).item() / (len(columns) - 1) * size / 2
    down = (rows[-1] - rows[0]).item() / (len(rows) - 1) * size / 3
    return columns.mean().item() / 2, rows.mean().item() / 3, abs(across), down, across < 0


def numbers_of(clip: torch.Tensor) -> list[int]:
    """Which frames of the ramps a clip [F, 3, S, S] shows."""
    return (clip[:, 2].double().mean((1, 2)) / 6).round().int().tolist()


def test_one_crop_and_flip_for_all_frames_of_a_clip(ramps):
    """Area 0.5 to 1 of the frame, width over height 3/4 to 4/3, half of the clips mirrored, while time passes."""
    dataset = get_kinetics_dataset(
        ramps / "video_1", image_size=32, clip_frames=8, stride=4, repeated_sampling=4, visits=30
    )
    views = []
    for index in range(len(dataset)):
        sample = dataset[1, index]
        assert sample["video"].shape == (4, 8, 3, 32, 32)
        for clip, times in zip(sample["video"], sample["time"], strict=True):
            place = (clip[:, :2] - clip[:1, :2].int()).abs()  # red and green: where the picture was cut
            assert place.max() <= 1
            first = numbers_of(clip)[0]
            assert numbers_of(clip) == [first + 4 * k for k in range(8)]
            np.testing.assert_allclose(times, (first + 4 * np.arange(8)) / 30)
            views.append(view_of(clip[0]))
    x, y, widths, heights, mirrored = np.array(views).T
    areas, aspects = widths * heights / (H * W), widths / heights
    assert 0.48 < areas.min() < 0.56 and 0.8 < areas.max() <= 0.92  # 4/3 of a frame that is 3/2 wide leaves 8/9 of it
    assert 0.72 < aspects.min() < 0.82 and 1.2 < aspects.max() < 1.38
    assert 40 < mirrored.sum() < 80 and len(views) == 120
    assert (
        x.std() > 3 and y.std() > 2 and len({round(v[0], 1) for v in views}) > 40
    )  # and R clips of a visit differ too


def test_repeated_augmentation_opens_each_file_once(ramps):
    """An epoch visits each video once; a batch of 8 clips at R = 4 is two visits, and is not counted as more."""
    dataset = get_kinetics_dataset(ramps, image_size=16, clip_frames=4, stride=2, repeated_sampling=4, visits=3)
    opened, original = [], dataset.source.open
    dataset.source.open = lambda number: opened.append(number) or original(number)
    loader = make_loader(dataset, 8)
    batches = list(loader)
    assert len(batches) == len(loader) == 3 and len(opened) == 6 and sorted(opened) == [0, 0, 0, 1, 1, 1]
    for batch in batches:
        assert batch["video"].shape == (8, 4, 3, 16, 16) and len(set(batch["seed"].tolist())) == 8
        assert len(set(batch["path"][:4])) == len(set(batch["path"][4:])) == 1
        assert len({tuple(clip) for clip in batch["time"][:4].tolist()}) > 1


def test_segments_draw_a_run_of_frames_in_each_part():
    times = np.arange(40) / 30
    clips = Segments(4, 3, repeated_sampling=200).draw(times, np.random.default_rng(0))
    assert clips.shape == (200, 12)
    for clip in clips.reshape(200, 4, 3):
        for k, run in enumerate(clip):
            assert run.tolist() == [run[0], run[0] + 1, run[0] + 2]
            assert k * 38 // 4 <= run[0] < (k + 1) * 38 // 4
    assert Segments(2, 2, test_mode=True).draw(np.arange(9) / 30, np.random.default_rng(0)).tolist() == [[2, 3, 6, 7]]
    with pytest.raises(InputError, match="2 frames, fewer than the 3 of a segment"):
        Segments(1, 3).draw(times[:2], np.random.default_rng(0))
    for arguments in ({"num_segments": 0}, {"frames_per_segment": 0}, {"repeated_sampling": 0}):
        with pytest.raises(InputError, match="must be at least 1"):
            Segments(**arguments)


@pytest.mark.parametrize("test_mode", [False, True])
def test_clips_of_the_video_frame_dataset_are_its_items(ramps, test_mode):
    data = VideoFrameDataset(ramps, ramps / "ledger.csv", 4, 2, test_mode=test_mode, seed=7)
    clips = data.clips(image_size=24, augment=False, repeated_sampling=3, visits=2)
    starts = set()
    for key in ((0, 0), (0, 1), (5, 1)):
        images, _ = data[key]
        sample = clips[key]
        shown = [int(np.asarray(image)[0, 0, 2]) // 6 for image in images]
        assert sample["video"].shape == (3, 8, 3, 24, 24) and numbers_of(sample["video"][0]) == shown
        np.testing.assert_allclose(sample["time"][0], np.array(shown) / 30)
        assert sample["path"].endswith(f"video_{key[1] + 1}")
        starts |= {tuple(numbers_of(clip)) for clip in sample["video"]}
    assert len(starts) == 1 if test_mode else len(starts) > 6
    with pytest.raises(InputError, match="without a transform"):
        VideoFrameDataset(ramps, ramps / "ledger.csv", 4, 2, transform=list).clips()


def test_a_model_of_clips_trains_on_segments(ramps, tmp_path):
    """MAE3D's ledger and its 4 segments of 4 frames, from Python, as the docstring of `VideoFrameDataset` shows it."""
    data = VideoFrameDataset(ramps, ramps / "ledger.csv", num_segments=4, frames_per_segment=4)
    loader = make_loader(data.clips(image_size=32, repeated_sampling=2, visits=2), batch_size=4)
    model = build_model("mae_st_micro_patch8", mask_ratio=0.9)
    run = train(model, loader, epochs=2, base_lr=1e-3, device="cpu", root=tmp_path, progress=False)
    assert [len(line.losses) for line in read_losses(tmp_path / "losses" / f"{run}.txt")] == [2, 2]
    again, checkpoint = load_model(find_checkpoint(run, tmp_path))
    assert checkpoint["step"] == 4 and again.config == model.config
    assert (tmp_path / "checkpoints" / run / "2.png").exists()
