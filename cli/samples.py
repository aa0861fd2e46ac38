"""siammae samples --out FILE"""

from pathlib import Path
from typing import Any

from common.errors import InputError


def main(
    out: Path,
    data: Path | None = None,
    count: int = 8,
    size: int = 224,
    seed: int = 0,
    rotation: float = 0.0,
    rotation_each: bool = False,
) -> None:
    """Write frame pairs for figures: from the synthetic generator, or from the videos of a folder.

    Args:
        out: the file to write; it is read without running anything
        data: folder of videos; default: synthetic shapes on panning photographs
        count: pairs
        size: side of the frames in pixels
        seed: another one gives other pairs
        rotation: of videos: crop, flip and turn by up to so many degrees, as a training with --rotation does
        rotation_each: each frame by an angle of its own
    """
    import numpy as np

    from dataset_loader import get_kinetics_dataset
    from dataset_loader.synthetic import synthetic_video
    from ml.samples import save_samples

    if count < 1:
        raise InputError(f"count is {count}; expected at least 1")
    if data is not None:
        turned: dict[str, Any] = dict(augment=rotation > 0, rotation=rotation, rotation_each=rotation_each)
        dataset = get_kinetics_dataset(data, image_size=size, seed=seed, **turned)
        spread = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
        chosen = [dataset[epoch, index] for epoch, index in enumerate(spread)]  # another pair where a video comes again
        video = np.stack([sample["video"].numpy() for sample in chosen])
        times = np.stack([sample["time"].numpy() for sample in chosen])
        names = [Path(sample["path"]).stem for sample in chosen]
    else:
        gaps = np.linspace(4, 48, count).round() / 30  # from the smallest to the largest gap of the paper
        times = np.stack([np.full(count, 0.2), 0.2 + gaps], axis=1)
        scenes = [synthetic_video(seed + k, height=size, width=size, times=times[k]) for k in range(count)]
        video = np.stack([scene.frames for scene in scenes])
        names = [f"scene {seed + k}" for k in range(count)]
    save_samples(out, video, times, names)
    print(f"{len(video)} pairs in {out}, {out.stat().st_size / 1e6:.1f} MB")
