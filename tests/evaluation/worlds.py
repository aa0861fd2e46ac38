"""A synthetic video in small, as the tests of several benchmarks write it into their layouts."""

import numpy as np
import pytest
from PIL import Image

from dataset_loader.synthetic import synthetic_video
from evaluation.features import Source, pixel_features
from evaluation.metrics import region_and_contour
from evaluation.protocols import protocol

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


def late_world():
    """Object 3 is shown from frame 3 on: until then it counts as background."""
    scene = world(seed=5)
    masks = scene.masks.copy()
    masks[:3][masks[:3] == 3] = 0
    return scene, masks


def by_loops(masks, results, starts):
    """J and F of each object over the frames after its first."""
    scores = {}
    for label, start in starts.items():
        pairs = [region_and_contour(masks[t] == label, results[t] == label, 1) for t in range(start + 1, len(masks))]
        scores[label] = np.mean(pairs, axis=0)[:, 0]
    return scores
