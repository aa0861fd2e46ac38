"""siammae motion CHECKPOINT --data HELD_OUT_VIDEOS: does the model find what moved?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from ml.motion import MotionPairs


def main(
    checkpoint: Annotated[str, tyro.conf.Positional],
    data: Path,
    out: Path = Path("runs/motion"),
    pairs: int = 128,
    root: Path = Path(),
    device: str | None = None,
) -> None:
    """Errors on pairs whose true correspondence is known, beside mean, copy, scaled copy, the oracle and the untrained
    model, and where the decoder's cross-attention points; and held-out pairs of video beside copying.

    The pairs: windows of a frame shifted by 4, 8, 12 and 16 pixels, crops with known boxes, and the synthetic world.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file
        data: held-out videos, in any form
        out: folder for <run>.json, <run>.md and <run>.png
        pairs: how many of each kind; with fewer than 100 the numbers waver by a few percent
        root: folder that holds checkpoints/
        device: cuda, mps, cpu; default: the best there is
    """
    from common.errors import InputError
    from common.files import write_atomically
    from dataset_loader import get_kinetics_dataset, make_loader
    from ml.checkpoints import find_checkpoint, load_model
    from ml.devices import best_device
    from ml.motion import MASK_RATIOS, SHIFTS, motion_report, motion_table, shifted_pairs, untrained_twin
    from ml.motion_figure import motion_figure
    from ml.plots import save_figure
    from ml.reconstruction import compare_with_copying, masking

    if pairs < 1:
        raise InputError(f"pairs is {pairs}; it must be at least 1")
    path = find_checkpoint(checkpoint, root)
    model, saved = load_model(path, best_device(device))
    if not model.of_pairs:
        raise InputError(f"{path} is a model of clips; motion is measured on a model of pairs")
    size = model.grid[0] * model.patch_size
    images = frames(data, size + 2 * max(SHIFTS), pairs)
    shifts = [shifted_pairs(images, shift, seed=shift) for shift in SHIFTS]
    tests = [*shifts, *_crops(data, size, model.patch_size, pairs), _world(size, pairs)]
    report = motion_report(model, tests, untrained=untrained_twin(model))
    held_out = get_kinetics_dataset(data, image_size=size, augment=False, visits=4)
    batches = list(make_loader(held_out, 32, shuffle=False, drop_last=False))
    video: dict[str, Any] = {}
    if len(held_out.paths) > 1:  # a wrong f1 comes from another video
        for ratio in MASK_RATIOS:
            with masking(model, ratio):
                video[f"{ratio:g}"] = compare_with_copying(model, batches)
    table = motion_table(report) + _video_table(video)
    print(table)
    name = f"{saved.get('run') or path.parent.name}_{path.stem}"
    whole = {"checkpoint": name, "step": saved.get("step"), "pairs": pairs, "motion": report, "video": video}
    write_atomically(out / f"{name}.json", lambda file: file.write(json.dumps(whole, indent=1).encode()))
    write_atomically(out / f"{name}.md", lambda file: file.write(table.encode()))
    figure = motion_figure(model, shifts[1], heading=f"{name}: f1's window {SHIFTS[1]} pixels beside f2's, 75 % hidden")
    print(f"numbers: {out / name}.json, table: {out / name}.md, picture: {save_figure(figure, out / f'{name}.png')}")


def frames(data: Path | Sequence[str | Path], size: int, count: int) -> "Tensor":
    """The central squares of frames drawn from the videos in turn: uint8 [count, 3, size, size]."""
    import torch

    from dataset_loader import get_kinetics_dataset, make_loader

    dataset = get_kinetics_dataset(data, image_size=size, augment=False)
    dataset.visits = -(-count // len(dataset.paths))
    batches = make_loader(dataset, 1, shuffle=False, drop_last=False)
    return torch.cat([batch["video"][:, 0] for batch, _ in zip(batches, range(count), strict=False)])


def _crops(data: Path, size: int, patch_size: int, count: int) -> list["MotionPairs"]:
    """Crops of one frame with known boxes: global → local, and windows shifted freely."""
    import torch

    from dataset_loader import get_kinetics_dataset, make_loader
    from ml.motion import cropped_pairs

    found = []
    for pairing in ("crops", "shifted"):
        dataset = get_kinetics_dataset(data, image_size=size, pairing=pairing, patch_size=patch_size)
        dataset.visits = -(-count // len(dataset.paths))
        batches = list(make_loader(dataset, len(dataset), shuffle=False))
        video, box = (torch.cat([batch[key] for batch in batches])[:count] for key in ("video", "box"))
        found.append(cropped_pairs(f"{pairing}, known boxes", video, box))
    return found


def _world(size: int, count: int) -> "MotionPairs":
    """The synthetic world a sixth of a second later, with the true motion of every pixel back to f1."""
    import numpy as np
    import torch

    from dataset_loader.synthetic import synthetic_video
    from ml.motion import MotionPairs, places

    worlds = [synthetic_video(seed, height=size, width=size, times=[0.5 + 1 / 6, 0.5]) for seed in range(count)]
    video = torch.from_numpy(np.stack([world.frames[[1, 0]] for world in worlds]))
    back = torch.from_numpy(np.stack([world.motion[0] for world in worlds])).flip(-1)
    seen = torch.from_numpy(np.stack([~world.occluded[0] for world in worlds]))
    return MotionPairs("synthetic world", video, places(size) + back, seen)


def _video_table(video: dict[str, Any]) -> str:
    columns = ("model", "copy", "copy × factor", "mean", "wrong f1")
    lines = ["", "| held-out video | hidden | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for ratio, parts in video.items():
        for part, row in parts.items():
            if row:
                cells = " | ".join(f"{row[column]:.3f}" for column in columns)
                lines.append(f"| {part} | {float(ratio):.0%} | {cells} |")
    return "\n".join(lines) + "\n" if video else ""
