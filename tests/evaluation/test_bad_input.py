"""All that may be wrong with a benchmark's files, through the command: one sentence and exit code 2, or, where the
official tool has its own behaviour, the same numbers as without the fault.
"""

import json

import numpy as np
import pytest
from scipy.io import savemat

from cli.main import main

OPTIONS = ["--source", "pixels", "--protocol", "dino", "--device", "cpu"]


def evaluated(benchmark, data, out, *options):
    words = ["eval", benchmark, "--data", data, "--out", out, *OPTIONS, *options]
    return main([str(word) for word in words])


def delete(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def objects(t, *more):
    """What `two` holds in frame t of the data set."""
    return ((1, 4 + t, 4 + 3 * t), (2, 20, 8), *more)


# What is wrong: how to bring it about (root of the data set, helpers) and what is said.
SENTENCES = {
    "the lists of the other DAVIS": (
        lambda root, make: (root / "ImageSets/2017/val.txt").unlink(),
        "2016/val.txt does: give year 2016",
    ),
    "a missing sequence": (
        lambda root, make: delete(root / "JPEGImages/480p/two"),
        "two does not exist: expected a folder with the pictures of a video",
    ),
    "a sequence without annotations": (
        lambda root, make: delete(root / "Annotations/480p/two"),
        "two does not exist; expected the masks of",
    ),
    "a first annotation of another size": (
        lambda root, make: make.save(root / "Annotations/480p/two/00000.png", make.boxes(*objects(0))[:-1]),
        "00000.png is 31×48, but its picture",
    ),
    "a later annotation of another size": (
        lambda root, make: make.save(root / "Annotations/480p/two/00002.png", make.boxes(*objects(2))[:, :-1]),
        "00002.png is 32×47, but its picture",
    ),
    "a frame of another size": (
        lambda root, make: make.save(root / "JPEGImages/480p/two/00002.png", make.coloured(make.boxes(), 0)[:-1]),
        "a frame of 31×48 follows one of 32×48: all must be alike",
    ),
    "an empty first mask": (
        lambda root, make: make.save(root / "Annotations/480p/two/00000.png", make.boxes()),
        "00000.png, the first mask of two, marks nothing to follow",
    ),
    "a 16-bit annotation": (
        lambda root, make: make.save(
            root / "Annotations/480p/two/00000.png", make.boxes(*objects(0)).astype(np.uint16)
        ),
        "00000.png is 16-bit or 32-bit; expected a mask whose 8-bit pixel is the label",
    ),
    "a later 16-bit annotation": (
        lambda root, make: make.save(
            root / "Annotations/480p/two/00002.png", make.boxes(*objects(2)).astype(np.uint16)
        ),
        "00002.png is 16-bit or 32-bit; expected a mask whose 8-bit pixel is the label",
    ),
    "an RGB annotation": (
        lambda root, make: make.save(
            root / "Annotations/480p/two/00000.png", make.coloured(make.boxes(*objects(0)), 0)
        ),
        "00000.png is a colour picture (RGB); expected a mask whose 8-bit pixel is the label",
    ),
    "a video of one frame": (
        lambda root, make: [(root / f"JPEGImages/480p/two/0000{t}.png").unlink() for t in (1, 2, 3)],
        "two holds 1 picture; following needs at least 2",
    ),
    "a video of two frames": (
        lambda root, make: [(root / f"JPEGImages/480p/two/0000{t}.png").unlink() for t in (2, 3)],
        "two has 2 frames; J and F leave out the first and the last, and need 3",
    ),
    "no annotation to score against": (
        lambda root, make: [(root / f"Annotations/480p/two/0000{t}.png").unlink() for t in (1, 2)],
        "two: no frame between the first and the last has a mask to score against",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_a_fault_gets_a_sentence(case, small_davis, tmp_path, make, capsys):
    spoil, sentence = SENTENCES[case]
    spoil(small_davis, make)
    assert evaluated("davis", small_davis, tmp_path / "out", "--size", "32x48") == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("siammae eval: ") and said.count("\n") == 1
    assert not (tmp_path / "out" / "results.json").exists()


def everywhere(*more):
    """Objects added to frames 1 … 3 of `two`."""

    def change(root, make):
        for t in range(1, 4):
            make.save(root / f"Annotations/480p/two/0000{t}.png", make.boxes(*objects(t, *more)))

    return change


def without_2(root, make):
    for t in range(4):
        labels = make.boxes(*objects(t))
        labels[labels == 2] = 3  # labels 1 and 3: 2 never appears
        make.save(root / f"Annotations/480p/two/0000{t}.png", labels)


def scores(out):
    return json.loads((out / "videos" / "two.json").read_text())["scores"]["objects"]


def test_a_new_object_in_the_middle_is_not_scored(small_davis, tmp_path, make):
    """As officially: the objects are those of the first mask; pixels of a later one count as background."""
    options = ("--size", "32x48", "--sequences", "two")
    assert evaluated("davis", small_davis, tmp_path / "before", *options) == 0
    everywhere((7, 20, 36))(small_davis, make)
    assert evaluated("davis", small_davis, tmp_path / "after", *options) == 0
    assert scores(tmp_path / "after") == scores(tmp_path / "before") and len(scores(tmp_path / "after")) == 2


def test_an_object_that_never_appears_scores_1(small_davis, tmp_path, make):
    """As officially: a number that the masks skip, empty in truth and result, is right in every frame."""
    without_2(small_davis, make)
    assert evaluated("davis", small_davis, tmp_path / "out", "--size", "32x48", "--sequences", "two") == 0
    one, absent, three = scores(tmp_path / "out")
    assert (absent["J-Mean"], absent["F-Mean"], absent["J-Recall"], absent["J-Decay"]) == (1, 1, 1, 0)
    assert one["J-Mean"] < 1 and three["object"] == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda whole: whole[:-60], "joint_positions.mat is damaged or cut off"),
        (lambda whole: whole[:100], "joint_positions.mat is damaged or cut off"),
        (lambda whole: b"", "joint_positions.mat is damaged or cut off"),
        (None, "joint_positions.mat holds no pos_img"),
    ],
)
def test_joints_that_are_cut_off(content, sentence, small_jhmdb, tmp_path, capsys):
    file = small_jhmdb / "joint_positions" / "catch" / "clip" / "joint_positions.mat"
    if content is None:
        savemat(file, {"scale": np.zeros(3)})
    else:
        file.write_bytes(content(file.read_bytes()))
    assert evaluated("jhmdb", small_jhmdb, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
