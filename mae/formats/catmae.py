"""CatMAE (minhoooo1/CatMAE): MAE's encoder, and a post-norm decoder of three frames."""

from mae.formats.cropmae import DECODER
from mae.formats.family import Family

FAMILY = Family(
    "CatMAE",
    lambda weights: weights.has("decoder_frame_info"),
    options=lambda weights: dict(positions="scale"),
    others=DECODER,
    left_out="decoder left out: post-norm, of three frames",
    fixed_positions=True,
)
