"""Encoders of clips: MAE-ST (facebookresearch/mae_st), MAE3D (cyrilzakka/MAE3D) and VideoMAE (MCG-NJU/VideoMAE).

VideoMAE has no class token, and positions that no file stores. Pre-training keeps its encoder under `encoder.`;
fine-tuned files have it bare, with a norm after pooling.
"""

from typing import Any

from mae.formats.family import Family, fuse_biases, image_size
from mae.formats.mae import DECODER
from mae.formats.opening import State, Weights
from mae.models_mae_st import fuse_qkv
from mae.patches import MAE_ST_MEAN, MAE_ST_STD

VIDEOMAES_DECODER = ("decoder", "encoder_to_decoder.", "mask_token")
LEFT_OUT = "decoder left out: self-attention over the hidden tubelets of a clip"


def _space_time(weights: Weights) -> bool:
    return weights.has("pos_embed_spatial") and weights.has("pos_embed_temporal")


def _options_st(weights: Weights) -> dict[str, Any]:
    settings = weights.settings
    own = {k: settings.get(f"pixel_{k}", v) for k, v in (("mean", MAE_ST_MEAN), ("std", MAE_ST_STD))}
    return dict(positions="size", **own)


def _is_videomae(weights: Weights) -> bool:
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


MAE3D = Family(
    "MAE3D",
    lambda w: _space_time(w) and w.has("decoder_blocks") and not w.has("decoder_cls_token"),
    options=lambda w: dict(positions="size"),
    others=DECODER,
    left_out="decoder left out: it predicts every frame, without a class token",
)
MAE_ST = Family("MAE-ST", _space_time, fuse_qkv, _options_st, DECODER, "decoder left out; mae_st:FILE takes it along")
VIDEOMAE = Family(
    "VideoMAE", _is_videomae, fuse_biases, lambda w: grid_options(w, w.state), VIDEOMAES_DECODER, LEFT_OUT
)
