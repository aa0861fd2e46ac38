"""Objects that start late: YouTube-VOS and UVO, by loops, and their layouts in small."""

import json

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from evaluation.benchmarks import uvo
from evaluation.benchmarks.uvo import UVO
from evaluation.benchmarks.youtube_vos import YouTubeVOS
from evaluation.controls import Copy
from evaluation.run import evaluate, score_results
from tests.evaluation.worlds import RULES, Random, by_loops, close, late_world, pictures, quiet, save, source


def test_objects_that_start_together_are_followed_together():
    scene, masks = late_world()
    frames = list(scene.frames.transpose(0, 2, 3, 1))
    first, new = masks[0], np.where(masks[3] == 3, 3, 0).astype(np.uint8)
    results = list(follow_late(frames, first, {3: new}))
    alone = [first, *follow_late(frames, first, {})[1:]]
    for t in range(8):
        assert (3 in results[t]) == (t >= 3)
        if t < 3:
            np.testing.assert_array_equal(results[t], alone[t])
        others = results[t] != 3
        np.testing.assert_array_equal(results[t][others], np.where(alone[t] == 3, 0, alone[t])[others])
    np.testing.assert_array_equal(results[3] == 3, new == 3)  # as it is given
    own = follow_late(frames[3:], new, {})
    for t in range(4, 8):  # what the late object takes is what it takes when it is followed alone
        assert not ((results[t] == 3) & (own[t - 3] != 3)).any()
    assert np.mean([(results[t] == 3)[masks[t] == 3].mean() for t in range(4, 8)]) > 0.4


def follow_late(frames, first, later):
    from evaluation.follow import follow_mask

    return [first, *follow_mask(frames, first, source().encode, RULES, patch_size=4, later=later)]


@pytest.fixture
def youtube(tmp_path):
    scene, masks = late_world()
    root = tmp_path / "y" / "train"
    pictures(root / "JPEGImages" / "clip", scene)
    for t in range(8):
        save(root / "Annotations" / "clip" / f"{t:05d}.png", masks[t])
    objects = {str(k): {"category": "x", "frames": [f"{t:05d}" for t in range(8) if k in masks[t]]} for k in (1, 2, 3)}
    (root / "meta.json").write_text(json.dumps({"videos": {"clip": {"objects": objects}}}))
    return tmp_path / "y", masks


def test_youtube_vos_scores_each_object_after_its_first_frame(youtube, tmp_path):
    root, masks = youtube
    benchmark = YouTubeVOS(root)
    (video,) = benchmark.videos()
    assert np.unique(video.first).tolist() == [0, 1, 2] and list(video.later) == [3]
    assert np.unique(video.later[3]).tolist() == [0, 3]
    result = evaluate(benchmark, source(), RULES, tmp_path / "o", export=tmp_path / "e", report=quiet)
    results = [np.array(Image.open(path)) for path in sorted((tmp_path / "e" / "clip").iterdir())]
    expected = by_loops(masks, results, {1: 0, 2: 0, 3: 3})
    for entry in result.records[0]["scores"]["objects"]:
        assert (entry["J-Mean"], entry["F-Mean"]) == tuple(close(value) for value in expected[entry["object"]])
    copied = evaluate(benchmark, Copy(), RULES, report=quiet)
    assert copied.row["J&F-Mean"] < result.row["J&F-Mean"]
    assert score_results(benchmark, tmp_path / "e", report=quiet).row == result.row
    (root / "train" / "Annotations" / "clip" / "00003.png").unlink()
    with pytest.raises(InputError, match=r"00003.png does not exist, the first mask of \[3\]"):
        next(benchmark.videos())
    (root / "train" / "meta.json").write_text("{}")
    with pytest.raises(InputError, match="meta.json is not YouTube-VOS's"):
        next(benchmark.videos())


def encode_rle(mask, text):
    """A mask in COCO's run lengths, as a list or as its string."""
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    runs = [0, *runs] if flat[0] else runs
    if not text:
        return {"counts": runs, "size": list(mask.shape)}
    coded = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            coded += chr((bits | 32 * more) + 48)
            if not more:
                break
    return {"counts": coded, "size": list(mask.shape)}


@pytest.mark.parametrize("text", [False, True])
def test_run_lengths_come_back(text):
    for seed, share in ((0, 0.5), (1, 0.02), (2, 1.0)):
        mask = Random(seed).rand(37, 53) < share
        mask[:, 20:40] = seed == 1  # long runs, and differences of both signs
        np.testing.assert_array_equal(uvo.decode_rle(encode_rle(mask, text), mask.shape), mask)
    with pytest.raises(InputError, match="the JSON file is damaged"):
        uvo.decode_rle(encode_rle(mask, text), (37, 54))


def test_average_precision_by_loops():
    """At each of 101 recalls the best precision of any that reach it; 0 where none does."""
    for seed in range(20):
        hits, tracks = (Random(seed).rand(9) < 0.5).astype(int), 7
        total = 0.0
        for recall in np.linspace(0, 1, 101):
            reached = [sum(hits[:k]) / k for k in range(1, 10) if sum(hits[:k]) / tracks >= recall]
            total += max(reached, default=0.0) / 101
        assert uvo.average_precision(hits, tracks) == close(total)
    assert uvo.average_precision(np.array([], dtype=int), 3) == 0
    assert uvo.average_precision(np.array([0, 1]), 1) == close(0.5)


def test_uvo_from_end_to_end(tmp_path):
    scene, masks = late_world()
    root = tmp_path / "u"
    pictures(root / "uvo_videos_dense_frames" / "clip", scene)
    entry = dict(id=4, ytid="clip", width=64, height=48, file_names=[f"clip/{t:05d}.png" for t in range(8)])
    annotations = [
        dict(id=k, video_id=4, iscrowd=0, segmentations=[encode_rle(m == k, k == 2) if k in m else None for m in masks])
        for k in (1, 2, 3)
    ]
    file = root / "VideoDenseSet" / "UVO_video_val_dense.json"
    file.parent.mkdir()
    file.write_text(json.dumps(dict(videos=[entry], annotations=annotations)))
    benchmark = UVO(root)
    (video,) = benchmark.videos()
    for t in range(8):
        np.testing.assert_array_equal(video.label(t), masks[t])
    result = evaluate(benchmark, source(), RULES, tmp_path / "o", export=tmp_path / "e", report=quiet)
    results = [np.array(Image.open(path)) for path in sorted((tmp_path / "e" / "clip").iterdir())]
    expected = by_loops(masks, results, {1: 0, 2: 0, 3: 3})
    assert result.row["J-Mean"] == close(np.mean([value[0] for value in expected.values()]))
    ious = [
        sum(((m == k) & (r == k)).sum() for m, r in zip(masks, results, strict=True))
        / sum(((m == k) | (r == k)).sum() for m, r in zip(masks, results, strict=True))
        for k in (1, 2, 3)
    ]
    assert min(ious) > 0.34  # so that each track can only be found by its own object
    expected = np.mean([np.mean([iou >= threshold for iou in ious]) for threshold in np.arange(0.5, 0.99, 0.05)])
    assert result.row["AR@100"] == close(expected)
    perfect = benchmark.row({"": benchmark.score(video, list(masks))})
    assert perfect["AR@100"] == perfect["AP"] == perfect["AP75"] == 1
    assert 0 < result.row["AP"] <= result.row["AP50"] <= 1
    with pytest.raises(InputError, match="UVO_video_train_dense.json"):
        next(UVO(root, "train").videos())
