"""The synthetic world, whose true motion is known, as data for benchmarks: no command, but shared by several.

Legend: T frames, N points, H W pixels.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.files import write_text
from dataset_loader.synthetic import SyntheticVideo, synthetic_video
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.tap_vid import TapVid


def carried(seed: int, scene: SyntheticVideo) -> list[np.ndarray]:
    """The first mask [H, W] carried to each frame by the true motion: a pixel takes the label of what comes nearest.

    Where none comes within a pixel and a half, background has come into sight.
    """
    from scipy.spatial import cKDTree

    H, W = scene.masks.shape[1:]
    pixels = np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1)  # [H, W, 2] x, y
    masks = [scene.masks[0]]
    for time in scene.times[1:]:
        pair = synthetic_video(seed, height=H, width=W, times=[scene.times[0], time])
        seen = ~pair.occluded[0]
        away, nearest = cKDTree((pixels + pair.motion[0])[seen]).query(pixels.reshape(-1, 2))
        masks.append(np.where(away < 1.5, scene.masks[0][seen][nearest], 0).reshape(H, W).astype(np.uint8))
    return masks


def grid_tracks(scene: SyntheticVideo, step: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Points of a grid in frame 0 and where true motion takes them, [N, T, 2] in 0 … 1; occluded [N, T].

    The motion of the nearest pixel is taken; a point that is covered or leaves the picture does not come back.
    """
    T, _, H, W = scene.frames.shape
    starts = [(x, y) for y in range(step // 2, H, step) for x in range(step // 2, W, step)]
    points, occluded = np.zeros((len(starts), T, 2), np.float32), np.zeros((len(starts), T), bool)
    for n, start in enumerate(starts):
        here, lost = np.array(start, float), False
        for t in range(T):
            x, y = np.round(here).astype(int)
            lost = lost or not (0 <= x < W and 0 <= y < H)
            points[n, t], occluded[n, t] = ((here + 0.5) / (W, H)).clip(0, 1), lost
            if t + 1 < T and not lost:
                lost = bool(scene.occluded[t, y, x])
                here = here + scene.motion[t, y, x]
    return points, occluded


def write_davis(scenes: Sequence[SyntheticVideo], root: Path, suffix: str = "png") -> Path:
    """The scenes in DAVIS's layout, of both years; suffix: of the frames."""
    for number, scene in enumerate(scenes):
        frames = scene.frames.transpose(0, 2, 3, 1)
        for kind, pictures, end in (("JPEGImages", frames, suffix), ("Annotations", scene.masks, "png")):
            folder = root / kind / "480p" / f"scene{number}"
            folder.mkdir(parents=True)
            for t, picture in enumerate(pictures):
                Image.fromarray(picture).save(folder / f"{t:05d}.{end}", quality=95)
    for year in ("2016", "2017"):
        write_text(root / "ImageSets" / year / "val.txt", "".join(f"scene{n}\n" for n in range(len(scenes))))
    return root


def write_scenes(scenes: Sequence[SyntheticVideo], root: Path) -> tuple[Davis, TapVid]:
    """The scenes in the layouts of DAVIS and of TAP-Vid."""
    points: dict[str, Any] = {}
    for number, scene in enumerate(scenes):
        places, occluded = grid_tracks(scene)
        video = np.ascontiguousarray(scene.frames.transpose(0, 2, 3, 1))
        points[f"scene{number}"] = {"video": video, "points": places, "occluded": occluded}
    davis = write_davis(scenes, root / "DAVIS")
    (root / "points.pkl").write_bytes(pickle.dumps(points))
    return Davis(davis), TapVid(root / "points.pkl")
