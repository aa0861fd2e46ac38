"""siammae export CHECKPOINT --out ENCODER.safetensors, or .pth for a dict that torch.load reads"""

from pathlib import Path
from typing import Annotated

import torch
import tyro
from safetensors.torch import save

from common.errors import InputError
from common.files import write_atomically
from mae.models_mae_st import SpatiotemporalMAE
from ml.checkpoints import encoder_for_timm, find_checkpoint, load_model


def main(checkpoint: Annotated[str, tyro.conf.Positional], out: Path, root: Path = Path()) -> None:
    """Write the trained encoder under timm's names; its `VisionTransformer` gives the same features.

    timm has no model of clips. A MAE-ST is written whole under the names of its public weights, q, k, v apart.
    `--weights` here reads it in both formats. The public code reads a .pth, and normalises pixels as MAE-ST does, which
    is wrong for a model that was inflated from an image MAE.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file
        out: the file to write: .safetensors, or .pth or .pt, where the weights lie under "model"
        root: folder that holds checkpoints/
    """
    suffix = out.suffix.lower()
    if suffix not in (".safetensors", ".pth", ".pt"):
        raise InputError(f"{out} ends in {suffix or 'nothing'}; weights are written as .safetensors, .pth or .pt")
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    model, _ = load_model(find_checkpoint(checkpoint, root))
    if isinstance(model, SpatiotemporalMAE):
        about = "MAE-ST, encoder and decoder, under its public names with q, k, v apart (timm has no model of clips)"
        weights = {name: value.detach().cpu().contiguous() for name, value in model.public_state_dict().items()}
        config = model.config
    else:
        about, weights = "the encoder, under timm's names", encoder_for_timm(model)
        config = model.encoder.config
    if suffix == ".safetensors":
        data = save(weights, metadata={key: str(value) for key, value in config.items()})
        write_atomically(out, lambda file: file.write(data))
    else:
        write_atomically(out, lambda file: torch.save({"model": weights, "config": config}, file))
    print(f"{out}: {about}: {config}")
