"""Models from anybody's weights: `open_model` of a run or of any file, `is_checkpoint` to tell which it is."""

from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from mae.formats import split_options
from mae.formats.opening import FOLDER_FILES
from mae.models_mae import MAEEncoder
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


def open_model(
    name: str, root: Path = Path(), device: torch.device | str = "cpu", *, must_predict: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The model of a run or of any weights, in evaluation mode; and the checkpoint, or what is known.

    must_predict: raise `InputError` for weights without a decoder that fits; else their decoder starts untrained.
    """
    if not is_foreign(name):
        path = find_checkpoint(name, root)
        model, checkpoint = load_model(path, device)
        return model, {"run": path.stem, **checkpoint}
    mae = load_pretrained(name, None)
    if must_predict and not mae.decoder_is_pretrained and mae.cross_decoder is None:
        raise InputError(
            f"{name} brings no decoder that fits ours, so it predicts nothing: as a source of features it can be "
            "evaluated and tracked with, and training can start from it (--weights)"
        )
    model = SiamMAE(mae, decoder_kind=mae.cross_decoder.kind if mae.cross_decoder else "cross-self")
    model.mask_ratio = (mae.cross_decoder and mae.cross_decoder.mask_ratio) or model.mask_ratio
    return model.to(device).eval(), {"run": Path(name).name, "config": model.config}


def open_export(name: str, root: Path = Path()) -> tuple[Any, dict[str, Any]]:
    """The model to export of a run or of any weights; of others it is the encoder alone where no decoder fits."""
    if not is_foreign(name):
        return open_model(name, root)
    mae = load_pretrained(name, None).eval()
    record = {"run": Path(name).stem, "source": Path(name).name}
    if mae.cross_decoder is not None:
        return open_model(name, root)[0], record
    if mae.decoder_is_pretrained:
        return mae, record
    encoder = MAEEncoder(**mae.encoder_config).eval()
    encoder.load_state_dict({key: value for key, value in mae.state_dict().items() if key in encoder.state_dict()})
    return encoder, record
