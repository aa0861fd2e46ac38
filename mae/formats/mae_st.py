"""MAE-ST (Feichtenhofer et al. 2022; facebookresearch/mae_st) and MAE3D (cyrilzakka/MAE3D): encoders of clips."""

from typing import Any

from mae.formats.family import Family
from mae.formats.opening import Weights
from mae.models_mae_st import fuse_qkv
from mae.patches import MAE_ST_MEAN, MAE_ST_STD

_DECODER = ("decoder_", "mask_token")


def _space_time(weights: Weights) -> bool:
    return weights.has("pos_embed_spatial") and weights.has("pos_embed_temporal")


def _options(weights: Weights) -> dict[str, Any]:
    settings = weights.settings
    own = {k: settings.get(f"pixel_{k}", v) for k, v in (("mean", MAE_ST_MEAN), ("std", MAE_ST_STD))}
    return dict(positions="size", **own)


MAE3D = Family(
    "MAE3D",
    lambda w: _space_time(w) and w.has("decoder_blocks") and not w.has("decoder_cls_token"),
    options=lambda weights: dict(positions="size"),
    others=_DECODER,
    left_out="decoder left out: it predicts every frame, without a class token",
)
FAMILY = Family(
    "MAE-ST",
    _space_time,
    rename=fuse_qkv,
    options=_options,
    others=_DECODER,
    left_out="decoder left out; mae_st:FILE takes it along",
)
