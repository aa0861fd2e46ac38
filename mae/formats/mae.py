"""MAE (He et al. 2021; facebookresearch/mae): encoder, and a decoder of self-attention that ours can begin with."""

import math
from typing import Any

import torch

from mae.formats.family import Decoder, Family, heads_of, statistics
from mae.formats.opening import State, Weights
from mae.positions import sincos_positions

DECODER = ("decoder_", "mask_token")


def has_decoder(weights: Weights) -> bool:
    return weights.has(r"decoder_blocks\.0\.attn\.qkv\.") and not weights.has(r"decoder_blocks\.0\.cattn\.")


def mae_decoder(family: Family, weights: Weights) -> Decoder:
    """The decoder under MAE's own names, for `CrossDecoder.around`."""
    state = {name: value for name, value in family.rename(weights.state).items() if name.startswith(DECODER)}
    width, depth = state["decoder_embed.weight"].shape[0], _depth(state)
    heads = heads_of(weights, width, depth, None, prefix="decoder_", usual=USUAL_HEADS.get(width))
    stated = weights.setting("norm_pix_loss")
    normalised = weights.path.name.startswith("mae_pretrain_") if stated is None else bool(stated)
    return Decoder(state, (width, depth, heads), bool(normalised), kind="mae")


def is_plain_vit(weights: Weights) -> bool:
    """An encoder under MAE's names, and nothing that tells it from others'."""
    return weights.has("cls_token") and weights.has("pos_embed") and weights.has(r"blocks\.0\.attn\.")


def has_fixed_positions(weights: Weights) -> bool:
    """Whether the positions are MAE's sines and cosines; a bare encoder tells by nothing else whose it is."""
    table = weights.state.get("pos_embed")
    side = math.isqrt(table.shape[1] - 1) if table is not None and table.ndim == 3 else 0
    if table is None or table.shape[1:] != (side * side + 1, table.shape[2]) or table.shape[2] % 4:
        return False
    return torch.allclose(table, sincos_positions(table.shape[2], (side, side)), atol=1e-2)


def _fits(weights: Weights) -> bool:
    return has_decoder(weights) and not weights.has("pos_embed_spatial") and not weights.has("cross_decoder")


def _depth(state: State) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("decoder_blocks.")})


def _options(weights: Weights) -> dict[str, Any]:
    return dict(positions="size")


def _plain_options(weights: Weights) -> dict[str, Any]:
    """MoCo v3's small model, found under `base_encoder.`, has 12 heads, where others of its size have 6."""
    table = weights.state["pos_embed"]
    moco = weights.prefix.endswith("base_encoder.") and table.shape[-1] == 384
    return {**_options(weights), **statistics(weights), **(dict(num_heads=12) if moco else {})}


USUAL_HEADS = {512: 16, 256: 8}  # of the decoders of the public models, and of reproductions

FAMILY = Family(
    "MAE",
    _fits,
    options=_options,
    others=DECODER,
    decoder=mae_decoder,
    left_out="with MAE's decoder",
    fixed_positions=True,
)
ENCODER = Family(
    "MAE, encoder only",
    lambda w: is_plain_vit(w) and has_fixed_positions(w),
    options=_options,
    fixed_positions=True,
)
# Whose it is, no name tells: iBOT's, I-JEPA's, MoCo v3's, one that was fine-tuned.
PLAIN = Family(
    "plain vision transformer",
    lambda w: w.has("pos_embed$") and w.has(r"patch_embed\.proj\.") and w.has(r"blocks\.0\.attn\.qkv\."),
    options=_plain_options,
    others=("mask_token", "masked_embed"),
)
