"""Who hears of a run: its logs, figures, TensorBoard or Weights & Biases, and the bar on the screen.

Each is a listener. One that is not wanted is not among them, so the training loop never asks.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from common.errors import InputError
from ml.devices import peak_memory
from ml.loading import Batch
from ml.logs import EpochLoss, StepLog, append_line, read_losses
from ml.optimisation import Averaged
from ml.runs import Place
from ml.SiamMAE import Model
from ml.step import StepResult

TrackerKind = Literal["none", "tensorboard", "wandb"]


@dataclass
class StepRecord:
    """A step that is done: its place in the run, and what it came to."""

    step: int
    """in the whole run, from 1"""
    epoch: int
    position: int
    """in its epoch, from 1"""
    lr: float
    pairs: int
    """over all ranks"""
    waited: float
    """seconds for the loader"""
    batches: list[Batch]
    result: StepResult
    values: dict[str, Any] = field(default_factory=dict)
    """its numbers by name, once they have been read"""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are; else the step was skipped."""
        return math.isfinite(self.result.loss) and math.isfinite(self.result.grad_norm)

    @property
    def paths(self) -> list[str]:
        """Of the files that its samples come from, on this rank."""
        return [path for batch in self.batches for path in batch.get("path", [])]


@dataclass
class EpochRecord:
    """An epoch that has ended."""

    step: int
    epoch: int
    loss: EpochLoss
    validation: EpochLoss | None = None
    values: dict[str, float] = field(default_factory=dict)
    """validation loss and scores, by name"""
    checkpoint: Path | None = None
    """the file that it is kept in, if it is"""
    pictures: dict[str, Path] = field(default_factory=dict)
    """that were drawn of it, by name"""


class Listener:
    """Hears what happens in a run. What a listener does not override means nothing to it."""

    def on_step(self, record: StepRecord) -> None:
        """A step is done, and its numbers are known."""

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch has ended, and is about to be saved."""

    def on_saved(self, record: EpochRecord) -> None:
        """The epoch has been saved."""

    def flush(self) -> None:
        """A state is about to be saved: what was heard until now must be on the disk first."""

    def close(self) -> None:
        """The run ends here."""


class Reporter(Listener):
    """Tells the listeners, in their order; of a step on a GPU when the next has been started, so that none waits."""

    def __init__(self, listeners: Sequence[Listener], device: torch.device) -> None:
        self._listeners, self._device = listeners, device
        self._unread: deque[StepRecord] = deque()
        self._clock = self._started = time.monotonic()
        self._steps, self._pairs, self._waited = 0, 0, 0.0

    def begin_epoch(self) -> None:
        """The time of the next step begins now."""
        self._clock = time.monotonic()

    def on_step(self, record: StepRecord) -> None:
        self._unread.append(record)
        self._read(late=1 if self._device.type == "cuda" else 0)

    def _read(self, late: int = 0) -> None:
        """Tell of the steps whose numbers have arrived, and wait for those of all but the last `late`."""
        while len(self._unread) > late:
            record = self._unread.popleft()
            result, finite = record.result, record.finite  # waits for the device
            now = time.monotonic()
            seconds, self._clock = max(now - self._clock, 1e-9), now
            self._steps += 1
            self._pairs += record.pairs
            self._waited += record.waited
            record.values = dict(
                loss=result.loss, lr=record.lr, grad_norm=result.grad_norm,
                pairs_per_second=round(record.pairs / seconds, 2),
                waiting=round(min(1.0, record.waited / seconds), 4), memory_mib=peak_memory(self._device),
                **({} if finite else {"skipped": True}),
            )  # fmt: skip
            for listener in self._listeners:
                listener.on_step(record)

    def on_epoch(self, record: EpochRecord) -> None:
        for listener in self._listeners:
            listener.on_epoch(record)

    def on_saved(self, record: EpochRecord) -> None:
        for listener in self._listeners:
            listener.on_saved(record)

    def flush(self) -> None:
        self._read()
        for listener in self._listeners:
            listener.flush()

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()

    def __str__(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._started)
        return (
            f"{self._steps:,} steps here in {seconds / 60:.1f} min, {self._pairs / seconds:.1f} pairs/s, "
            f"{self._waited / seconds:.0%} waiting for data"
        )


class Logs(Listener):
    """`losses/<run>.txt` and `test_losses/<run>.txt`, a line an epoch, and `losses/<run>.jsonl`, a line a step."""

    def __init__(self, place: Place) -> None:
        self._place, self._steps = place, StepLog(place.steps)

    def on_step(self, record: StepRecord) -> None:
        self._steps.write(step=record.step, epoch=record.epoch, **record.values)

    def on_epoch(self, record: EpochRecord) -> None:
        append_line(self._place.losses, record.loss)
        if record.validation:
            append_line(self._place.test_losses, record.validation)
        self._steps.write(step=record.step, epoch=record.epoch, epoch_loss=record.loss.mean, **record.values)

    def flush(self) -> None:
        self._steps.flush()

    def close(self) -> None:
        self._steps.close()


class Bar(Listener):
    """The progress bar, in pairs."""

    def __init__(self, name: str, epochs: int, steps: int, done: int, pairs_per_step: int) -> None:
        self._epochs = epochs
        self._bar = tqdm(
            total=steps * pairs_per_step, initial=done * pairs_per_step, unit="pair", desc=name, mininterval=1,
            dynamic_ncols=True, smoothing=0.05,
        )  # fmt: skip

    def on_step(self, record: StepRecord) -> None:
        self._bar.update(record.pairs)
        self._bar.set_postfix(
            epoch=f"{record.epoch}/{self._epochs}", loss=f"{record.result.loss:.4f}",
            waiting=f"{record.values['waiting']:.0%}", refresh=False,
        )  # fmt: skip

    def on_epoch(self, record: EpochRecord) -> None:
        if record.values:
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in record.values.items())
            self._bar.write(f"epoch {record.epoch}: loss {record.loss.mean:.4f}, {numbers}")

    def close(self) -> None:
        self._bar.close()


class Figures(Listener):
    """Draws the first sample that was seen, and the losses, when an epoch is kept. It stands before those who show
    pictures. model: None where it is divided over ranks, and its sample not drawn."""

    def __init__(self, place: Place, model: Model | None, averaged: Averaged, device: torch.device) -> None:
        self._place, self._model, self._averaged, self._device = place, model, averaged, device
        self._sample: dict[str, Any] = {}

    def on_step(self, record: StepRecord) -> None:
        if not self._sample:
            first = record.batches[0]
            self._sample = {key: first[key][0] for key in ("video", "time", "seed") if key in first}

    def on_saved(self, record: EpochRecord) -> None:
        if not record.checkpoint:
            return
        from ml.plots import loss_figure, plot_sample, save_figure, show

        log = self._place.losses
        if self._model:
            with self._averaged.in_place():
                figure = plot_sample(self._sample, self._model, self._device)
            show(figure)
            record.pictures["reconstruction"] = save_figure(figure, record.checkpoint.with_suffix(".png"))
        curve = loss_figure({log.stem: read_losses(log)})
        record.pictures["losses"] = save_figure(curve, log.with_suffix(".png"))


class TensorBoard(Listener):
    """TensorBoard's files, in `losses/tensorboard/<run>/`: `tensorboard --logdir losses/tensorboard`."""

    def __init__(self, place: Place, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = place.root / "losses" / "tensorboard" / place.run
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)  # takes back what a resume repeats
        self._writer.add_text("configuration", f"```\n{json.dumps(place.identity, indent=1, default=str)}\n```", step)

    def on_step(self, record: StepRecord) -> None:
        self._scalars(record.step, record.values)

    def on_saved(self, record: EpochRecord) -> None:
        self._scalars(record.step, {"epoch": record.epoch, "epoch_loss": record.loss.mean, **record.values})
        for name, path in record.pictures.items():
            image = np.asarray(Image.open(path).convert("RGB"))
            self._writer.add_image(name, image, record.step, dataformats="HWC")
        self._writer.flush()

    def _scalars(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        self._writer.close()


class Wandb(Listener):
    """Weights & Biases: numbers, pictures, and checkpoints as artifacts. Offline, into `<root>/wandb/`, unless
    WANDB_MODE=online."""

    def __init__(self, place: Place) -> None:
        try:
            import wandb
        except ImportError:
            raise InputError(
                "Weights & Biases is not installed; pip install 'siammae[wandb]', or leave it out"
            ) from None
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        (place.root / "wandb").mkdir(parents=True, exist_ok=True)  # else it goes to the temporary folder
        self._wandb, self._name = wandb, place.run
        self._run = wandb.init(
            project="siammae", name=place.run, id=place.run, resume="allow", config=place.identity, dir=place.root,
            mode=mode,
        )  # fmt: skip

    def on_step(self, record: StepRecord) -> None:
        self._run.log(record.values, step=record.step)

    def on_saved(self, record: EpochRecord) -> None:
        images = {name: self._wandb.Image(str(path)) for name, path in record.pictures.items()}
        numbers = {"epoch": record.epoch, "epoch_loss": record.loss.mean, **record.values}
        self._run.log({**numbers, **images}, step=record.step)
        if record.checkpoint:
            artifact = self._wandb.Artifact(f"checkpoint-{self._name}", type="model", metadata={"step": record.step})
            artifact.add_file(str(record.checkpoint))
            self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


def tracker_for(kind: TrackerKind, place: Place, step: int) -> list[Listener]:
    """The tracker of that kind, for a run that starts, or resumes after `step`."""
    if kind == "tensorboard":
        return [TensorBoard(place, step)]
    return [Wandb(place)] if kind == "wandb" else []
