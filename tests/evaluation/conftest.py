"""Small data sets in the layouts of the real ones, on grids that are not square."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

H, W = 32, 48


def boxes(*objects):
    """Boxes (label, y, x) of 8×8 pixels on the background [H, W]."""
    labels = np.zeros((H, W), np.uint8)
    for label, y, x in objects:
        labels[y : y + 8, x : x + 8] = label
    return labels


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if array.ndim == 2 and array.dtype == np.uint8:
        picture.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    picture.save(path)


def coloured(labels, seed):
    noise = np.random.default_rng(seed).integers(0, 50, (H, W, 3))
    colours = np.array([(0, 0, 0), (200, 20, 20), (20, 200, 20), (20, 20, 200)])
    return (noise + colours[labels % 4]).astype(np.uint8)


@pytest.fixture
def small_davis(tmp_path):
    """Sequences of 6, 4 and 5 frames; `two` has two objects."""
    root = tmp_path / "davis"
    for name, length, extra in (("ant", 6, ()), ("two", 4, ((2, 20, 8),)), ("cow", 5, ())):
        for t in range(length):
            labels = boxes((1, 4 + t, 4 + 3 * t), *extra)
            save(root / "JPEGImages" / "480p" / name / f"{t:05d}.png", coloured(labels, t))
            save(root / "Annotations" / "480p" / name / f"{t:05d}.png", labels)
    for year in ("2016", "2017"):
        (root / "ImageSets" / year).mkdir(parents=True)
        (root / "ImageSets" / year / "val.txt").write_text("two\nant\ncow\n")
    return root


@pytest.fixture
def small_camvid(tmp_path):
    """Four frames with classes 1, 10 and void (11)."""
    root = tmp_path / "camvid"
    for t in range(4):
        labels = boxes((1, 4, 4 + 2 * t), (10, 20, 20), (11, 20, 36))
        save(root / "frames" / f"{t}.png", coloured(labels, t))
        save(root / "labels" / f"{t}.png", labels)
    return root


@pytest.fixture
def small_jhmdb(tmp_path):
    """One test clip of four frames whose 15 joints move right."""
    root = tmp_path / "jhmdb"
    positions = np.zeros((2, 15, 4))
    for t in range(4):
        save(root / "Rename_Images" / "catch" / "clip" / f"{t + 1:05d}.png", coloured(boxes((1, 4, 4 + t)), t))
        positions[0, :, t], positions[1, :, t] = np.arange(15) * 3 + 1 + t, np.arange(15) * 2 + 1
    file = root / "joint_positions" / "catch" / "clip" / "joint_positions.mat"
    file.parent.mkdir(parents=True)
    savemat(file, {"pos_img": positions})
    (root / "splits").mkdir()
    (root / "splits" / "catch_test_split1.txt").write_text("clip.avi 2\n")
    return root


@pytest.fixture
def small_keypoints(tmp_path):
    """(JSON file, folder of pictures): a dog of two joints, labelled in frames 1 and 4 of 0 … 4."""
    root = tmp_path / "joints"
    for t in range(5):
        save(root / "pictures" / "dog" / f"{t}.png", coloured(boxes((1, 4, 4 + t)), t))
    entries = [
        {"frame": "1", "joints": {"8": [6, 8], "5": [30, 20]}},
        {"frame": "4", "joints": {"8": [7, 8], "5": [30, 22]}},
    ]
    file = root / "joints.json"
    file.write_text(json.dumps({"joints": {"5": "nose", "8": "tail"}, "sequences": {"dog": entries}}))
    return file, root / "pictures"


@pytest.fixture
def make():
    """The helpers that change a data set: `boxes`, `save`, `coloured`."""
    from types import SimpleNamespace

    return SimpleNamespace(boxes=boxes, save=save, coloured=coloured)
