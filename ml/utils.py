"""The names that notebooks call: train a model, look at it, and look at what a checkpoint has learnt."""

from collections.abc import Iterable
from typing import Any

import torch

from ml.config import RunConfig
from ml.devices import Device, best_device, leave_cores
from ml.loading import Batch
from ml.plots import plot_results_from_checkpoint, plot_sample, samples_figure
from ml.SiamMAE import Model, build_model
from ml.step import training_step
from ml.training import train
from ml.validation import evaluate

__all__ = [
    "best_device",
    "config_of",
    "evaluate",
    "leave_cores",
    "plot_results_from_checkpoint",
    "plot_sample",
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
    each. The mask of a pair follows from its `seed` in the batch or, without one, from torch's generator."""
    device = best_device(device)
    model.train()
    results = []
    for batch in data_loader:
        results.append(training_step(model, [batch], optimizer, device=device))
        scheduler.step()
    return [result.loss for result in results]


def config_of(checkpoint: dict[str, Any]) -> RunConfig:
    """The configuration of a checkpoint's run; of one that was trained without, what follows from its model."""
    if checkpoint.get("run_config"):
        return RunConfig().replace(**checkpoint["run_config"])
    with torch.device("meta"):  # shapes without memory
        frames, _, height, width = build_model(checkpoint["config"]).sample_shape
    return RunConfig().replace(clip_frames=0 if frames == 2 else frames, image_size=min(height, width))
