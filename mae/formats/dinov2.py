"""DINOv2 (facebookresearch/dinov2) and T-CoRe (yafeng19/T-CORE), which keeps its layout: LayerScale, maybe registers.

Registers come without positions. T-CoRe fits positions to the size with antialiasing, and so does DINOv2 where it has
registers; without, DINOv2 scales as DINO does.
"""

import re

from mae.formats.family import Family
from mae.formats.opening import State, Weights

_HEADS = ("head.", "dino_head.", "ibot_head.", "mask_token")


def _rename(state: State) -> State:
    """`blocks.<chunk>.<index>.…` → `blocks.<index>.…`; registers and the gated MLP by timm's names."""
    names = {"register_tokens": "reg_token"}
    renamed = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", names.get(k, k)): v for k, v in state.items()}
    return {k.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): v for k, v in renamed.items()}


def _registers(weights: Weights) -> bool:
    return weights.has("register_tokens")


def _is_layout(weights: Weights) -> bool:
    scaled = weights.has(r"blocks\.(\d+\.)?\d+\.ls1\.gamma")
    return scaled and (weights.has("mask_token") or _registers(weights) or weights.chosen == "teacher")


def _patch(weights: Weights) -> int:
    return weights.state["patch_embed.proj.weight"].shape[-1] if weights.has(r"patch_embed\.proj\.weight") else 0


TCORE = Family(
    "T-CoRe",
    lambda weights: _is_layout(weights) and weights.chosen == "teacher" and _patch(weights) != 14,
    rename=_rename,
    options=lambda weights: dict(positions="antialias"),
    others=_HEADS,
    left_out="heads left out",
)
DINOV2 = Family(
    "DINOv2",
    _is_layout,
    rename=_rename,
    options=lambda weights: dict(positions="antialias" if _registers(weights) else "scale"),
    others=_HEADS,
)
