"""RSP (huiwon-jang/RSP): MAE's encoder; what predicts the future draws from a latent of its own."""

from mae.formats.dino import PIXELS
from mae.formats.family import Family

FAMILY = Family(
    "RSP",
    lambda weights: weights.has("decoder_embed_stoch") or weights.has("to_prior"),
    options=lambda weights: dict(positions="scale", **PIXELS),
    others=("decoder_", "mask_token", "to_posterior.", "to_prior."),
    left_out="decoder left out: all its queries are mask tokens, and it draws from a latent",
    fixed_positions=True,
)
