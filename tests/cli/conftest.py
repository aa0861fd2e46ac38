"""What the tests of commands share: a small data set in the layout of CamVid."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def camvid(tmp_path):
    """Three frames of 64×96 with a square of class 1 that moves."""
    for t in range(3):
        labels = np.zeros((64, 96), np.uint8)
        labels[16:40, 8 + 8 * t : 40 + 8 * t] = 1
        frame = np.random.default_rng(t).integers(0, 40, (64, 96, 3)) + 180 * labels[..., None] * (1, 0, 0)
        for kind, picture in (("frames", frame.astype(np.uint8)), ("labels", labels)):
            (tmp_path / "camvid" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "camvid" / kind / f"{t}.png")
    return tmp_path / "camvid"
