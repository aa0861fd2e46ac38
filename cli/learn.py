"""siammae learn --data VIDEOS: does a small model learn from real video what copying does not give?"""

import json
import math
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import write_atomically
from dataset_loader import find_videos, get_kinetics_dataset, hold_out, make_loader
from ml.checkpoints import load_model
from ml.figures import animation, clip_figure, reconstruction_figure, save_figure, save_gif
from ml.presets import preset
from ml.reconstruction import compare_clip_with_copying, compare_with_copying, reconstruct, reconstruct_sample
from ml.SiamMAE import build_model
from ml.utils import leave_cores, train

ROWS = ("model", "copy", "copy × factor", "mean", "wrong f1")


def main(
    data: Path,
    out: Path = Path("runs/learn"),
    steps: int = 20_000,
    held_out: float = 0.12,
    family: tuple[str, ...] = (),
    preset_name: str = "micro",
    resume: str | None = None,
) -> None:
    """Train a small preset, seeded, and report its error on held-out videos beside that of copying.

    What is copied is f1 or, in clips, the nearest visible tubelet in time.

    Args:
        data: folder of videos
        out: folder for losses, checkpoints, the table and the pictures
        steps: updates, rounded up to whole epochs; about 12 a second on 2 cores
        held_out: share of the clips that is held out, the same ones each time
        family: families of clips to hold out whole: what stands before the first _ of their names
        preset_name: the preset to train
        resume: a run to go on with
    """
    config = preset(preset_name).config
    train_files, test_files = hold_out(find_videos(data), held_out, family)
    if len(test_files) < 2 and not config.of_clips:
        raise InputError(
            f"of {len(train_files) + len(test_files)} videos {len(test_files)} is held out; for the comparison with a "
            "wrong f1 it takes 2: raise held_out, or give more videos"
        )
    arguments = {**config.dataset_arguments, "seed": config.seed}
    loader = make_loader(get_kinetics_dataset(train_files, **arguments), config.batch_size, workers=config.workers)
    epochs = math.ceil(steps / len(loader))
    fixed = {**arguments, "repeated_sampling": 1, "visits": 16}
    test = make_loader(
        get_kinetics_dataset(test_files, augment=False, **fixed), 2 * config.batch_size, shuffle=False, drop_last=False
    )
    print(
        f"{len(train_files)} videos to learn from, {len(test_files)} held out; {epochs} epochs of {len(loader)} steps"
    )
    batches = list(test)  # decoded once: the same pairs for every checkpoint
    leave_cores(config.workers)
    torch.manual_seed(config.seed)
    model = build_model(config.model, **config.model_arguments)
    compare: Any = compare_clip_with_copying if config.of_clips else compare_with_copying
    results: dict[str, Any] = {"untrained": compare(model, batches)}
    settings = {**config.train_arguments, "epochs": epochs, "num_epochs_per_save": math.ceil(epochs / 4)}
    settings["warmup_epochs"] = epochs / 20
    run = train(model, loader, prefix="learn_", root=out, resume=resume, **settings)
    for path in sorted((out / "checkpoints" / run).glob("[0-9]*.pt"), key=lambda p: int(p.stem)):
        model, checkpoint = load_model(path)
        results[f"{checkpoint['step']:,} steps"] = compare(model, batches)
    table = _table(results)
    print(table)
    chosen = [(batch, b) for batch in batches for b in range(len(batch["video"]))]
    count = 4 if config.of_clips else 10
    chosen = chosen[:: max(1, len(chosen) // count)][:count]
    names = [Path(batch["path"][b]).stem for batch, b in chosen]
    samples = [{key: batch[key][b] for key in ("video", "time", "seed")} for batch, b in chosen]
    if config.of_clips:
        clips = [reconstruct_sample(sample, model) for sample in samples]
        figure = clip_figure(clips, titles=names, heading=f"{run}: held out")
        save_gif(animation(clips), out / f"{run}.gif")
    else:
        rows = [reconstruct(model, s["video"], time=s["time"], seed=int(s["seed"])) for s in samples]
        figure = reconstruction_figure(rows, titles=names, heading=f"{run}: held out")
    picture = save_figure(figure, out / f"{run}.png")
    report = {"run": run, "test": [Path(path).name for path in test_files], **results}
    write_atomically(out / f"{run}.json", lambda file: file.write(json.dumps(report, indent=1).encode()))
    write_atomically(out / f"{run}.md", lambda file: file.write(table.encode()))
    print(f"table: {out / run}.md, numbers: {out / run}.json, picture: {picture}")


def _table(results: dict[str, Any]) -> str:
    """Errors on hidden patches, normalised pixels; the last column of each part is the model's share of the copy's."""
    columns = [x for x in ROWS if x in results["untrained"]["all"]]  # a clip has no f1 that could be wrong
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
