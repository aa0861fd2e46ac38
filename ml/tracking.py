"""Where a run reports beside its text logs. What is not wanted is a null object: the training loop does not ask."""

import os
from pathlib import Path
from typing import Any, Literal, Protocol

from mae.files import InputError

TrackerKind = Literal["none", "wandb"]


class Tracker(Protocol):
    """Takes what a run has to say, as it goes."""

    def log(self, epoch: int, values: dict[str, float], pictures: dict[str, Path]) -> None:
        """Numbers of an epoch by name, and the PNG files that were drawn in it."""

    def close(self) -> None:
        """The run has ended."""


class NoTracker:
    def log(self, epoch: int, values: dict[str, float], pictures: dict[str, Path]) -> None: ...

    def close(self) -> None: ...


class WandbTracker:
    """Weights & Biases: losses, learning rate, pictures. Offline, into `<root>/wandb/`, unless WANDB_MODE=online."""

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
        self._run = wandb.init(project="siammae", name=run, id=run, resume="allow", config=config, dir=root, mode=mode)

    def log(self, epoch: int, values: dict[str, float], pictures: dict[str, Path]) -> None:
        images = {name: self._wandb.Image(str(path)) for name, path in pictures.items()}
        self._run.log({**values, **images}, step=epoch)

    def close(self) -> None:
        self._run.finish()


def make_tracker(kind: TrackerKind, run: str, config: dict[str, Any], root: Path) -> Tracker:
    """The tracker of that kind for a run."""
    return WandbTracker(run, config, root) if kind == "wandb" else NoTracker()
