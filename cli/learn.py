"""siammae learn --data VIDEOS: does a small model learn from real video what copying does not give?"""

import json
import math
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_atomically
from ml.presets import preset as preset_named


def main(
    data: Path,
    out: Path = Path("runs/learn"),
    steps: int = 20_000,
    held_out: float = 0.12,
    family: tuple[str, ...] = (),
    preset: str = "micro",
    resume: str | None = None,
) -> None:
    """Train a small preset, seeded, and report its error on held-out videos beside that of copying.

    Of a model of pairs also whether it finds what moved. What is copied is f1 or, in clips, the nearest visible tubelet
    in time.

    Args:
        data: folder of videos
        out: folder for losses, checkpoints, the table and the pictures
        steps: updates, rounded up to whole epochs; about 12 a second on 2 cores
        held_out: share of the clips that is held out, the same ones each time
        family: families of clips to hold out whole: what stands before the first _ of their names
        preset: the preset to train
        resume: a run to resume
    """
    import torch

    from cli.motion import frames
    from cli.plot import write
    from cli.wiring import fixed_dataset, fixed_loader, training_loader
    from dataset_loader import find_videos, hold_out
    from ml.checkpoints import load_model, numbered
    from ml.motion import SHIFTS, motion_report, motion_table, shifted_pairs, untrained_twin
    from ml.reconstruction import compare_with_copying, first_samples, reconstruct_all
    from ml.SiamMAE import build_model
    from ml.utils import leave_cores, train

    config = preset_named(preset).config
    train_files, test_files = hold_out(find_videos(data), held_out, family)
    needed = 1 if config.of_clips else 2  # a wrong f1 comes from another video
    if len(test_files) < needed:
        raise InputError(
            f"of {len(train_files) + len(test_files)} videos {len(test_files)} is held out; the comparison takes "
            f"{needed}: raise held_out, or give more videos"
        )
    loader, accumulation = training_loader(config, train_files)
    per_epoch = len(loader) // accumulation
    epochs = math.ceil(steps / per_epoch)
    batches = list(fixed_loader(config, fixed_dataset(config, test_files, visits=16)))  # decoded once, for all models
    print(f"{len(train_files)} videos to learn from, {len(test_files)} held out; {epochs} epochs of {per_epoch} steps")
    leave_cores(config.run.workers)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model.model, **config.model_arguments)
    results = {"untrained": compare_with_copying(model, batches)}
    settings = {**config.train_arguments, "epochs": epochs, "num_epochs_per_save": math.ceil(epochs / 4)}
    settings["warmup_epochs"] = epochs / 20
    run = train(model, loader, prefix="learn_", root=out, resume=resume, accumulation=accumulation, **settings)
    for path in numbered(out / "checkpoints" / run):
        model, checkpoint = load_model(path)
        results[f"{checkpoint['step']:,} steps"] = compare_with_copying(model, batches)
    table = _table(results)
    motion: dict[str, Any] = {}
    if model.of_pairs:
        images = frames(test_files, config.data.image_size + 2 * max(SHIFTS), 128)
        tests = [shifted_pairs(images, shift, seed=shift) for shift in SHIFTS]
        motion = motion_report(model, tests, untrained=untrained_twin(model))
        table += f"\n{motion_table(motion)}"
    print(table)
    samples = first_samples(batches, 10**9)
    rows, names = reconstruct_all(model, samples[:: max(1, len(samples) // 8)][:8])
    pictures = [out / f"{run}{suffix}" for suffix in (".png", ".gif")[: 2 if len(rows[0].frames) > 1 else 1]]
    for picture in pictures:
        write(rows, names, f"{run}: held out", picture)
    report = {"run": run, "test": [Path(path).name for path in test_files], "motion": motion, **results}
    write_atomically(out / f"{run}.json", lambda file: file.write(json.dumps(report, indent=1).encode()))
    write_atomically(out / f"{run}.md", lambda file: file.write(table.encode()))
    print(f"table: {out / run}.md, numbers: {out / run}.json, pictures: {', '.join(map(str, pictures))}")


def _table(results: dict[str, Any]) -> str:
    """Errors on hidden patches, normalised pixels; the last column of each part is the model's share of the copy's."""
    first = results["untrained"]["all"]
    columns = [x for x in ("model", "copy", "copy × factor", "mean", "wrong f1") if x in first]  # clips have no f1
    lines = [
        "| checkpoint | which | " + " | ".join(columns) + " | model / copy |",
        "|---|---|" + "---|" * (len(columns) + 1),
    ]
    for name, parts in results.items():
        for part, row in parts.items():
            if row:
                cells = " | ".join(f"{row[x]:.3f}" for x in columns)
                lines.append(f"| {name} | {part} | {cells} | **{row['model'] / row['copy']:.3f}** |")
    return "\n".join(lines) + "\n"
