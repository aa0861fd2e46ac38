"""CropMAE, and the SiamMAE reproduced with it (alexandre-eymael/CropMAE): MAE's encoder, a post-norm decoder."""

from mae.formats.family import Family
from mae.formats.opening import Weights

DECODER = ("decoder_", "mask_token")


def _fits(weights: Weights) -> bool:
    return weights.has(r"decoder_blocks\.0\.multihead_attn\.") and not weights.has("decoder_frame_info")


FAMILY = Family(
    "CropMAE",
    _fits,
    options=lambda weights: dict(positions="scale"),
    others=DECODER,
    left_out="decoder left out: post-norm, MLP before self-attention",
    fixed_positions=True,
)
