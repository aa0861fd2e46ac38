"""MAE's encoder with a decoder of pairs that is not ours, so that the encoder comes alone: a table."""

from mae.formats.dino import PIXELS
from mae.formats.family import Family
from mae.formats.mae import DECODER

# alexandre-eymael/CropMAE, and the SiamMAE reproduced with it
CROPMAE = Family(
    "CropMAE",
    lambda w: w.has(r"decoder_blocks\.0\.multihead_attn\.") and not w.has("decoder_frame_info"),
    options=lambda w: dict(positions="scale"),
    others=DECODER,
    left_out="decoder left out: post-norm, MLP before self-attention",
    fixed_positions=True,
)
# minhoooo1/CatMAE
CATMAE = Family(
    "CatMAE",
    lambda w: w.has("decoder_frame_info"),
    options=lambda w: dict(positions="scale"),
    others=DECODER,
    left_out="decoder left out: post-norm, of three frames",
    fixed_positions=True,
)
# huiwon-jang/RSP
RSP = Family(
    "RSP",
    lambda w: w.has("decoder_embed_stoch") or w.has("to_prior"),
    options=lambda w: dict(positions="scale", **PIXELS),
    others=(*DECODER, "to_posterior.", "to_prior."),
    left_out="decoder left out: all its queries are mask tokens, and it draws from a latent",
    fixed_positions=True,
)
# eleander/SiamMAE, whose own `encode` sends raw pixels into the blocks; here it is used as trained
ELEANDER = Family(
    "SiamMAE of eleander",
    lambda w: w.has(r"cross_decoder\.multihead_attn\."),
    options=lambda w: dict(positions="size"),
    others=(*DECODER, "cross_decoder."),
    left_out="decoder left out: one cross-attention at the encoder's width, without residual",
)
