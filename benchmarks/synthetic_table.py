"""`python -m benchmarks.synthetic_table`: sources of features on the synthetic world, whose true motion is known.

J and F of its objects (label propagation) and δ_avg of points on a grid (matching), beside trivial answers (`copy`,
`random`) and a ceiling: the first mask carried to every frame by the true motion.

Legend: T frames, N points, H W pixels.
"""

import argparse
import json
import math
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cli.feature_sources import open_source
from dataset_loader.synthetic import SyntheticVideo, synthetic_video
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.tap_vid import TapVid
from evaluation.run import evaluate

SOURCES = ("copy", "random", "pixels", "untrained:siammae_micro_64", "siammae_micro_64", "decoder:siammae_micro_64")


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


def write(scenes: list[SyntheticVideo], root: Path) -> tuple[Davis, TapVid]:
    """The scenes in the layouts of DAVIS and of TAP-Vid."""
    points: dict[str, Any] = {}
    for number, scene in enumerate(scenes):
        name = f"scene{number}"
        frames = scene.frames.transpose(0, 2, 3, 1)
        for kind, pictures in (("JPEGImages", frames), ("Annotations", scene.masks)):
            folder = root / "DAVIS" / kind / "480p" / name
            folder.mkdir(parents=True)
            for t, picture in enumerate(pictures):
                Image.fromarray(picture).save(folder / f"{t:05d}.png")
        places, occluded = grid_tracks(scene)
        points[name] = {"video": np.ascontiguousarray(frames), "points": places, "occluded": occluded}
    lists = root / "DAVIS" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in points))
    (root / "points.pkl").write_bytes(pickle.dumps(points))
    return Davis(root / "DAVIS"), TapVid(root / "points.pkl")


def measure(sources: list[str], seeds: list[int], side: int, frames: int, root: Path) -> dict[str, Any]:
    """J&F and δ_avg of each source, in points, and the ceiling of true motion."""
    scenes = [synthetic_video(seed, height=side, width=side * 4 // 3, seconds=frames / 8, fps=8) for seed in seeds]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        davis, points = write(scenes, Path(name))
        rules, matching = davis.protocol("dino", size=f"short{side // 16 * 16}"), points.protocol(size="256x256")
        scores = {
            video.name: davis.score(video, carried(seed, scene))
            for video, seed, scene in zip(davis.videos(), seeds, scenes, strict=True)
        }
        for source in sources:
            by = open_source(source, root, "cpu", False)
            attention = (
                getattr(by, "affinity", None) is not None
            )  # weighs by itself at temperature 1; matches no points
            own = rules.with_(temperature=1.0) if attention else rules
            found = evaluate(davis, by, own, report=lambda line: None).row
            rows[source] = {"J&F": 100 * found["J&F-Mean"], "d_avg": float("nan")}
            if not attention:
                rows[source]["d_avg"] = 100 * evaluate(points, by, matching, report=lambda line: None).row["d_avg"]
        rows["true motion"] = {"J&F": 100 * davis.row(scores)["J&F-Mean"], "d_avg": 100.0}
    return {"rows": rows, "seeds": seeds, "protocols": [str(rules), points.heading(matching)]}


def table(result: dict[str, Any]) -> str:
    lines = [*result["protocols"], "", "| source | J&F | d_avg |", "|---|---|---|"]
    for name, row in result["rows"].items():
        points = "–" if math.isnan(row["d_avg"]) else f"{row['d_avg']:.1f}"
        lines.append(f"| {name} | {row['J&F']:.1f} | {points} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), help="as for `siammae eval`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13, 14], help="the scenes")
    parser.add_argument("--side", type=int, default=96, help="the short side of the frames, in pixels")
    parser.add_argument("--frames", type=int, default=12, help="of each scene, 8 a second")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that holds checkpoints/")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    result = measure(options.sources, options.seeds, options.side, options.frames, options.root)
    print(table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
