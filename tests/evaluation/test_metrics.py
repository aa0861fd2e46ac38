"""Metrics against the official tool's recorded values, against nested loops, and against cases counted by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from evaluation.benchmarks.jhmdb import JHMDB
from evaluation.metrics import class_iou, confusion, joint_errors, mean_iou, pck, region_and_contour, statistics
from evaluation.videos import Video

GOLDEN = Path(__file__).parents[1] / "golden" / "davis_metrics.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


def test_j_and_f_equal_the_official_tool_to_the_last_bit(golden):
    assert len(golden["J"]) == 44
    for frame in np.unique(golden["frame"]):
        rows = golden["frame"] == frame
        objects = golden["object"][rows]
        j, f = region_and_contour(golden["truth"][frame], golden["result"][frame], int(objects.max()))
        assert j[objects - 1].tolist() == golden["J"][rows].tolist()
        assert f[objects - 1].tolist() == golden["F"][rows].tolist()


def test_edge_cases_equal_the_official_tool_to_the_last_bit(golden):
    assert len(golden["edge_names"]) == 8
    for index, name in enumerate(golden["edge_names"]):
        truth, result = (golden[f"edge_{key}"][index].astype(np.uint8) for key in ("truth", "result"))
        j, f = region_and_contour(truth, result, 1)
        assert (name, j[0], f[0]) == (name, golden["edge_J"][index], golden["edge_F"][index])


def test_statistics_equal_the_official_tool_to_the_last_bit(golden):
    for name, expected in zip(golden["stat_names"], golden["stat_mean_recall_decay"], strict=True):
        assert list(statistics("J", golden[f"stat_{name}"]).values()) == expected.tolist()


def test_statistics_of_few_and_of_many_frames():
    assert all(
        math.isnan(value) for value in statistics("F", []).values()
    )  # a video of two frames has none between first and last
    assert statistics("F", [0.7]) == {"F-Mean": 0.7, "F-Recall": 1.0, "F-Decay": 0.0}
    long = statistics("J", np.linspace(1, 0, 1001))  # the official 8-bit borders would wrap around
    assert long["J-Decay"] == pytest.approx(0.75, abs=1e-12)


def plain_boundary(mask):
    H, W = mask.shape
    boundary = np.zeros((H, W), bool)
    for y in range(H):
        for x in range(W):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if y == H - 1:
                neighbours = [(y, x + 1)]
            if x == W - 1:
                neighbours = [(y + 1, x)]
            if (y, x) != (H - 1, W - 1):
                boundary[y, x] = any(mask[n] != mask[y, x] for n in neighbours)
    return boundary


def plain_f(true, found, radius):
    a, b = np.argwhere(plain_boundary(true)), np.argwhere(plain_boundary(found))
    if len(a) == 0 or len(b) == 0:
        return float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(0).sum() / len(b), near.any(1).sum() / len(a)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_j_and_f_of_random_blobs_equal_nested_loops(seed):
    generator = np.random.default_rng(seed)
    H, W = 61, 47  # radius 1; blobs touch every side of the image
    maps = np.zeros((2, H, W), np.uint8)
    for labels in maps:
        for label in (1, 2, 4):  # label 3 is in neither
            y, x = generator.integers(-8, H), generator.integers(-8, W)
            labels[max(y, 0) : y + generator.integers(9, 40), max(x, 0) : x + generator.integers(9, 40)] = label
        noise = generator.random((H, W)) < 0.02
        labels[noise] = generator.integers(0, 3, noise.sum())
    truth, result = maps
    radius = math.ceil(0.008 * math.hypot(H, W))
    j, f = region_and_contour(truth, result, 4)
    for label in range(1, 5):
        true, found = truth == label, result == label
        union = (true | found).sum()
        assert j[label - 1] == ((true & found).sum() / union if union else 1)
        assert f[label - 1] == plain_f(true, found, radius)
    assert j[2] == f[2] == 1


def test_a_missing_object_counts_as_an_empty_mask():
    truth = np.zeros((20, 30), np.uint8)
    truth[3:9, 4:9], truth[12:, 20:] = 1, 2
    result = np.where(truth == 1, truth, 0)
    j, f = region_and_contour(truth, result, 2)
    assert j.tolist() == f.tolist() == [1, 0]


def test_sizes_that_differ_are_named():
    with pytest.raises(InputError, match="4×5 .* 4×6"):
        region_and_contour(np.zeros((4, 6), int), np.zeros((4, 5), int), 1)
    with pytest.raises(InputError, match="4×5 .* 4×6"):
        confusion(np.zeros((4, 6), int), np.zeros((4, 5), int), 2)
    with pytest.raises(InputError, match=r"\(3, 2, 2\).*\(3, 1, 2\)"):
        joint_errors(np.zeros((3, 1, 2)), np.zeros((3, 2, 2)))


def test_mean_iou_by_hand():
    truth = np.array([[0, 0, 1, 1], [0, 2, 255, 1]], np.uint8)
    result = np.array([[0, 1, 1, 1], [0, 9, 0, 0]], np.uint8)
    # class 0: 2 right, union 3 + 1; class 1: 2 right, union 3 + 1; class 2: none of 1, found as void; class 3: absent
    counts = confusion(truth, result, 4)
    assert counts.sum() == 7 and counts[2, 4] == 1
    np.testing.assert_array_equal(class_iou(counts), [2 / 4, 2 / 4, 0, np.nan])
    assert mean_iou(counts) == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert math.isnan(mean_iou(np.zeros((3, 4), np.int64)))


def test_mean_iou_pools_frames_and_equals_loops():
    generator = np.random.default_rng(0)
    truths, results = generator.integers(0, 6, (2, 3, 7, 11))
    truths[truths == 3] = 2  # class 3 only in the result: its IoU is 0, and it counts
    counts = sum(confusion(truth, result, 5) for truth, result in zip(truths, results, strict=True))
    expected = []
    for c in range(5):
        valid = truths < 5
        both = ((truths == c) & (results == c)).sum()
        expected.append(both / (((truths == c) | (results == c)) & valid).sum())
    assert expected[3] == 0
    np.testing.assert_allclose(class_iou(counts), expected, rtol=1e-15)
    assert mean_iou(counts) == pytest.approx(np.mean(expected), rel=1e-15)


def joints(*points):
    return np.array(points, float)


def share(*videos, alpha):
    """Errors [T, J] of videos → PCK, with lost joints as misses."""
    errors = np.concatenate(videos)
    return pck((errors <= alpha).sum(axis=0), (~np.isnan(errors)).sum(axis=0))


def test_pck_by_hand():
    # size of the person: 0.6 · the diagonal of a box of 30 × 40 = 30
    box = joints((0, 0), (30, 40), (10, 10))
    truth = np.stack([box, box, box])
    result = truth.copy()
    result[0] += 1000  # the first frame was given, and is not counted
    result[1, 2] = (10, 13)  # 3 px: 0.1 of 30, just right
    result[2, 2] = (10, 13.01)
    result[2, 0] = (9, 0)
    errors = joint_errors(truth, result)
    np.testing.assert_allclose(errors[1:], [[0, 0, 0.1], [0.3, 0, 3.01 / 30]])
    assert np.isnan(errors[0]).all()
    assert share(errors, alpha=0.1) == pytest.approx((1 / 2 + 2 / 2 + 1 / 2) / 3)
    assert share(errors, alpha=0.2) == pytest.approx((1 / 2 + 2 / 2 + 2 / 2) / 3)


def test_pck_pools_each_joint_over_all_videos():
    two = np.array([[np.nan, np.nan], [0.0, 1.0], [0.0, np.nan]])
    one = np.array([[np.nan, np.nan], [1.0, 1.0]])
    assert share(two, one, alpha=0.5) == pytest.approx((2 / 3 + 0 / 2) / 2)
    assert math.isnan(share(np.full((3, 2), np.nan), alpha=0.5))


def test_lost_joints_are_left_out_publicly_and_missed_strictly(tmp_path):
    box = joints((0, 0), (30, 40), (60, 80))  # without the third joint 30 × 40, with it 60 × 80
    truth = np.stack([box, box])
    result = truth.copy()
    result[1, 0] = (6, 0)
    result[1, 2] = (-1, -1)
    np.testing.assert_allclose(joint_errors(truth, result)[1], [6 / 30, 0, np.inf])
    video = Video("v", (tmp_path, tmp_path), box, truth.__getitem__)
    row = JHMDB(tmp_path).row({"v": JHMDB(tmp_path).score(video, list(result))})
    assert row["PCK@0.2"] == 1 and row["PCK@0.2 strict"] == pytest.approx(2 / 3)
    result[1] = -1
    assert np.isinf(joint_errors(truth, result)[1]).all()


def test_joints_without_truth_are_not_counted():
    truth = np.stack([joints((0, 0), (30, 40), (5, 5))] * 2)
    result = truth.copy()
    truth[1, 2] = np.nan
    np.testing.assert_array_equal(joint_errors(truth, result)[1], [0, 0, np.nan])
    truth[1, :2] = np.nan
    assert np.isnan(joint_errors(truth, result)).all()


def test_a_single_visible_joint_has_no_scale_and_is_missed():
    truth = np.array([[[5.0, 5.0]], [[5.0, 5.0]]])
    assert share(joint_errors(truth, truth.copy()), alpha=0.5) == 0


def test_joint_errors_equal_loops():
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 40, (6, 5, 2))
    result = truth + generator.normal(0, 4, truth.shape)
    result[generator.random((6, 5)) < 0.4] = -1
    truth[generator.random((6, 5)) < 0.1] = np.nan
    errors = joint_errors(truth, result)
    for t in range(1, 6):
        shown = [truth[t, j] for j in range(5) if result[t, j, 0] >= 0 and not math.isnan(truth[t, j, 0])]
        (x0, y0), (x1, y1) = np.min(shown, axis=0), np.max(shown, axis=0)
        for j in range(5):
            if math.isnan(truth[t, j, 0]):
                assert math.isnan(errors[t, j])
            elif result[t, j, 0] < 0:
                assert math.isinf(errors[t, j])
            else:
                expected = math.dist(truth[t, j], result[t, j]) / (0.6 * math.hypot(x1 - x0, y1 - y0))
                assert errors[t, j] == pytest.approx(expected, rel=1e-12)
