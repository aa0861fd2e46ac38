"""VSPW: official numbers to the digit, loops on a tiny case, its layout in small.

The numbers were computed by the official code (numpy) from the arrays that `np.random.RandomState` gives everywhere.
"""

import numpy as np

from evaluation.benchmarks import vspw
from evaluation.benchmarks.vspw import VSPW
from evaluation.controls import Copy
from evaluation.run import evaluate, score_results
from tests.evaluation.worlds import EXACT, RULES, Random, close, pictures, quiet, save, source, world


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
