"""VideoMAE (MCG-NJU/VideoMAE): clips, no class token, positions that no file stores.

Pre-training keeps the encoder under `encoder.`; fine-tuned files have it bare, with a norm after pooling.
"""

from typing import Any

from mae.formats.family import Family, fuse_biases, image_size
from mae.formats.opening import State, Weights

DECODER = ("decoder", "encoder_to_decoder.", "mask_token")
LEFT_OUT = "decoder left out: self-attention over the hidden tubelets of a clip"


def _fits(weights: Weights) -> bool:
    clips = any(name.endswith("patch_embed.proj.weight") and v.ndim == 5 for name, v in weights.state.items())
    return clips and weights.has(r"blocks\.0\.attn\.qkv") and not weights.has("(pos_embed|cls_token)")


def grid_options(weights: Weights, state: State) -> dict[str, Any]:
    """The grid of the table: from the settings, else the 8×14×14 of all public models with patches of 16, else none."""
    _, _, t, patch, _ = state["patch_embed.proj.weight"].shape
    window = weights.setting("window_size")
    size, frames = image_size(weights), weights.setting("num_frames", "frames")
    known = size is not None or patch == 16
    height, width = size or (224, 224)
    steps, grid = (frames if isinstance(frames, int) else 16) // t, (height // patch, width // patch)
    if isinstance(window, list | tuple) and len(window) == 3:
        (steps, *rest), known = window, True
        grid = (rest[0], rest[1])
    return dict(table="fixed", steps=steps, grid=grid, fixed_grid=known)


FAMILY = Family(
    "VideoMAE",
    _fits,
    rename=fuse_biases,
    options=lambda weights: grid_options(weights, weights.state),
    others=DECODER,
    left_out=LEFT_OUT,
)
