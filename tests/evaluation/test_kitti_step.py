"""KITTI-STEP: official numbers to the digit, loops on a tiny case, its layout in small.

The numbers were computed by the official code (numpy) from the arrays that `np.random.RandomState` gives everywhere.
"""

import json

import numpy as np
import pytest

from common.errors import InputError
from evaluation.benchmarks import kitti_step
from evaluation.benchmarks.kitti_step import KittiStep
from evaluation.controls import Copy
from evaluation.run import evaluate, score_results
from tests.evaluation.worlds import EXACT, RULES, Random, close, pictures, quiet, save, source, world


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
