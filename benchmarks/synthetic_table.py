"""`python -m benchmarks.synthetic_table`: sources of features on the synthetic world, whose true motion is known.

J and F of its objects (label propagation) and δ_avg of points on a grid (matching), beside trivial answers (`copy`,
`random`) and a ceiling: the first mask carried to every frame by the true motion.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from cli.feature_sources import open_source
from cli.synthetic_scenes import carried, write_scenes
from dataset_loader.synthetic import synthetic_video
from evaluation.run import evaluate

SOURCES = ("copy", "random", "pixels", "untrained:siammae_micro_64", "siammae_micro_64", "decoder:siammae_micro_64")


def measure(sources: list[str], seeds: list[int], side: int, frames: int, root: Path) -> dict[str, Any]:
    """J&F and δ_avg of each source, in points, and the ceiling of true motion."""
    scenes = [synthetic_video(seed, height=side, width=side * 4 // 3, seconds=frames / 8, fps=8) for seed in seeds]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        davis, points = write_scenes(scenes, Path(name))
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
