"""Models from anybody's weights: `open_model` of a run or of any file, `is_checkpoint` to tell which it is."""

from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from mae.formats import split_options
from mae.formats.opening import FOLDER_FILES
from mae.reading import read_checkpoint
from mae.weights import load_pretrained
from ml.checkpoints import find_checkpoint, load_model
from ml.SiamMAE import SiamMAE


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of this workspace; one that cannot be read is none."""
    try:
        return {"model", "config", "epoch"} <= read_checkpoint(path, mmap=True).keys()
    except InputError:
        return False


def is_foreign(name: str) -> bool:
    """Whether a name stands for weights that are no checkpoint of ours: a file, a folder of timm or Transformers, or
    either with options after a comma (`FILE,num_heads=6`)."""
    path, options = split_options(name) if "=" in name else (Path(name), {})
    if path.is_dir():
        return any((path / file).is_file() for file in FOLDER_FILES)
    return path.is_file() and (bool(options) or not is_checkpoint(path))


def open_model(name: str, root: Path = Path(), device: torch.device | str = "cpu") -> tuple[Any, dict[str, Any]]:
    """The model of a run or of any weights with a decoder, in evaluation mode; and the checkpoint, or what is known."""
    if not is_foreign(name):
        path = find_checkpoint(name, root)
        model, checkpoint = load_model(path, device)
        return model, {"run": path.stem, **checkpoint}
    mae = load_pretrained(name, None)
    if not mae.decoder_is_pretrained and mae.cross_decoder is None:
        raise InputError(
            f"{name} brings no decoder that fits ours, so it predicts nothing: as a source of features it can be "
            "evaluated and tracked with, and training can start from it (--weights)"
        )
    model = SiamMAE(mae, decoder_kind=mae.cross_decoder.kind if mae.cross_decoder else "cross-self")
    model.mask_ratio = (mae.cross_decoder and mae.cross_decoder.mask_ratio) or model.mask_ratio
    return model.to(device).eval(), {"run": Path(name).name, "config": model.config}
