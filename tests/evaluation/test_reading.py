"""The benchmarks read and score small data sets in their layouts, and say in a sentence what is wrong with one."""

import json
import shutil

import numpy as np
import pytest
from scipy.io import savemat

from cli.main import main
from common.errors import InputError
from evaluation.benchmarks.camvid import CamVid
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.folder import Folder
from evaluation.benchmarks.jhmdb import JHMDB
from evaluation.benchmarks.joints import Joints
from evaluation.benchmarks.vip import VIP
from evaluation.features import Source, pixel_features
from evaluation.follow import follow_joints, follow_mask
from evaluation.metrics import mean_iou
from evaluation.protocols import protocol
from evaluation.run import records
from evaluation.videos import read_mask

H, W = 32, 48
RULES = protocol("dino", size="32x48", top_k=1)


def pixels(images):
    return pixel_features(images, patch_size=4)


def truths(root, name):
    return [read_mask(path) for path in sorted((root / "Annotations" / "480p" / name).glob("*.png"))]


def objects(t, *more):
    """What `two` holds in frame t."""
    return ((1, 4 + t, 4 + 3 * t), (2, 20, 8), *more)


# ------------------------------------------------------------------------------------------------ DAVIS


def test_davis_hands_out_first_masks_in_the_list_s_order(small_davis, make):
    two, ant, cow = Davis(small_davis).videos()
    assert [(video.name, len(video)) for video in (two, ant, cow)] == [("two", 4), ("ant", 6), ("cow", 5)]
    np.testing.assert_array_equal(two.first, make.boxes(*objects(0)))
    assert [frame.shape for frame in two.frames()] == [(H, W, 3)] * 4
    two16, *_ = Davis(small_davis, 2016).videos()
    np.testing.assert_array_equal(two16.first, make.boxes((1, 4, 4), (1, 20, 8)))


@pytest.mark.parametrize("name", ["paper", "rsp", "dino"])
def test_nobody_looks_at_a_truth_before_the_result_is_there(small_davis, name):
    davis, rules = Davis(small_davis), protocol(name, size="32x48", top_k=1)
    later = [path for path in small_davis.glob("Annotations/480p/*/*.png") if path.stem != "00000"]
    whole = {path: path.read_bytes() for path in later}
    for path in later:
        path.write_bytes(b"whoever opens this looked too early")
    for video in davis.videos(["two", "cow"]):
        results = [video.first, *follow_mask(video.frames(), video.first, pixels, rules, patch_size=4)]
        assert len(results) == len(video)
        with pytest.raises(InputError, match=r"00001.png is damaged or no picture"):
            davis.score(video, results)
        with pytest.raises(InputError, match=r"2 results for . frames; the truth opens to a complete result only"):
            next(video.truth(results[:2]))
        for path in later:
            path.write_bytes(whole[path])
        scores = davis.score(video, results)["objects"]
        assert len(scores) == video.first.max() and min(score["J-Mean"] for score in scores) > 0.4, scores
        for path in later:
            path.write_bytes(b"whoever opens this looked too early")


def test_scores_of_a_perfect_and_of_a_partly_wrong_result(small_davis, make):
    davis = Davis(small_davis)
    two, cow = davis.videos(["two", "cow"])
    perfect = {video.name: davis.score(video, truths(small_davis, video.name)) for video in (two, cow)}
    assert [score["object"] for score in perfect["two"]["objects"]] == [1, 2]
    assert davis.row(perfect) == {
        "J&F-Mean": 1, "J-Mean": 1, "J-Recall": 1, "J-Decay": 0, "F-Mean": 1, "F-Recall": 1, "F-Decay": 0,
    }  # fmt: skip
    without = [np.where(labels == 2, 0, labels).astype(np.uint8) for labels in truths(small_davis, "two")]
    without[0], without[3] = make.boxes(), make.boxes()  # first and last do not count
    scores = davis.score(two, without)
    assert [score["J-Mean"] for score in scores["objects"]] == [1, 0]
    assert davis.row({**perfect, "two": scores})["J-Mean"] == pytest.approx(2 / 3)
    without[2] = make.boxes((7, 0, 0))
    with pytest.raises(InputError, match="frame 2: label 7 in the result, of 2 objects"):
        davis.score(two, without)


def test_objects_as_the_official_tool_counts_them(small_davis, make):
    """Objects are 1 … the first mask's largest: one that never appears scores 1, one that comes in later is ignored."""
    folder = small_davis / "Annotations" / "480p" / "two"
    for t in range(4):
        make.save(folder / f"0000{t}.png", make.boxes((1, 4 + t, 4 + 3 * t), (3, 20, 8), *[(5, 20, 30)][: t > 0]))
    two = next(Davis(small_davis).videos())
    results = [make.boxes((1, 4 + t, 4 + 3 * t)) for t in range(4)]
    scores = Davis(small_davis).score(two, results)["objects"]
    found = [(score["J-Mean"], score["F-Mean"], score["J-Decay"]) for score in scores]
    assert found == [(1, 1, 0), (1, 1, 0), (0, 0, 0)]


def test_void_is_background_in_davis_2017(small_davis, make):
    path = small_davis / "Annotations" / "480p" / "two" / "00000.png"
    make.save(path, make.boxes((1, 4, 4), (255, 20, 8)))
    assert np.unique(next(Davis(small_davis).videos()).first).tolist() == [0, 1]
    make.save(path, make.boxes((255, 20, 8)))
    with pytest.raises(InputError, match=r"00000.png, the first mask of two, marks nothing to follow.*DAVIS 2016"):
        next(Davis(small_davis).videos())
    assert np.unique(next(Davis(small_davis, 2016).videos()).first).tolist() == [0, 1]


def test_what_was_not_asked_for_need_not_be_there(small_davis):
    shutil.rmtree(small_davis / "JPEGImages/480p/two")
    assert [video.name for video in Davis(small_davis).videos(["cow"])] == ["cow"]
    with pytest.raises(InputError, match="there is no video called dog, hen among those of the list"):
        next(Davis(small_davis).videos(["hen", "cow", "dog"]))


# What is wrong: how to bring it about (the folder, helpers) and what is said. M: masks, J: pictures of `two`.
M, J = "Annotations/480p/two", "JPEGImages/480p/two"
SENTENCES = {
    "the lists of the other DAVIS": (
        lambda root, make: (root / "ImageSets/2017/val.txt").unlink(),
        "2016/val.txt does: give year 2016",
    ),
    "no list": (lambda root, make: shutil.rmtree(root / "ImageSets"), "val.txt cannot be read"),
    "an empty list": (lambda root, make: (root / "ImageSets/2017/val.txt").write_text("\n"), "val.txt names no video"),
    "a missing sequence": (
        lambda root, make: shutil.rmtree(root / J),
        "two does not exist: expected a folder with the pictures of a video",
    ),
    "a sequence without annotations": (
        lambda root, make: shutil.rmtree(root / M),
        "two does not exist; expected the masks of",
    ),
    "no first annotation": (
        lambda root, make: (root / M / "00000.png").unlink(),
        "00000.png does not exist, the mask of the first picture",
    ),
    "an annotation that is cut off": (
        lambda root, make: (root / M / "00000.png").write_bytes((root / M / "00000.png").read_bytes()[:-40]),
        "00000.png is damaged or no picture",
    ),
    "a first annotation of another size": (
        lambda root, make: make.save(root / M / "00000.png", make.boxes(*objects(0))[:-1]),
        "00000.png is 31×48, but its picture",
    ),
    "a later annotation of another size": (
        lambda root, make: make.save(root / M / "00002.png", make.boxes(*objects(2))[:, :-1]),
        "00002.png is 32×47, but its picture",
    ),
    "a frame of another size": (
        lambda root, make: make.save(root / J / "00002.png", make.coloured(make.boxes(), 0)[:-1]),
        "a frame of 31×48 follows one of 32×48: all must be alike",
    ),
    "an empty first mask": (
        lambda root, make: make.save(root / M / "00000.png", make.boxes()),
        "00000.png, the first mask of two, marks nothing to follow",
    ),
    "a label beyond 8 bits": (
        lambda root, make: make.save(root / M / "00000.png", 257 * make.boxes(*objects(0)).astype(np.uint16)),
        "00000.png holds the label 514 in 16 bits; expected label numbers up to 255",
    ),
    "a first mask without its picture": (
        lambda root, make: (root / J / "00000.png").unlink(),
        "00000.png is the first mask, and its picture is missing",
    ),
    "a later annotation in colours": (
        lambda root, make: make.save(root / M / "00003.png", make.coloured(make.boxes(*objects(3)), 0)),
        "00003.png is a colour picture (RGB); expected a mask whose pixel is the label",
    ),
    "an RGB annotation": (
        lambda root, make: make.save(root / M / "00000.png", make.coloured(make.boxes(*objects(0)), 0)),
        "00000.png is a colour picture (RGB); expected a mask whose pixel is the label",
    ),
    "a video of one frame": (
        lambda root, make: [(root / J / f"0000{t}.png").unlink() for t in (1, 2, 3)],
        "two holds 1 picture; following needs at least 2",
    ),
    "a video of two frames": (
        lambda root, make: [(root / J / f"0000{t}.png").unlink() for t in (2, 3)],
        "two has 2 frames; J and F leave out the first and the last, and need 3",
    ),
    "no annotation to score against": (
        lambda root, make: [(root / M / f"0000{t}.png").unlink() for t in (1, 2)],
        "two: no frame between the first and the last has a mask to score against",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_a_fault_gets_a_sentence(case, small_davis, tmp_path, make, capsys):
    spoil, sentence = SENTENCES[case]
    spoil(small_davis, make)
    words = ["eval", "davis", "--data", small_davis, "--out", tmp_path / "out", "--source", "pixels", "--device", "cpu"]
    assert main([str(word) for word in [*words, "--protocol", "dino", "--size", "32x48"]]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("siammae eval: ") and said.count("\n") == 1
    assert not (tmp_path / "out" / "results.json").exists()


# ------------------------------------------------------------------------------------------------ classes, own video


def test_masks_are_paired_by_name_and_frames_ordered_by_number(tmp_path, make):
    for t in (2, 10, 9):
        make.save(tmp_path / "frames" / f"im{t}.png", make.coloured(make.boxes(), t))
    for t in (10, 2):  # 9 has no label
        make.save(tmp_path / "labels" / f"im{t}.png", make.boxes((t, 0, 0)))
    make.save(tmp_path / "labels" / "im1.png", make.boxes((1, 0, 0)))  # of no frame
    (video,) = CamVid(tmp_path).videos()
    assert [path.stem for path in video.paths] == ["im2", "im9", "im10"] and video.name == tmp_path.name
    results = [make.boxes((2, 0, 0)), make.boxes(), make.boxes((2, 0, 0))]
    assert [(i, truth.max(), result.max()) for i, truth, result in video.truth(results)] == [(0, 2, 2), (2, 10, 2)]
    counts = np.array(CamVid(tmp_path).score(video, results)["counts"])
    assert counts[0, 0] == 2 * (H * W - 64) and counts[2, 2] == 64 == counts[10, 2]
    assert mean_iou(counts) == pytest.approx((1 + 0.5 + 0) / 3)


def test_vip_and_folders_per_video(tmp_path, make):
    for t in range(3):
        for root in ("Images/videos7", "frames/a", "frames/b"):
            make.save(tmp_path / root / f"{t:04d}.png", make.coloured(make.boxes(), t))
        for root in ("Annotations/Category_ids/videos7", "labels/a", "labels/b"):
            make.save(tmp_path / root / f"{t:04d}.png", make.boxes((19, 0, 0)))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val_videos.txt").write_text("absent\nvideos7\n")
    (video,) = VIP(tmp_path).videos(["videos7"])
    assert (video.name, len(video), video.first.max()) == ("videos7", 3, 19)
    assert [video.name for video in CamVid(tmp_path).videos()] == ["a", "b"]
    shutil.rmtree(tmp_path / "labels" / "a")
    assert [video.name for video in CamVid(tmp_path).videos(["b"])] == ["b"]
    with pytest.raises(InputError, match="lacks the folders frames/ and labels/"):
        next(CamVid(tmp_path / "lists").videos())


class Decoded(Folder):
    """A video file without a file."""

    frames = 5

    def decoder(self):
        return self.frames, lambda numbers: (np.full((H, W, 3), number, np.uint8) for number in numbers)


def test_anyone_s_own_video(tmp_path, make):
    for t in range(3):
        make.save(tmp_path / "mine" / f"{t}.png", make.coloured(make.boxes(), t))
    clip, mask = tmp_path / "clip.mp4", tmp_path / "first.png"
    clip.touch()
    make.save(mask, make.boxes((1, 4, 4)))
    (video,) = Folder(tmp_path / "mine", mask).videos()
    assert (video.name, len(video), video.first.sum()) == ("mine", 3, 64)
    (video,) = Decoded(clip, mask).videos()
    assert (video.name, len(video), video.paths[-1].stem) == ("clip", 5, "00004")
    assert [frame.max() for frame in video.frames([1, 3])] == [1, 3]
    assert [index for index, *_ in video.truth([video.first] * 5)] == [0]
    with pytest.raises(InputError, match="clip.mp4 is a file: expected a folder of pictures"):
        next(Folder(clip, mask).videos())
    make.save(mask, make.boxes((1, 4, 4))[1:])
    for own in (Folder(tmp_path / "mine", mask), Decoded(clip, mask)):
        with pytest.raises(InputError, match=r"first.png is 31×48, but its picture .* is 32×48"):
            next(own.videos())
    Decoded.frames = 1
    with pytest.raises(InputError, match="clip.mp4 has 1 frame; following needs at least 2"):
        next(Decoded(clip, mask).videos())


# ------------------------------------------------------------------------------------------------ joints


def test_jhmdb_counts_joints_from_zero(small_jhmdb):
    jhmdb = JHMDB(small_jhmdb)
    (video,) = jhmdb.videos()
    assert (video.name, len(video), video.first.shape) == ("catch/clip", 4, (15, 2))
    np.testing.assert_array_equal(video.first[2], [6, 4])  # x, y
    truth = [video.first + np.array([t, 0]) for t in range(4)]
    assert jhmdb.row({"": jhmdb.score(video, truth)})["PCK@0.1"] == 1
    joints = list(follow_joints(video.frames(), video.first, pixels, RULES, patch_size=4))
    assert len(joints) == 3 and joints[0].shape == (15, 2)
    (small_jhmdb / "splits" / "catch_test_split1.txt").rename(small_jhmdb / "catch_test_split1.txt")
    (small_jhmdb / "catch_test_split1.txt").write_text("absent.avi 2\ntrains.avi 1\nclip.avi 2\n")
    assert [video.name for video in jhmdb.videos(["catch/clip"])] == ["catch/clip"]
    with pytest.raises(InputError, match=r"holds no list \*_test_split3.txt"):
        next(JHMDB(small_jhmdb, 3).videos())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-60]), "joint_positions.mat is damaged or cut off"),
        (lambda file: file.write_bytes(b""), "joint_positions.mat is damaged or cut off"),
        (lambda file: savemat(file, {"scale": np.zeros(3)}), "joint_positions.mat holds no pos_img"),
        (
            lambda file: savemat(file, {"pos_img": np.zeros((3, 15, 4))}),
            r"has shape \(3, 15, 4\); expected \[2, 15, fr",
        ),
        (lambda file: savemat(file, {"pos_img": np.zeros((2, 15, 6))}), "6 frames with joints but 4 pictures"),
        (lambda file: file.unlink(), "joint_positions.mat does not exist"),
    ],
)
def test_bad_joints_get_a_sentence(spoil, sentence, small_jhmdb):
    spoil(small_jhmdb / "joint_positions" / "catch" / "clip" / "joint_positions.mat")
    with pytest.raises(InputError, match=sentence):
        next(JHMDB(small_jhmdb).videos())


def test_keypoints_start_at_the_first_labelled_frame(small_keypoints):
    file, pictures = small_keypoints
    joints = Joints(file, pictures)
    (video,) = joints.videos(["dog"])
    assert [path.stem for path in video.paths] == ["1", "2", "3", "4"]
    np.testing.assert_array_equal(video.first, [[30, 20], [6, 8]])  # in the order in which they are declared
    assert [index for index, *_ in video.truth([video.first] * 4)] == [0, 3]
    scores = joints.score(video, [video.first] * 4)
    assert scores["strict"] == scores["counted"] == [1, 1]  # the first frame is not counted
    content = json.loads(file.read_text())
    entries = content["sequences"]["dog"]
    for wrong, message in (
        ("{", "is not a file of keypoints"),
        ('{"joints": {}}', "expected {\"joints\".*KeyError\\('sequences'\\)"),
        (json.dumps({"joints": {"5": "nose"}, "sequences": {"dog": entries}}), r"joints \['8'\] are not declared"),
        (json.dumps({**content, "sequences": {"dog": []}}), "none of the frames of dog"),
    ):
        file.write_text(wrong)
        with pytest.raises(InputError, match=message):
            next(joints.videos())


# ------------------------------------------------------------------------------------------------ odd files


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_lists_in_any_encoding_and_hidden_names(encoding, small_davis, small_jhmdb, small_camvid):
    (small_davis / "ImageSets/2017/val.txt").write_text("two\r\nant\r\n", encoding=encoding)
    for folder in (small_davis / "JPEGImages/480p/two", small_davis / "Annotations/480p/two"):
        (folder / "._00000.png").write_bytes(b"macOS")
        (folder / ".DS_Store").touch()
    assert [(video.name, len(video)) for video in Davis(small_davis).videos()] == [("two", 4), ("ant", 6)]
    (small_jhmdb / "splits" / "._catch_test_split1.txt").write_bytes(b"\x00\xff")
    assert len(list(JHMDB(small_jhmdb).videos())) == 1
    (small_camvid / "frames" / ".ipynb_checkpoints").mkdir()
    assert [len(video) for video in CamVid(small_camvid).videos()] == [4]


def test_what_is_wrong_with_a_mask_is_said_before_its_video_is_followed(small_davis, make):
    make.save(small_davis / M / "00003.png", make.coloured(make.boxes(), 0))
    asked = []
    davis = Davis(small_davis)
    watched = Source("watched", lambda images: asked.append(1), 4)
    with pytest.raises(InputError, match=r"00003.png is a colour picture"):
        list(records(davis, davis.videos(["two"]), watched, RULES))
    assert asked == []
