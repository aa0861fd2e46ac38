"""Transformers' vision transformers: ViTMAE (with its decoder), ViT, DINOv2; names of versions 4 and 5."""

import re
from typing import Any

from common.errors import InputError
from mae.formats import clips
from mae.formats.family import Family, fuse_biases, statistics
from mae.formats.mae import DECODER, mae_decoder
from mae.formats.opening import State, Weights
from mae.models_mae_st import fuse_qkv, split_qkv

_KINDS = ("vit", "vit_mae", "vit_msn", "dinov2", "dinov2_with_registers", "ijepa", "videomae")
_NAMES = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^layernorm\.", "norm."),
    (r"^decoder\.decoder_(encoder\.layer|layers)\.", "decoder_blocks."),
    (r"^(encoder\.layer|layers|encoder\.layers)\.", "blocks."),
    (r"^decoder\.(decoder_|mask_token)", r"\1"),
    (r"\.attention\.(attention|self)\.(q|k|v)(uery|ey|alue)\.", r".attn.\2."),
    (r"\.attention\.attention\.(q_bias|v_bias)$", r".attn.\1"),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
)
_BACK = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(decoder_|mask_token)", r"decoder.\1"),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)


def to_mae(state: State) -> State:
    """MAE's names for Transformers'."""
    renamed = {}
    for name, value in state.items():
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return fuse_biases(fuse_qkv(renamed))


def to_transformers(state: State, prefix: str) -> State:
    """The inverse: Transformers' names for MAE's; prefix: "vit." of a model with a decoder."""
    renamed = {}
    for name, value in split_qkv(state).items():
        part = "" if name.startswith(("decoder_", "mask_token")) else prefix
        for pattern, new in _BACK:
            name = re.sub(pattern, new, name)
        renamed[part + name] = value
    return renamed


def _options(weights: Weights) -> dict[str, Any]:
    kind, activation, eps = (weights.setting(name) for name in ("model_type", "hidden_act", "layer_norm_eps"))
    if kind not in (None, *_KINDS) or activation not in (None, "gelu"):
        raise InputError(
            f"{weights.path} is a model of Transformers of kind {kind!r} with activation {activation!r}; read are "
            f"those that are plain vision transformers, with gelu: {', '.join(_KINDS)}"
        )
    positions = "antialias" if weights.has(r"embeddings\.register_tokens") else "size"
    return dict(positions=positions, eps=1e-12 if eps is None else float(eps), **statistics(weights))


def _fits(weights: Weights) -> bool:
    return weights.has(r"embeddings\.patch_embeddings\.projection\.")


def _is_videomae(weights: Weights) -> bool:
    return _fits(weights) and weights.state["embeddings.patch_embeddings.projection.weight"].ndim == 5


def _of_clips(weights: Weights) -> dict[str, Any]:
    normed = weights.has("(layernorm|fc_norm)")
    return {**_options(weights), **clips.grid_options(weights, to_mae(weights.state)), "final_norm": normed}


def _is_mae(weights: Weights) -> bool:
    return _fits(weights) and weights.has(r"decoder\.decoder_embed\.")


VITMAE = Family("ViTMAE of Transformers", _is_mae, to_mae, _options, DECODER, "with MAE's decoder", mae_decoder)
VIDEOMAE = Family("VideoMAE of Transformers", _is_videomae, to_mae, _of_clips, clips.VIDEOMAES_DECODER, clips.LEFT_OUT)
VIT = Family("ViT of Transformers", _fits, to_mae, _options, ("mask_token", "decoder."))
