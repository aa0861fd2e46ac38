"""eleander/SiamMAE: MAE, and one cross-attention between its encoder and its decoder.

Its own `encode` sends raw pixels into the blocks; here features are what the encoder gives when used as it was trained.
"""

from mae.formats.family import Family

FAMILY = Family(
    "SiamMAE of eleander",
    lambda weights: weights.has(r"cross_decoder\.multihead_attn\."),
    options=lambda weights: dict(positions="size"),
    others=("decoder_", "mask_token", "cross_decoder."),
    left_out="decoder left out: one cross-attention at the encoder's width, without residual",
)
