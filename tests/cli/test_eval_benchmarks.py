"""`siammae eval vip|jhmdb` from small data sets in their official layouts to the papers' numbers."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cli.main import main

H, W = 64, 96


def picture(path, labels, seed):
    noise = np.random.default_rng(seed).integers(0, 30, (H, W, 3))
    colours = np.array([(0, 0, 0), (220, 10, 10), (10, 220, 10)])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + colours[labels]).astype(np.uint8)).save(path)


def boxes(*objects):
    labels = np.zeros((H, W), np.uint8)
    for label, y, x in objects:
        labels[y : y + 32, x : x + 32] = label
    return labels


@pytest.fixture
def vip(tmp_path):
    """Two people of three and four frames: the parts 1 and 2 move right by half a patch of 16 a frame."""
    root = tmp_path / "VIP"
    for name, length in (("videos1", 3), ("videos2", 4)):
        for t in range(length):
            labels = boxes((1, 0, 8 * t), (2, 32, 32 + 8 * t))
            picture(root / "Images" / name / f"{t + 1:012d}.jpg", labels, t)
            file = root / "Annotations" / "Category_ids" / name / f"{t + 1:012d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(file)
    (root / "lists").mkdir()
    (root / "lists" / "val_videos.txt").write_text("videos1\nvideos2\n")
    return root


@pytest.fixture
def jhmdb(tmp_path):
    """A clip of four frames whose 15 joints stand still, and one that is not of the test's part."""
    root = tmp_path / "JHMDB"
    positions = np.zeros((2, 15, 4))
    positions[0], positions[1] = np.arange(15)[:, None] * 6 + 1, np.arange(15)[:, None] * 4 + 1
    for clip in ("stays", "trains"):
        for t in range(4):
            labels = boxes((1, 8, 8), (2, 30, 60))
            picture(root / "Rename_Images" / "catch" / clip / f"{t + 1:05d}.png", labels, 0)
        folder = root / "joint_positions" / "catch" / clip
        folder.mkdir(parents=True)
        savemat(folder / "joint_positions.mat", {"pos_img": positions})
    (root / "splits").mkdir()
    (root / "splits" / "catch_test_split1.txt").write_text("stays.avi 2\ntrains.avi 1\n")
    return root


def evaluate(benchmark, data, out, *words):
    assert main(["eval", benchmark, "--data", str(data), "--out", str(out), "--device", "cpu", *words]) == 0
    return json.loads((out / "results.json").read_text())


def test_vip_from_end_to_end(vip, tmp_path, capsys):
    found = {
        source: evaluate("vip", vip, tmp_path / source, "--source", source, "--size", "64x96", "--context", "2")
        for source in ("pixels", "copy")
    }
    said = capsys.readouterr().out
    assert "mIoU" in said and "videos1" in said and "videos2" in said
    assert [(video["video"], video["frames"]) for video in found["copy"]["videos"]] == [("videos1", 3), ("videos2", 4)]
    assert found["copy"]["protocol"]["top_k"] == 10  # of the paper on VIP
    # all frames, the first included; of 32 columns 8·t are missed and as many too many
    part = [(n, 2 * 32 * 32 - n) for n in (32 * (32 - 8 * t) for t in (0, 1, 2, 0, 1, 2, 3))]
    both, either = (sum(column) for column in zip(*part, strict=True))
    background = [(H * W - 4 * 32 * 32 + 2 * n, H * W - 2 * n) for n, _ in part]
    rest = np.divide(*(sum(column) for column in zip(*background, strict=True)))
    assert found["copy"]["row"]["mIoU"] == pytest.approx((2 * both / either + rest) / 3)
    assert found["copy"]["row"]["mIoU"] < found["pixels"]["row"]["mIoU"] <= 1


def test_jhmdb_from_end_to_end(jhmdb, tmp_path, capsys):
    still = evaluate("jhmdb", jhmdb, tmp_path / "copy", "--source", "copy")
    assert [video["video"] for video in still["videos"]] == ["catch/stays"]  # the test's part alone
    assert still["row"]["PCK@0.1"] == still["row"]["PCK@0.1 strict"] == 1
    found = evaluate("jhmdb", jhmdb, tmp_path / "pixels", "--source", "pixels", "--context", "2")
    assert found["protocol"]["size"] == "320x320" and found["protocol"]["top_k"] == 7
    row = found["row"]
    assert 0 <= row["PCK@0.1 strict"] <= row["PCK@0.1"] <= row["PCK@0.5"] == 1  # nothing moves
    assert "PCK@0.1" in capsys.readouterr().out
