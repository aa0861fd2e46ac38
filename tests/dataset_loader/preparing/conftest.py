"""Pictures to write into videos, and a server to download from."""

import numpy as np
import pytest

from tests.dataset_loader.preparing.small_kinetics import kinetics_site
from tests.server import running


@pytest.fixture(scope="session")
def pictures():
    """30 frames of noise that moves: uint8 [30, 48, 64, 3]."""
    texture = np.random.default_rng(1).integers(0, 255, (48, 94, 3), dtype=np.uint8)
    return np.stack([texture[:, 30 - shift : 94 - shift] for shift in range(30)])


@pytest.fixture
def site():
    with running(kinetics_site()) as site:
        yield site
