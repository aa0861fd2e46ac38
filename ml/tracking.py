"""Where a run reports beside its text logs. What is not wanted is a null object: the training loop does not ask."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from common.errors import InputError

TrackerKind = Literal["none", "tensorboard", "wandb"]


class Tracker(Protocol):
    """Takes what a run has to say, as it goes."""

    def log(
        self,
        step: int,
        values: dict[str, Any],
        pictures: Mapping[str, Path] = MappingProxyType({}),
        checkpoint: Path | None = None,
    ) -> None:
        """Numbers of a step or an epoch by name; and the PNG files and the checkpoint that were written then."""

    def close(self) -> None:
        """The run has ended."""


class NoTracker:
    def log(self, *told: Any) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """TensorBoard's files, in `<root>/losses/tensorboard/<run>/`: `tensorboard --logdir losses/tensorboard`."""

    def __init__(self, run: str, config: dict[str, Any], root: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # steps after the one that is gone on from are taken back
        self._writer: Any = SummaryWriter(str(root / "losses" / "tensorboard" / run), purge_step=step + 1)
        self._writer.add_text("configuration", f"```\n{json.dumps(config, indent=1, default=str)}\n```", step)

    def log(
        self,
        step: int,
        values: dict[str, Any],
        pictures: Mapping[str, Path] = MappingProxyType({}),
        checkpoint: Path | None = None,
    ) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)
        for name, path in pictures.items():
            self._writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Weights & Biases: numbers, pictures, and checkpoints as artifacts. Offline, into `<root>/wandb/`, unless
    WANDB_MODE=online."""

    def __init__(self, run: str, config: dict[str, Any], root: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise InputError(
                "Weights & Biases is not installed; pip install 'siammae[wandb]', or leave it out"
            ) from None
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        (root / "wandb").mkdir(parents=True, exist_ok=True)  # else it goes to the temporary folder
        self._wandb = wandb
        self._name = run
        self._run = wandb.init(project="siammae", name=run, id=run, resume="allow", config=config, dir=root, mode=mode)

    def log(
        self,
        step: int,
        values: dict[str, Any],
        pictures: Mapping[str, Path] = MappingProxyType({}),
        checkpoint: Path | None = None,
    ) -> None:
        images = {name: self._wandb.Image(str(path)) for name, path in pictures.items()}
        self._run.log({**values, **images}, step=step)
        if checkpoint:
            artifact = self._wandb.Artifact(f"checkpoint-{self._name}", type="model", metadata={"step": step})
            artifact.add_file(str(checkpoint))
            self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


def make_tracker(kind: TrackerKind, run: str, config: dict[str, Any], root: Path, step: int = 0) -> Tracker:
    """The tracker of that kind for a run that begins, or goes on after `step`."""
    if kind == "tensorboard":
        return TensorBoardTracker(run, config, root, step)
    return WandbTracker(run, config, root) if kind == "wandb" else NoTracker()
