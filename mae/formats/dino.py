"""DINO, DINOv2 (facebookresearch) and T-CoRe (yafeng19/T-CORE): teachers and students, or backbones.

DINOv2's layout, which T-CoRe keeps, has LayerScale and maybe registers, without positions. T-CoRe fits positions to the
size with antialiasing, and so does DINOv2 where it has registers; without, it scales as DINO does.
"""

import re

from mae.formats.family import Family
from mae.formats.mae import has_fixed_positions, is_plain_vit
from mae.formats.opening import State, Weights
from mae.patches import IMAGENET_MEAN

# As DINO's evaluation normalises frames, and RSP's after it: with 0.228 where ImageNet's is 0.229.
PIXELS = dict(mean=IMAGENET_MEAN, std=(0.228, 0.224, 0.225))
_HEADS = ("head.", "dino_head.", "ibot_head.", "mask_token", "masked_embed")


def _is_dino(weights: Weights) -> bool:
    with_head = weights.has(r"head\.last_layer\.") and not weights.has(r"blocks\.\d+\.ls1")
    return with_head or (_is_of_pair(weights) and is_plain_vit(weights))


def _is_of_pair(weights: Weights) -> bool:
    return "teacher" in weights.chosen or "student" in weights.chosen


def _is_scaled(weights: Weights) -> bool:
    scaled = weights.has(r"blocks\.(\d+\.)?\d+\.ls1\.gamma")
    return scaled and (weights.has("mask_token|register_tokens") or "teacher" in weights.chosen)


def _is_tcore(weights: Weights) -> bool:
    kernel = weights.state.get("patch_embed.proj.weight")
    return _is_scaled(weights) and "teacher" in weights.chosen and (kernel is None or kernel.shape[-1] != 14)


def _rename(state: State) -> State:
    """`blocks.<chunk>.<index>.…` → `blocks.<index>.…`; registers and the gated MLP by timm's names."""
    names = {"register_tokens": "reg_token"}
    renamed = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", names.get(k, k)): v for k, v in state.items()}
    return {k.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): v for k, v in renamed.items()}


DINO = Family(
    "DINO", _is_dino, options=lambda w: dict(positions="scale", **PIXELS), others=_HEADS, left_out="head left out"
)
BACKBONE = Family(
    "DINO, backbone",
    lambda w: is_plain_vit(w) and w.bare and not has_fixed_positions(w),
    options=lambda w: dict(positions="scale", **PIXELS),
)
TCORE = Family("T-CoRe", _is_tcore, _rename, lambda w: dict(positions="antialias"), _HEADS, "heads left out")
DINOV2 = Family(
    "DINOv2",
    _is_scaled,
    _rename,
    lambda w: dict(positions="antialias" if w.has("register_tokens") else "scale"),
    _HEADS,
)
