"""Clips to decode: the built-in real ones, and small videos of moving noise at 6 to 60 fps."""

from pathlib import Path

import numpy as np
import pytest

from dataset_loader import builtin_clips, decode_all
from dataset_loader.preparing.encoding import write_video


@pytest.fixture(scope="session")
def builtin() -> dict[str, Path]:
    return {path.stem: path for path in builtin_clips()}


@pytest.fixture(scope="session")
def carphone(builtin) -> np.ndarray:
    """The frames of a real clip: uint8 [120, 144, 176, 3]."""
    return decode_all(builtin["carphone_pristine"])[0]


@pytest.fixture(scope="session")
def shared_clips() -> list[Path]:
    """Real videos outside the repository, the first of each family."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "clips"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    families = {path.stem.split("_")[0]: path for path in sorted(folder.iterdir(), reverse=True)}
    return [*families.values(), *sorted(folder.glob("sam2_*"))]


@pytest.fixture(scope="session")
def moving_frames() -> np.ndarray:
    """90 frames of noise that moves to the right: uint8 [90, 48, 64, 3], no two frames alike."""
    texture = np.random.default_rng(0).integers(0, 255, (48, 64 + 90, 3), dtype=np.uint8)
    return np.stack([texture[:, 90 - shift : 154 - shift] for shift in range(90)])


@pytest.fixture(scope="session")
def videos(tmp_path_factory, moving_frames) -> Path:
    """A folder of six small videos at 6 to 60 fps."""
    folder = tmp_path_factory.mktemp("videos")
    for name, fps in {"a_6": 6, "a_24": 24, "b_25": 25, "b_30": 30, "c_50": 50, "c_60": 60}.items():
        write_video(folder / f"{name}.mp4", moving_frames, fps)
    return folder
