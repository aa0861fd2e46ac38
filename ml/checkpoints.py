"""Checkpoints: a dict of tensors and plain values, written whole or not at all, read without unpickling code.

`checkpoints/<run>/<epoch>.pt` and `last.pt` hold
    model      state dict                     config     the model's, for `build_model`
    optimizer  state dict                     run        the run's configuration, or what `train` was called with
    scheduler  state dict                     epoch      finished epochs
    step       finished updates               losses     of the last epoch
"""

import json
from pathlib import Path
from typing import Any

import torch

from mae.files import InputError, write_atomically
from mae.weights import load_strictly, read_checkpoint
from ml.SiamMAE import SiamMAE, build_model


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write to a temporary name, flush, rename; then `path` is the whole checkpoint or what it was before."""
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def save_config(path: Path, config: dict[str, Any]) -> None:
    """The configuration as JSON, beside the weights."""
    write_atomically(path, lambda file: file.write(json.dumps(config, indent=2, default=str).encode() + b"\n"))


def find_checkpoint(name: str | Path, root: Path = Path()) -> Path:
    """A checkpoint by its path, by its run (`last.pt`), or by `<run>/<epoch>`."""
    folder = root / "checkpoints"
    for candidate in (Path(name), folder / name, folder / f"{name}.pt"):
        if candidate.is_file():
            return candidate
        if (candidate / "last.pt").is_file():
            return candidate / "last.pt"
    runs = sorted(p.parent.name for p in folder.glob("*/last.pt"))
    there = f"there are the runs {', '.join(runs)}" if runs else f"there are no runs in {folder} yet"
    raise InputError(f"no checkpoint {name}: expected a file, a run, or <run>/<epoch>; {there}")


def load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this workspace; an InputError names what is missing."""
    checkpoint = read_checkpoint(path)
    missing = {"model", "config", "epoch"} - checkpoint.keys()
    if missing:
        raise InputError(
            f"{path} is not a checkpoint of this workspace: it lacks {', '.join(sorted(missing))}; "
            "for MAE weights use prepare_model"
        )
    return checkpoint


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[SiamMAE, dict[str, Any]]:
    """The model of a checkpoint, with its weights, in evaluation mode; and the checkpoint itself."""
    checkpoint = load_run(path)
    model = build_model(checkpoint["config"])
    load_strictly(model, checkpoint["model"], source=str(path))
    return model.to(device).eval(), checkpoint


def encoder_for_timm(model: SiamMAE) -> dict[str, torch.Tensor]:
    """The encoder's weights under timm's names, contiguous and on the CPU: `VisionTransformer` without its head.

    The names are the same because both follow ViT's; the fixed positions travel as timm's learned ones.
    """
    return {name: value.detach().cpu().contiguous() for name, value in model.encoder.state_dict().items()}
