"""siammae export CHECKPOINT --out ENCODER.safetensors"""

from pathlib import Path
from typing import Annotated

import tyro
from safetensors.torch import save

from mae.files import InputError, write_atomically
from ml.checkpoints import encoder_for_timm, find_checkpoint, load_model


def main(checkpoint: Annotated[str, tyro.conf.Positional], out: Path, root: Path = Path()) -> None:
    """Write the trained encoder as safetensors under timm's names; its `VisionTransformer` gives the same features.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file
        out: the file to write
        root: folder that holds checkpoints/
    """
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    model, _ = load_model(find_checkpoint(checkpoint, root))
    config = {key: str(value) for key, value in model.encoder.config.items()}
    data = save(encoder_for_timm(model), metadata=config)
    write_atomically(out, lambda file: file.write(data))
    print(f"{out}: {config}")
