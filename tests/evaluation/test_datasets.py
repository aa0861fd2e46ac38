"""Readers and scorers on small data sets in the layouts of the real ones, and everything that may be wrong in them."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from common.errors import InputError
from evaluation.datasets import davis, dense_labels, folder, jhmdb, keypoints, read_mask, recording, vip
from evaluation.follow import follow_joints, follow_mask
from evaluation.metrics import mean_iou, pck
from evaluation.protocols import protocol
from evaluation.scoring import count_classes, davis_table, score_joints, score_objects

H, W = 32, 48


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if path.suffix == ".png" and array.ndim == 2 and array.dtype == np.uint8:
        picture.putpalette([value for i in range(256) for value in (i * 37 % 256, i * 91 % 256, i)])
    picture.save(path)


def mask(*objects):
    """Boxes (label, y, x) of 8×8 pixels on the background."""
    labels = np.zeros((H, W), np.uint8)
    for label, y, x in objects:
        labels[y : y + 8, x : x + 8] = label
    return labels


def picture(labels, seed=0):
    noise = np.random.default_rng(seed).integers(0, 40, (H, W, 3))
    return (noise + 70 * (labels % 4)[..., None]).astype(np.uint8)


@pytest.fixture
def davis_root(tmp_path):
    """Two objects that move right, and a sequence of one; frames 0 … 4."""
    for name, extra in (("bear", ()), ("cow", ((2, 20, 8),))):
        for t in range(5):
            labels = mask((1, 4, 4 + 2 * t), *extra)
            save(tmp_path / "JPEGImages" / "480p" / name / f"{t:05d}.jpg", picture(labels))
            save(tmp_path / "Annotations" / "480p" / name / f"{t:05d}.png", labels)
    lists = tmp_path / "ImageSets"
    for year in ("2016", "2017"):
        (lists / year).mkdir(parents=True)
        (lists / year / "val.txt").write_text("cow\nbear\n\n")
    return tmp_path


def spoil(folder, keep="00000.png"):
    for path in folder.glob("*.png"):
        if path.name != keep:
            path.write_bytes(b"whoever opens this looked too early")


def test_davis_hands_out_first_masks_in_the_list_s_order(davis_root):
    cow, bear = davis(davis_root)
    assert (cow.name, bear.name, len(cow)) == ("cow", "bear", 5)
    np.testing.assert_array_equal(cow.first, mask((1, 4, 4), (2, 20, 8)))
    assert [frame.shape for frame in cow.frames()] == [(H, W, 3)] * 5
    (cow16, _) = davis(davis_root, year=2016)
    np.testing.assert_array_equal(cow16.first, mask((1, 4, 4), (1, 20, 8)))


@pytest.mark.parametrize("name", ["paper", "rsp", "dino"])
def test_nobody_looks_at_a_truth_before_the_result_is_there(davis_root, name):
    annotations = davis_root / "Annotations" / "480p"
    whole = {path: path.read_bytes() for path in annotations.rglob("*.png")}
    for sequence in ("cow", "bear"):
        spoil(annotations / sequence)
    rules = protocol(name, size="32x48", top_k=1)
    for video in davis(davis_root):
        results = [video.first, *follow_mask(video.frames(), video.first, pixels, rules, patch_size=4)]
        assert len(results) == len(video)
        with pytest.raises(InputError, match=r"00001.png is damaged or no picture"):
            score_objects(video, results)
        with pytest.raises(InputError, match="2 results for 5 frames; the truth opens to a complete result only"):
            next(video.truth(results[:2]))
        for path, content in whole.items():
            path.write_bytes(content)
        scores = score_objects(video, results)
        assert len(scores) == video.first.max()
        assert scores[0].J.mean > 0.4 and scores[-1].J.mean > (0.9 if len(scores) == 2 else 0.4), scores
        for sequence in ("cow", "bear"):
            spoil(annotations / sequence)


def pixels(images):
    from evaluation.features import pixel_features

    return pixel_features(images, patch_size=4)


def test_scores_of_a_perfect_and_of_a_partly_wrong_result(davis_root):
    cow, bear = davis(davis_root)
    truths = {v.name: [read_mask(davis_root / "Annotations" / "480p" / v.name / f"{t:05d}.png") for t in range(5)]
              for v in (cow, bear)}  # fmt: skip
    perfect = [s for v in (cow, bear) for s in score_objects(v, truths[v.name])]
    assert [(s.video, s.object) for s in perfect] == [("cow", 1), ("cow", 2), ("bear", 1)]
    assert davis_table(perfect) == {
        "J&F-Mean": 1, "J-Mean": 1, "J-Recall": 1, "J-Decay": 0, "F-Mean": 1, "F-Recall": 1, "F-Decay": 0,
    }  # fmt: skip
    without = [np.where(labels == 2, 0, labels).astype(np.uint8) for labels in truths["cow"]]
    without[0], without[4] = mask(), mask()  # first and last do not count
    scores = score_objects(cow, without)
    assert [s.J.mean for s in scores] == [1, 0]
    assert davis_table([*scores, *score_objects(bear, truths["bear"])])["J-Mean"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="frame 2: label 7 in the result, of 2 objects"):
        score_objects(cow, [*truths["cow"][:2], mask((7, 0, 0)), *truths["cow"][3:]])


def test_objects_as_the_official_tool_counts_them(davis_root):
    """Objects are 1 … the first mask's largest: one that never appears scores 1, one that comes in later is ignored."""
    annotations = davis_root / "Annotations" / "480p" / "cow"
    save(annotations / "00000.png", mask((1, 4, 4), (3, 20, 8)))
    for t in range(1, 5):
        save(annotations / f"{t:05d}.png", mask((1, 4, 4 + 2 * t), (3, 20, 8), (5, 20, 30)))
    cow = next(davis(davis_root))
    results = [mask((1, 4, 4 + 2 * t)) for t in range(5)]
    assert [score.J.mean for score in score_objects(cow, results)] == [1, 1, 0]


def test_void_is_background_in_davis_2017(davis_root):
    path = davis_root / "Annotations" / "480p" / "cow" / "00000.png"
    save(path, mask((1, 4, 4), (255, 20, 8)))
    assert np.unique(next(davis(davis_root)).first).tolist() == [0, 1]
    save(path, mask((255, 20, 8)))
    with pytest.raises(InputError, match=r"00000.png, the first mask of cow, marks nothing to follow.*DAVIS 2016"):
        next(davis(davis_root))
    assert np.unique(next(davis(davis_root, year=2016)).first).tolist() == [0, 1]


def remove_tree(path):
    for child in path.iterdir():
        child.unlink()
    path.rmdir()


BAD = {
    "missing sequence": (lambda r: remove_tree(r / "JPEGImages/480p/cow"), "cow does not exist: expected a folder"),
    "missing masks": (lambda r: remove_tree(r / "Annotations/480p/cow"), "cow: .*Annotations.*cow does not exist"),
    "missing list": (lambda r: [remove_tree(r / "ImageSets" / y) for y in ("2016", "2017")], "val.txt cannot be read"),
    "empty list": (lambda r: (r / "ImageSets/2017/val.txt").write_text("\n"), "val.txt names no video"),
    "no first mask": (lambda r: (r / "Annotations/480p/cow/00000.png").unlink(), "00000.png does not exist, the mask"),
    "empty first mask": (lambda r: save(r / "Annotations/480p/cow/00000.png", mask()), "marks nothing to follow"),
    "16-bit mask": (
        lambda r: save(r / "Annotations/480p/cow/00000.png", mask((1, 4, 4)).astype(np.uint16)),
        "is 16-bit or 32-bit; expected a mask whose 8-bit pixel is the label",
    ),
    "RGB mask": (
        lambda r: save(r / "Annotations/480p/cow/00000.png", picture(mask())),
        r"is a colour picture \(RGB\); expected a mask whose 8-bit pixel is the label",
    ),
    "another size": (
        lambda r: save(r / "Annotations/480p/cow/00000.png", mask((1, 4, 4))[:, :-1]),
        r"00000.png is 32×47, but its picture .*00000.jpg is 32×48",
    ),
    "one frame": (
        lambda r: [(r / f"JPEGImages/480p/cow/{t:05d}.jpg").unlink() for t in range(1, 5)],
        "cow holds 1 picture; following needs at least 2",
    ),
    "cut off mask": (
        lambda r: (r / "Annotations/480p/cow/00000.png").write_bytes(
            (r / "Annotations/480p/cow/00000.png").read_bytes()[:-40]
        ),
        "00000.png is damaged or no picture",
    ),
}


def test_what_was_not_asked_for_need_not_be_there(davis_root):
    remove_tree(davis_root / "JPEGImages/480p/cow")
    assert [video.name for video in davis(davis_root, names=["bear"])] == ["bear"]
    with pytest.raises(InputError, match="there is no video called dog, hen among those of the list"):
        next(davis(davis_root, names=["hen", "bear", "dog"]))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(davis_root, case):
    break_it, message = BAD[case]
    break_it(davis_root)
    with pytest.raises(InputError, match=message):
        next(davis(davis_root))


def test_frames_of_two_sizes_get_a_sentence(davis_root):
    save(davis_root / "JPEGImages" / "480p" / "cow" / "00003.jpg", picture(mask())[:-2])
    cow = next(davis(davis_root))
    with pytest.raises(InputError, match="a frame of 30×48 follows one of 32×48"):
        list(follow_mask(cow.frames(), cow.first, pixels, protocol(size="32x48"), patch_size=4))


def test_videos_of_two_frames_have_nothing_between_first_and_last(davis_root):
    for t in range(2, 5):
        (davis_root / "JPEGImages" / "480p" / "cow" / f"{t:05d}.jpg").unlink()
    cow = next(davis(davis_root))
    with pytest.raises(InputError, match="cow has 2 frames; J and F leave out the first and the last"):
        score_objects(cow, [cow.first] * 2)


def test_masks_are_paired_by_name_and_frames_ordered_by_number(tmp_path):
    for t in (2, 10, 9):
        save(tmp_path / "frames" / f"im{t}.png", picture(mask(), seed=t))
    for t in (10, 2):  # 9 has no label
        save(tmp_path / "labels" / f"im{t}.png", mask((t, 0, 0)))
    save(tmp_path / "labels" / "im1.png", mask((1, 0, 0)))  # of no frame
    (video,) = dense_labels(tmp_path)
    assert [path.stem for path in video.paths] == ["im2", "im9", "im10"] and video.name == tmp_path.name
    results = [mask((2, 0, 0)), mask(), mask((2, 0, 0))]
    assert [(i, truth.max(), result.max()) for i, truth, result in video.truth(results)] == [(0, 2, 2), (2, 10, 2)]
    counts = count_classes(video, results, 11)
    background, outside = 2 * (H * W - 64), 64
    assert counts[0, 0] == background and counts[2, 2] == outside == counts[10, 2]
    assert mean_iou(counts) == pytest.approx((1 + 0.5 + 0) / 3)


def test_vip_and_folders_per_video(tmp_path):
    for t in range(3):
        for root in ("Images/videos7", "frames/a", "frames/b"):
            save(tmp_path / root / f"{t:04d}.jpg", picture(mask()))
        for root in ("Annotations/Category_ids/videos7", "labels/a", "labels/b"):
            save(tmp_path / root / f"{t:04d}.png", mask((19, 0, 0)))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val_videos.txt").write_text("absent\nvideos7\n")
    (video,) = vip(tmp_path, names=["videos7"])
    assert (video.name, len(video), video.first.max()) == ("videos7", 3, 19)
    assert [video.name for video in dense_labels(tmp_path)] == ["a", "b"]
    remove_tree(tmp_path / "labels" / "a")
    assert [video.name for video in dense_labels(tmp_path, ["b"])] == ["b"]
    with pytest.raises(InputError, match="lacks the folders frames/ and labels/"):
        next(dense_labels(tmp_path / "lists"))


def test_anyone_s_folder(tmp_path):
    for t in range(3):
        save(tmp_path / "mine" / f"{t}.jpg", picture(mask()))
    save(tmp_path / "first.png", mask((1, 4, 4)))
    video = folder(tmp_path / "mine", tmp_path / "first.png")
    assert (video.name, len(video), video.first.sum()) == ("mine", 3, 64)
    save(tmp_path / "first.png", mask((1, 4, 4))[1:])
    with pytest.raises(InputError, match=r"first.png is 31×48, but its picture .* is 32×48"):
        folder(tmp_path / "mine", tmp_path / "first.png")


def test_anyone_s_recording_is_decoded_as_it_is_gone_through(tmp_path):
    decoded = []

    def decode(numbers):
        for number in numbers:
            decoded.append(number)
            yield picture(mask(), seed=number)

    save(tmp_path / "first.png", mask((1, 4, 4)))
    video = recording(tmp_path / "clip.mp4", 5, decode, tmp_path / "first.png")
    assert (video.name, len(video), video.first.sum(), decoded) == ("clip", 5, 64, [0])
    frames = video.frames()
    next(frames), next(frames)
    assert decoded == [0, 0, 1] and [path.stem for path in video.paths][-1] == "00004"
    np.testing.assert_array_equal([*video.frames([1, 3])][1], picture(mask(), seed=3))
    assert [index for index, *_ in video.truth([video.first] * 5)] == [0]
    save(tmp_path / "first.png", mask((1, 4, 4))[1:])
    with pytest.raises(InputError, match=r"first.png is 31×48, but its picture .*clip.mp4/00000 is 32×48"):
        recording(tmp_path / "clip.mp4", 5, decode, tmp_path / "first.png")
    with pytest.raises(InputError, match="clip.mp4 has 1 frame; following needs at least 2"):
        recording(tmp_path / "clip.mp4", 1, decode, tmp_path / "first.png")


@pytest.fixture
def jhmdb_root(tmp_path):
    """Two joints of 15 move by a pixel a frame; the second clip belongs to the training part."""
    generator = np.random.default_rng(0)
    for clip in ("a_clip", "b_clip"):
        positions = np.zeros((2, 15, 4))
        for t in range(4):
            save(tmp_path / "Rename_Images" / "catch" / clip / f"{t + 1:05d}.png", picture(mask((1, 4, 4 + t))))
            positions[0, :, t], positions[1, :, t] = np.arange(15) * 3 + 1 + t, np.arange(15) * 2 + 1
        target = tmp_path / "joint_positions" / "catch" / clip / "joint_positions.mat"
        target.parent.mkdir(parents=True)
        savemat(target, {"pos_img": positions, "scale": generator.random(4)})
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "catch_test_split1.txt").write_text("a_clip.avi 2\nb_clip.avi 1\n")
    return tmp_path


def test_jhmdb_counts_joints_from_zero(jhmdb_root):
    (video,) = jhmdb(jhmdb_root)
    assert (video.name, len(video), video.first.shape) == ("catch/a_clip", 4, (15, 2))
    np.testing.assert_array_equal(video.first[2], [6, 4])  # x, y
    truth = [video.first + np.array([t, 0]) for t in range(4)]
    assert pck([score_joints(video, truth)], 0.1) == 1
    joints = list(follow_joints(video.frames(), video.first, pixels, protocol("dino", size="32x48"), patch_size=4))
    assert len(joints) == 3 and joints[0].shape == (15, 2)
    (jhmdb_root / "splits" / "catch_test_split1.txt").rename(jhmdb_root / "catch_test_split1.txt")
    assert len(list(jhmdb(jhmdb_root))) == 1
    (jhmdb_root / "catch_test_split1.txt").write_text("absent.avi 2\na_clip.avi 2\n")
    assert [video.name for video in jhmdb(jhmdb_root, names=["catch/a_clip"])] == ["catch/a_clip"]


def test_bad_joints_get_a_sentence(jhmdb_root):
    file = jhmdb_root / "joint_positions" / "catch" / "a_clip" / "joint_positions.mat"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="joint_positions.mat is damaged or cut off"):
        next(jhmdb(jhmdb_root))
    savemat(file, {"other": np.zeros(3)})
    with pytest.raises(InputError, match="holds no pos_img"):
        next(jhmdb(jhmdb_root))
    savemat(file, {"pos_img": np.zeros((3, 15, 4))})
    with pytest.raises(InputError, match=r"pos_img has shape \(3, 15, 4\); expected \[2, 15, frames\]"):
        next(jhmdb(jhmdb_root))
    savemat(file, {"pos_img": np.zeros((2, 15, 6))})
    with pytest.raises(InputError, match="6 frames with joints but 4 pictures"):
        next(jhmdb(jhmdb_root))
    with pytest.raises(InputError, match=r"holds no list \*_test_split3.txt"):
        next(jhmdb(jhmdb_root, split=3))


def test_keypoints_start_at_the_first_labelled_frame(tmp_path):
    for t in range(5):
        save(tmp_path / "dog" / f"{t:05d}.jpg", picture(mask()))
    entries = [
        {"frame": "00001", "joints": {"8": [3, 4], "5": [30, 20]}},
        {"frame": "00004", "joints": {"8": [3, 4]}},
    ]
    file = tmp_path / "joints.json"
    file.write_text(json.dumps({"joints": {"5": "nose", "8": "tail"}, "sequences": {"cat": entries, "dog": entries}}))
    (video,) = keypoints(file, tmp_path, ["dog"])
    assert [path.stem for path in video.paths] == ["00001", "00002", "00003", "00004"]
    np.testing.assert_array_equal(video.first, [[30, 20], [3, 4]])  # in the order in which they are declared
    assert [index for index, *_ in video.truth([video.first] * 4)] == [0, 3]
    errors = score_joints(video, [video.first] * 4)
    assert errors.shape == (2, 2) and np.isnan(errors[:, 0]).all()

    for content, message in (
        ("{", "is not a file of keypoints"),
        ('{"joints": {}}', "expected {\"joints\".*KeyError\\('sequences'\\)"),
        (json.dumps({"joints": {"5": "nose"}, "sequences": {"dog": entries}}), r"joints \['8'\] are not declared"),
        (json.dumps({"joints": {"5": "n", "8": "t"}, "sequences": {"dog": []}}), "none of the frames of dog"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            next(keypoints(file, tmp_path))
