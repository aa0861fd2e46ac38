"""siammae export CHECKPOINT --out ENCODER.safetensors"""

from pathlib import Path
from typing import Annotated

import tyro
from safetensors.torch import save

from mae.files import InputError, write_atomically
from mae.models_mae_st import SpatiotemporalMAE
from ml.checkpoints import encoder_for_timm, find_checkpoint, load_model


def main(checkpoint: Annotated[str, tyro.conf.Positional], out: Path, root: Path = Path()) -> None:
    """Write the trained encoder as safetensors under timm's names; its `VisionTransformer` gives the same features.

    timm has no model of clips. A MAE-ST is written whole under the names of its public weights, q, k, v apart: the
    public code loads it, and so does `--weights` here.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file
        out: the file to write
        root: folder that holds checkpoints/
    """
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    model, _ = load_model(find_checkpoint(checkpoint, root))
    if isinstance(model, SpatiotemporalMAE):
        about = "MAE-ST, encoder and decoder, under its public names with q, k, v apart (timm has no model of clips)"
        weights = {name: value.detach().cpu().contiguous() for name, value in model.public_state_dict().items()}
        config = {key: str(value) for key, value in model.config.items()}
    else:
        about, weights = "the encoder, under timm's names", encoder_for_timm(model)
        config = {key: str(value) for key, value in model.encoder.config.items()}
    data = save(weights, metadata=config)
    write_atomically(out, lambda file: file.write(data))
    print(f"{out}: {about}: {config}")
