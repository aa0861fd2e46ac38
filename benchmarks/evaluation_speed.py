"""`python -m benchmarks.evaluation_speed`: propagation and metrics against the plain way, in CPU seconds on one core.

Propagation: DINO's protocol at 480×832 with a full context of 7, from the same features (random ones: the time does not
depend on them). Metrics: PNG files to J and F, a synthetic sequence of 480×854 with three objects. Repeats are paired.
"""

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.plain_evaluation import dino_step, median_and_interval, neighbourhood, score_folders
from evaluation.datasets import read_mask
from evaluation.metrics import region_and_contour
from evaluation.propagation import Context, propagate_step
from evaluation.protocols import protocol


def main(repeats: int = 7) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    propagation(repeats)
    metrics(repeats)


def propagation(repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(9, 30, 52, 384, generator=generator), dim=-1)
    labels = torch.rand(8, 30, 52, 3, generator=generator).softmax(-1)
    target, sources = features[8], features[:8]
    start = time.process_time()
    mask = neighbourhood(30, 52, 12)
    print(f"the neighbourhood mask, once a video, by loops: {time.process_time() - start:.1f} s; here none is built")

    def plain():
        return dino_step(target, list(sources), list(labels), mask)

    def ours():
        return propagate_step(target, Context(sources, labels, near=1, far=0), protocol("dino"))

    print(f"largest difference of the labels: {(plain() - ours()).abs().max():.1e}")
    compare("affinity and labels of a frame, mask not counted", plain, ours, repeats)


def metrics(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        truths, results = Path(name) / "truth", Path(name) / "result"
        for folder, seed in ((truths, 0), (results, 1)):
            folder.mkdir()
            for t in range(20):
                Image.fromarray(objects(t, seed)).save(folder / f"{t:05d}.png")

        def ours():
            pairs = [(read_mask(truths / f"{t:05d}.png"), read_mask(results / f"{t:05d}.png")) for t in range(20)]
            count = int(pairs[0][0].max())
            return np.stack([region_and_contour(*pair, count) for pair in pairs[1:-1]], axis=-1)

        plain_j, plain_f = score_folders(truths, results)
        j, f = ours()
        assert (j == plain_j).all() and (f == plain_f).all(), "the values differ"
        print(f"J and F: {j.size + f.size} values, every one equal")
        compare("J and F from PNG files, 20 frames", lambda: score_folders(truths, results), ours, repeats)


def objects(t: int, seed: int) -> np.ndarray:
    """Three wobbling blobs at time t; another seed shifts them a little."""
    y, x = np.mgrid[:480, :854]
    labels = np.zeros((480, 854), np.uint8)
    for label, (row, column, radius) in enumerate(((150, 200, 90), (300, 500, 120), (200, 700, 60)), start=1):
        angle = np.arctan2(y - row, x - column - 3 * t)
        edge = radius * (1 + 0.2 * np.sin(5 * angle + t + label)) + 6 * seed
        labels[np.hypot(y - row, x - column - 3 * t) < edge] = label
    return labels


def compare(what: str, plain, ours, repeats: int) -> None:
    """Paired repeats: the two ways in turn, the ratio of each pair."""
    plain(), ours()
    seconds = []
    for _ in range(repeats):
        pair = []
        for way in (plain, ours):
            start = time.process_time()
            way()
            pair.append(time.process_time() - start)
        seconds.append(pair)
    slow, fast = (median_and_interval(column)[0] for column in zip(*seconds, strict=True))
    ratio, low, high = median_and_interval([a / b for a, b in seconds])
    print(f"{what}: plain {slow:.3f} s, here {fast:.3f} s: {ratio:.1f} times faster ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
