"""What the notebooks call: train a model on pairs or clips, look at it, and look at what a checkpoint has learnt.

Legend: S samples, B of them in a batch, F frames of a clip, N patches, H W pixels.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mae.masking import MaskKind
from mae.models_mae_st import SpatiotemporalMAE
from ml.checkpoints import find_checkpoint, load_model
from ml.devices import Device, best_device, leave_cores
from ml.loading import Batch, Loader
from ml.logs import EpochLoss, append_line, read_losses
from ml.presets import RunConfig
from ml.reconstruction import (
    ClipReconstruction,
    ClipStatistics,
    Statistics,
    masking,
    reconstruct,
    reconstruct_sample,
)
from ml.SiamMAE import Model, SiamMAE
from ml.step import training_step
from ml.training import train
from ml.validation import evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "best_device",
    "config_of",
    "evaluate",
    "leave_cores",
    "plot_results_from_checkpoint",
    "plot_sample",
    "reconstruct_clips",
    "samples_figure",
    "train",
    "train_one_epoch",
]


def train_one_epoch(
    data_loader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: Device,
    model: Model,
) -> list[float]:
    """Go once through the loader, one `training_step` a batch; the losses of all steps. The scheduler is stepped after
    each. The mask of a pair follows from its `seed` in the batch, or where there is none, from torch's generator."""
    device = best_device(device)
    model.train()
    results = []
    for batch in data_loader:
        results.append(training_step(model, [batch], optimizer, device=device))
        scheduler.step()
    return [result.loss for result in results]


def plot_sample(
    sample: dict[str, Any] | Tensor, model: Model, device: Device = None, *, statistics: Statistics = "past"
) -> "Figure":
    """Draw f1, f2, the visible part of f2, the prediction with visible patches pasted in, and the raw prediction; of a
    clip for a model of clips, see `ml.figures.plot_clip`.

    sample: a dict with `video` ([2, 3, H, W], or more pairs, of which the first is drawn) and perhaps `time` and
    `seed`, or the video alone. The mask follows from `seed` (0 if there is none). The caption says how normalised
    predictions became colours: with the statistics of f1 (`past`), or of the hidden patches themselves (`target`).
    """
    from ml.figures import plot_clip, reconstruction_figure

    if isinstance(model, SpatiotemporalMAE):
        return plot_clip(sample, model.to(best_device(device)))
    sample = sample if isinstance(sample, dict) else {"video": sample}
    video, times, seed = (torch.as_tensor(sample[key]) if key in sample else None for key in ("video", "time", "seed"))
    assert video is not None
    video = video.reshape(-1, *video.shape[-4:])[0]
    times = None if times is None else times.reshape(-1, 2)[0]
    number = 0 if seed is None else int(seed.flatten()[0])
    model.to(best_device(device))
    row = reconstruct(model, video, time=times, seed=number, statistics=statistics)
    return reconstruction_figure([row], heading=f"{model.mask_ratio:.0%} of f2 hidden")


def plot_results_from_checkpoint(
    checkpoint_name: str | Path,
    data_loader: Loader,
    device: Device = None,
    samples_path: str | Path = "samples.pickle",
    *,
    root: str | Path = ".",
    statistics: Statistics = "past",
) -> "list[Figure]":
    """Evaluate a checkpoint on a loader and on the samples of a file, and return its figures.

    The configuration comes with the weights. The mean loss over the loader goes to `test_losses/<run>.txt` and the
    figures, one of the samples and one of the training losses if there is a log, to `test_losses/<run>_<epoch>*.png`.
    A model of clips is drawn on the loader's first clips: the file of samples holds pairs, and is not read.
    """
    from ml.figures import clip_figure, loss_figure, save_figure
    from ml.samples import load_samples

    root, device = Path(root), best_device(device)
    path = find_checkpoint(checkpoint_name, root)
    model, checkpoint = load_model(path, device)

    if not isinstance(model, SpatiotemporalMAE):
        load_samples(samples_path)  # before the long part: it may not be there
    run, epoch = checkpoint.get("run") or path.parent.name, checkpoint["epoch"]
    result = evaluate(model, data_loader, device)
    append_line(root / "test_losses" / f"{run}.txt", EpochLoss(epoch, result.mean, result.losses))
    heading = f"{run}, epoch {epoch}: {{}}test loss {result.mean:.3f}"
    if isinstance(model, SpatiotemporalMAE):
        how: ClipStatistics = "target" if statistics == "target" else "visible"
        rows, names = reconstruct_clips(model, _first_samples(data_loader, 3), statistics=how)
        figures = [clip_figure(rows, titles=names, heading=heading.format(""))]
    else:
        heading = heading.format(f"{model.mask_ratio:.0%} of f2 hidden, ")
        figures = [samples_figure(model, samples_path, heading=heading, statistics=statistics)]
    save_figure(figures[0], root / "test_losses" / f"{run}_{epoch}.png")
    log = root / "losses" / f"{run}.txt"
    if log.exists():
        figures.append(loss_figure({run: read_losses(log)}))
        save_figure(figures[1], root / "test_losses" / f"{run}_{epoch}_losses.png")
    return figures


def samples_figure(
    model: SiamMAE,
    samples_path: str | Path,
    *,
    heading: str = "",
    statistics: Statistics = "past",
    mask_ratios: Sequence[float] = (),
) -> "Figure":
    """What a model makes of the pairs of a file (`siammae samples`), one row each, with masks that stay the same.

    mask_ratios: a row for each of them, in place of the model's own.
    """
    from ml.figures import reconstruction_figure
    from ml.samples import load_samples

    samples = load_samples(samples_path)
    video = _resized(torch.from_numpy(samples["video"]), model)
    rows, names = [], []
    for k, (pair, times) in enumerate(zip(video, samples["time"], strict=True)):
        for ratio in mask_ratios or (model.mask_ratio,):
            with masking(model, ratio):
                rows.append(reconstruct(model, pair, time=times, seed=k, statistics=statistics))
            names.append(samples["name"][k] + (f"\n{ratio:.0%} hidden" if mask_ratios else ""))
    return reconstruction_figure(rows, titles=names, heading=heading)


def reconstruct_clips(
    model: SpatiotemporalMAE,
    samples: Iterable[dict[str, Any]],
    *,
    mask_ratios: Sequence[float] = (),
    mask_kind: MaskKind | None = None,
    statistics: ClipStatistics = "visible",
) -> tuple[list[ClipReconstruction], list[str]]:
    """What a model makes of clips, for `clip_figure` and `animation`, and what to call each.

    samples: what a data set of clips gives, with `path`. mask_ratios: each clip once for each of them; they and
    mask_kind are the model's own unless given.
    """
    asked = [(sample, ratio) for sample in samples for ratio in mask_ratios or (None,)]
    rows = [
        reconstruct_sample(sample, model, statistics=statistics, mask_ratio=ratio, mask_kind=mask_kind)
        for sample, ratio in asked
    ]
    return rows, [Path(sample["path"]).stem for sample, _ in asked]


def config_of(checkpoint: dict[str, Any]) -> RunConfig:
    """The configuration of a checkpoint's run; of one that was trained without, what follows from its model."""
    if checkpoint.get("run_config"):
        return RunConfig(**checkpoint["run_config"])
    config = checkpoint["config"]
    size = config["img_size"] if config["model"] == "MAE-ST" else config["mae"]["img_size"]
    side = size if isinstance(size, int) else min(size)
    if config["model"] == "MAE-ST":
        return RunConfig(model="mae_st", clip_frames=config["num_frames"], image_size=side)
    return RunConfig(image_size=side)


def _first_samples(loader: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first samples of a loader, one by one: their `video` [F, 3, H, W], and what is known of them."""
    samples: list[dict[str, Any]] = []
    for batch in islice(loader, count):
        for b in range(len(batch["video"])):
            known: dict[str, Any] = {key: batch[key][b] for key in ("video", "time", "seed") if key in batch}
            samples.append({**known, "path": batch["path"][b] if "path" in batch else f"clip {len(samples) + 1}"})
        if len(samples) >= count:
            break
    return samples[:count]


def _resized(video: Tensor, model: SiamMAE) -> Tensor:
    """Pairs [S, 2, 3, H, W] at the size that the model was trained with."""
    size = tuple(side * model.patch_size for side in model.grid)
    if tuple(video.shape[-2:]) == size:
        return video
    small = torch.nn.functional.interpolate(video.flatten(0, 1).float(), size, mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).unflatten(0, video.shape[:2])
