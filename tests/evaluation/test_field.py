"""The benchmarks beside DAVIS: official numbers to the digit, brute force on tiny cases, their layouts in small.

The numbers were computed by the official code (numpy) from the arrays that `np.random.RandomState` gives everywhere.
"""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from benchmarks import synthetic_table
from cli.main import main
from cli.synthetic_scenes import grid_tracks
from common.errors import InputError
from dataset_loader.synthetic import synthetic_video
from evaluation.benchmarks import kitti_step, tap_vid, uvo, vspw
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.kitti_step import KittiStep
from evaluation.benchmarks.tap_vid import TapVid
from evaluation.benchmarks.uvo import UVO
from evaluation.benchmarks.vspw import VSPW
from evaluation.benchmarks.youtube_vos import YouTubeVOS
from evaluation.controls import Copy
from evaluation.features import Source, pixel_features
from evaluation.metrics import region_and_contour
from evaluation.protocols import protocol
from evaluation.run import evaluate, score_results

Random = np.random.RandomState
RULES = protocol("dino", size="48x64", top_k=2, context=2)
close = pytest.approx
EXACT = dict(rel=0, abs=1e-12)


def quiet(line):
    """Nobody reads these lines."""


def source(patch=4):
    return Source(f"pixels of {patch}", lambda images: pixel_features(images, patch), patch)


def world(seed=1, frames=8, **options):
    """A synthetic video of 48×64 with its exact truth."""
    return synthetic_video(seed, height=48, width=64, seconds=frames / 10, fps=10, **options)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pictures(folder, scene):
    for t, frame in enumerate(scene.frames.transpose(0, 2, 3, 1)):
        save(folder / f"{t:05d}.png", frame)


# ------------------------------------------------------------------------------------------------ KITTI-STEP


def step_case(shape=(6, 12, 16), seed=0, sequences=2):
    r, (T, H, W) = Random(seed), shape
    for _ in range(sequences):
        pairs = []
        for _ in range(T):
            sem = r.randint(0, 19, (H, W))
            sem[r.rand(H, W) < 0.3] = 11
            sem[r.rand(H, W) < 0.2] = 13
            sem[r.rand(H, W) < 0.05] = 255
            ins = np.where(np.isin(sem, (11, 13)), r.randint(0, 4, (H, W)), 0)
            psem = np.where(r.rand(H, W) < 0.7, sem, r.randint(0, 19, (H, W)))
            psem[psem == 255] = 0
            same = r.rand(H, W) < 0.8
            pin = np.where(np.isin(psem, (11, 13)), np.where(same, ins, r.randint(0, 4, (H, W))), 0)
            pairs.append(((sem << 16) + ins, (psem << 16) + pin))
        yield pairs


def test_stq_equals_the_official_code():
    sequences = [kitti_step.stq_counts(pairs) for pairs in step_case()]
    both, *each = (kitti_step.stq(chosen) for chosen in (sequences, sequences[:1], sequences[1:]))
    assert both == {
        "STQ": close(0.393676834971338, **EXACT),
        "AQ": close(0.3342764377593994, **EXACT),
        "SQ": close(0.463632589337931, **EXACT),
    }
    assert [one["STQ"] for one in each] == close([0.3843618483133058, 0.40357508626230526], **EXACT)
    assert [one["AQ"] for one in each] == close([0.3271565039952596, 0.3413963317871094], **EXACT)
    assert [one["SQ"] for one in each] == close([0.4515699019725473, 0.4770785011046712], **EXACT)
    json.dumps(sequences, allow_nan=False)


def test_stq_equals_loops_with_void_predicted():
    (pairs,) = step_case((3, 5, 7), seed=4, sequences=1)
    pairs = [(truth, np.where(Random(9).rand(5, 7) < 0.2, 255 << 16, found)) for truth, found in pairs]
    seen = [(int(g), int(p)) for truth, found in pairs for g, p in zip(truth.flat, found.flat, strict=True)]
    ious = []
    for c in (*range(19), 255):
        kept = [(g >> 16 == c, p >> 16 == c) for g, p in seen if g >> 16 != 255]
        union = sum(a or b for a, b in kept)
        if union:
            ious.append(sum(a and b for a, b in kept) / union)
    things = [(g, p) for g, p in seen if not (g >> 16 in (11, 13) and g & 0xFFFF == 0)]
    tubes = {g for g, _ in things if g >> 16 in (11, 13)}
    total = 0.0
    for g in tubes:
        size = sum(a == g for a, _ in things)
        for p in {b for a, b in things if a == g and b >> 16 in (11, 13)}:
            both = sum(pair == (g, p) for pair in things)
            union = size + sum(b == p for _, b in things) - both
            total += both * both / union / size
    row = kitti_step.stq([kitti_step.stq_counts(pairs)])
    assert row["SQ"] == close(np.mean(ious), **EXACT) and row["AQ"] == close(total / len(tubes), rel=1e-6)


@pytest.fixture
def kitti(tmp_path):
    """A road (0), a person (11) and a car (13) that move, void at the border; the car leaves a crowd behind."""
    scene = world(objects=2)
    pictures(tmp_path / "k" / "images" / "val" / "0002", scene)
    for t, mask in enumerate(scene.masks):
        coded = np.zeros((48, 64, 3), np.uint8)
        coded[mask == 1], coded[mask == 2] = (11, 1, 44), (13, 0, 7)
        coded[:3] = (255, 0, 0)
        save(tmp_path / "k" / "panoptic_maps" / "val" / "0002" / f"{t:05d}.png", coded)
    return tmp_path / "k"


def test_kitti_step_from_end_to_end(kitti, tmp_path):
    benchmark = KittiStep(kitti)
    (video,) = benchmark.videos()
    assert set(np.unique(video.first)) == {0, (11 << 16) + 300, (13 << 16) + 7, 255 << 16}
    out = dict(out=tmp_path / "o", export=tmp_path / "e", pictures=True)
    result = evaluate(benchmark, source(), RULES, **out, report=quiet)
    assert 0.1 < evaluate(benchmark, Copy(), RULES, report=quiet).row["STQ"] < result.row["STQ"] < 1
    assert score_results(benchmark, tmp_path / "e", report=quiet).row == result.row
    ids = kitti_step.read_panoptic(tmp_path / "e" / "0002" / "00007.png")
    assert 255 << 16 not in ids  # void is not followed
    truth = [video.label(t) for t in range(len(video))]
    assert benchmark.row({"": benchmark.score(video, truth)}) == close({"STQ": 1, "AQ": 1, "SQ": 1})
    assert (tmp_path / "o" / "index.html").is_file()
    with pytest.raises(InputError, match="lacks images/train/ and panoptic_maps/train/ of KITTI-STEP"):
        next(KittiStep(kitti, "train").videos())


# ------------------------------------------------------------------------------------------------ VSPW


def vspw_case():
    r, (n, h, w) = Random(3), (24, 10, 14)
    truth, found = [], []
    base = r.randint(0, 5, (h, w))
    guess = np.where(r.rand(h, w) < 0.8, base, r.randint(0, 5, (h, w)))
    for _ in range(n):
        base = np.where(r.rand(h, w) < 0.02, r.randint(0, 5, (h, w)), base)
        guess = np.where(r.rand(h, w) < 0.03, r.randint(0, 5, (h, w)), guess)
        truth.append(base.copy())
        found.append(guess.copy())
    return truth, found


def test_vspw_equals_the_official_code():
    truth, found = vspw_case()
    for n, count, expected in ((8, 16, 0.8437881403279839), (16, 8, 0.681636707634667)):
        windows = vspw.consistency(truth, found, n)
        assert len(windows) == count and np.mean([each for each, _ in windows]) == close(expected, **EXACT)
    classes = [vspw.to_classes(stored.astype(np.uint8)) for stored in truth]
    guesses = [np.clip(stored - 1, 0, None).astype(np.uint8) for stored in found]
    counts = sum(vspw.confusion(a, b, 124) for a, b in zip(classes, guesses, strict=True))
    assert vspw.mean_accuracies(counts)["mIoU"] == close(0.3657412280604935, **EXACT)


def test_consistency_equals_loops():
    truth, found = vspw_case()
    for (loose, strict), start in zip(vspw.consistency(truth, found, 8), range(16), strict=True):
        still = same = right = 0
        for place in np.ndindex(10, 14):
            if len({truth[t][place] for t in range(start, start + 8)}) == 1:
                still += 1
                if len({found[t][place] for t in range(start, start + 8)}) == 1:
                    same += 1
                    right += found[start][place] == truth[start][place]
        assert (loose, strict) == (same / still, right / still)


def test_vspw_from_end_to_end(tmp_path):
    root, scene = tmp_path / "v", world(frames=20)
    pictures(root / "data" / "a" / "origin", scene)
    for t, mask in enumerate(scene.masks):
        stored = mask + 1  # the background is class 0
        stored[0] = 0 if t % 2 else 255  # void
        save(root / "data" / "a" / "mask" / f"{t:05d}.png", stored)
    (root / "val.txt").write_text(".hidden\na\n")
    benchmark = VSPW(root)
    (video,) = benchmark.videos()
    assert np.unique(video.first[1:]).tolist() == [0, 1, 2, 3] and (video.first[0] == 255).all()
    result = evaluate(benchmark, source(), RULES, tmp_path / "o", export=tmp_path / "e", report=quiet)
    still = evaluate(benchmark, Copy(), RULES, report=quiet)
    assert still.row["mIoU"] < result.row["mIoU"] < 1 and still.row["VC8"] == 1 > still.row["VC8 strict"]
    assert score_results(benchmark, tmp_path / "e", report=quiet).row == result.row
    truth = [video.label(t) for t in range(20)]
    perfect, copied = (benchmark.score(video, labels) for labels in (truth, [video.first] * 20))
    alone = [benchmark.row({"": each})["mIoU"] for each in (perfect, copied)]
    both = benchmark.row({"a": perfect, "b": copied})
    assert alone[0] == 1 and both["video mIoU"] == close(np.mean(alone)) != close(both["mIoU"])


# ------------------------------------------------------------------------------------------------ late objects


def late_world():
    """Object 3 is shown from frame 3 on: until then it counts as background."""
    scene = world(seed=5)
    masks = scene.masks.copy()
    masks[:3][masks[:3] == 3] = 0
    return scene, masks


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


def by_loops(masks, results, starts):
    """J and F of each object over the frames after its first."""
    scores = {}
    for label, start in starts.items():
        pairs = [region_and_contour(masks[t] == label, results[t] == label, 1) for t in range(start + 1, len(masks))]
        scores[label] = np.mean(pairs, axis=0)[:, 0]
    return scores


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


# ------------------------------------------------------------------------------------------------ TAP-Vid


def tap_case():
    r, N, T = Random(1), 7, 20
    points = r.rand(N, T, 2).astype(np.float32)
    occluded = r.rand(N, T) < 0.3
    occluded[:, 0] = False
    occluded[2, :5], occluded[5] = True, True
    return points * 256, occluded


TAP = {
    "first": (
        6, 0.8715596330275229, (0.0, 0.038461538461538464, 0.23076923076923078, 0.7307692307692307, 0.9871794871794872),
        (0.0, 0.014084507042253521, 0.13385826771653545, 0.5157894736842106, 0.8), 0.2927464496885999,
    ),
    "strided": (
        19, 0.8033240997229917,
        (0.011811023622047244, 0.05905511811023622, 0.3031496062992126, 0.7440944881889764, 0.9960629921259843),
        None, 0.27767665257071317,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", TAP)
def test_tap_metrics_equal_the_official_code(mode):
    points, occluded = tap_case()
    tracks, frames = (tap_vid.queries_first if mode == "first" else tap_vid.queries_strided)(occluded)
    count, right, within, jaccard, average = TAP[mode]
    truth, hidden, r = points[tracks], occluded[tracks], Random(2)
    found = truth[None] + r.randn(1, *truth.shape) * 5
    found_hidden = np.where(r.rand(1, *hidden.shape) < 0.85, hidden, ~hidden)
    measured = tap_vid.tap_metrics(frames, hidden, truth, found_hidden[0], found[0], mode)
    assert len(tracks) == count and measured["OA"] == close(right, **EXACT)
    assert [measured[f"d_{d}"] for d in tap_vid.DISTANCES] == close(within, **EXACT)
    assert measured["d_avg"] == close(np.mean(within), **EXACT) and measured["AJ"] == close(average, **EXACT)
    assert jaccard is None or [measured[f"J_{d}"] for d in tap_vid.DISTANCES] == close(jaccard, **EXACT)


@pytest.mark.parametrize("mode", TAP)
def test_tap_metrics_equal_loops(mode):
    points, occluded = tap_case()
    tracks, frames = (tap_vid.queries_first if mode == "first" else tap_vid.queries_strided)(occluded)
    expected = [(t, n) for t in range(0, 20, 5) for n in range(7) if not occluded[n, t]]
    if mode == "first":
        expected = [(min(t for t in range(20) if not occluded[n, t]), n) for n in range(7) if not occluded[n].all()]
    assert [(int(t), int(n)) for t, n in zip(frames, tracks, strict=True)] == expected
    truth, hidden = points[tracks], occluded[tracks]
    found, found_hidden = truth + Random(3).randn(*truth.shape) * 4, Random(4).rand(*hidden.shape) < 0.3
    hits = wrong = near = total = 0
    for q, start in enumerate(frames):
        for t in range(20):
            if t > start if mode == "first" else t != start:
                close_by = np.hypot(*(found[q, t] - truth[q, t])) < 4
                total += not hidden[q, t]
                near += not hidden[q, t] and close_by
                hits += not hidden[q, t] and not found_hidden[q, t] and close_by
                wrong += not found_hidden[q, t] and (hidden[q, t] or not close_by)
    measured = tap_vid.tap_metrics(frames, hidden, truth, found_hidden, found, mode)
    assert measured["d_4"] == near / total and measured["J_4"] == hits / (total + wrong)


@pytest.fixture
def tap(tmp_path):
    scene = world(seed=2, frames=6)
    points, occluded = grid_tracks(scene)
    entry = {"video": scene.frames.transpose(0, 2, 3, 1).copy(), "points": points, "occluded": occluded}
    (tmp_path / "tap").mkdir()
    (tmp_path / "tap" / "davis.pkl").write_bytes(pickle.dumps({"clip": entry}))
    return tmp_path / "tap" / "davis.pkl", entry


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tap_vid_from_end_to_end(mode, tap, tmp_path, capsys):
    file, _ = tap
    benchmark = TapVid(file, mode)
    (video,) = benchmark.videos()
    rules = benchmark.protocol(size="256x256")
    out = dict(out=tmp_path / "o", export=tmp_path / "e", pictures=True)
    result = evaluate(benchmark, source(), rules, **out)
    assert "soft-argmax within 2 cells" in capsys.readouterr().out
    still = evaluate(benchmark, Copy(), rules, report=quiet)
    assert still.row["d_avg"] < result.row["d_avg"] < 1 and 0 < result.row["AJ"] < 1
    again = score_results(benchmark, tmp_path / "e", report=quiet).row
    assert again == {name: close(value, abs=1e-9) for name, value in result.row.items()}
    exact = np.stack([video.label(t) for t in range(6)], axis=1)
    perfect = np.concatenate([np.nan_to_num(exact), np.isnan(exact[..., :1])], axis=2)
    row = benchmark.row({"": benchmark.score(video, list(perfect.transpose(1, 0, 2)))})
    assert row["AJ"] == row["OA"] == row["d_1"] == 1
    short = evaluate(benchmark, source(), rules, frames=3, report=quiet)
    assert 0 <= short.row["d_avg"] <= 1


def test_a_point_is_followed_by_itself(tap):
    from evaluation.points import follow_points

    frames = list(tap[1]["video"])
    queries = np.array([[0, 0.3, 0.4], [2, 0.6, 0.7], [0, 0.8, 0.2]])
    together = np.stack(list(follow_points(frames, queries, source().encode, (96, 128))))
    for n in range(3):
        alone = np.stack(list(follow_points(frames, queries[n : n + 1], source().encode, (96, 128), batch=4)))
        np.testing.assert_allclose(alone[:, 0], together[:, n], atol=1e-6)
    np.testing.assert_allclose(together[2, 1], [0.7, 0.6, 0], atol=1e-6)  # in its own frame it is where it was asked


class Evil:
    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_pickles_build_arrays_and_nothing_else(tap, tmp_path, capsys):
    file, entry = tap
    for protocol_number in (2, 4, 5):
        file.write_bytes(pickle.dumps([entry], protocol=protocol_number))
        assert [video.name for video in TapVid(file).videos()] == ["0000"]
    for content, said in (
        (pickle.dumps({"clip": Evil()}), r"it holds a builtins.print"),
        (file.read_bytes()[:-500], "is no pickle of TAP-Vid"),
        (pickle.dumps({"clip": {"video": entry["video"]}}), "clip is not TAP-Vid's: expected video"),
        (
            pickle.dumps({"clip": {**entry, "occluded": entry["occluded"][:, 1:]}}),
            "clip is not TAP-Vid's: expected video",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=said):
            next(TapVid(file).videos())
    assert "run by a pickle" not in capsys.readouterr().out
    with pytest.raises(InputError, match="is no pickle of TAP-Vid, nor a folder that holds one"):
        next(TapVid(tmp_path / "none").videos())


# ------------------------------------------------------------------------------------------------ anyone's results


def test_score_prints_the_numbers_of_any_method_s_masks(small_davis, tmp_path, capsys):
    rules = protocol("dino", size="32x48", top_k=2, context=2)
    result = evaluate(Davis(small_davis), source(), rules, tmp_path / "o", export=tmp_path / "e", report=quiet)
    for name in ("two", "ant", "cow"):
        sorted((tmp_path / "e" / name).iterdir())[-1].unlink()  # not scored, as the first one
        (tmp_path / "e" / name / "00000.png").unlink()
    words = ["score", "davis", str(tmp_path / "e"), "--data", str(small_davis), "--out", str(tmp_path / "s")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{100 * result.row['J&F-Mean']:.1f}" in said and "two" in said
    for name in ("global_results.csv", "per-sequence_results.csv"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "o" / name).read_bytes()
    for spoil, sentence in (
        (lambda f: f.unlink(), "00002.png does not exist"),
        (lambda f: save(f, np.zeros((32, 48, 3), np.uint8)), r"00002.png is a colour picture (RGB)"),
        (lambda f: save(f, np.zeros((16, 24), np.uint8)), "00002.png is 16×24, but its picture"),
        (lambda f: save(f, np.full((32, 48), 9, np.uint8)), "two, frame 2: label 9 in the result, of 2 objects"),
    ):
        spoil(tmp_path / "e" / "two" / "00002.png")
        assert main([*words[:-1], str(tmp_path / "t")]) == 2
        assert sentence in capsys.readouterr().err
    for path in (tmp_path / "e" / "two").iterdir():
        path.unlink()
    (tmp_path / "e" / "two").rmdir()
    assert main([*words[:-1], str(tmp_path / "t")]) == 2
    assert "two does not exist: expected the results of two" in capsys.readouterr().err


def test_the_table_on_the_synthetic_world(tmp_path, capsys):
    out = tmp_path / "table.json"
    synthetic_table.main(
        ["--sources", "copy", "pixels", "--seeds", "3", "--side", "48", "--frames", "6", "--out", str(out)]
    )
    rows = json.loads(out.read_text())["rows"]
    ceiling = rows.pop("true motion")
    assert rows.keys() == {"copy", "pixels"} and ceiling["d_avg"] == 100 and ceiling["J&F"] > 80
    assert all(row["J&F"] < ceiling["J&F"] and 0 < row["d_avg"] < 100 for row in rows.values())
    assert "| true motion |" in capsys.readouterr().out
