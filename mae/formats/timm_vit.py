"""timm's vision transformers: a folder of `model.safetensors` and `config.json`, which tells the pixels' statistics."""

from typing import Any

from mae.formats.family import Family, statistics
from mae.formats.opening import Weights


def _fits(weights: Weights) -> bool:
    return weights.has(r"patch_embed\.proj\.") and weights.has(r"blocks\.0\.attn\.qkv\.") and (
        "pretrained_cfg" in weights.settings or "architecture" in weights.settings
        or weights.has(r"head\.weight") or weights.has("reg_token")
    )  # fmt: skip


def _options(weights: Weights) -> dict[str, Any]:
    clip = "clip" in str(weights.setting("architecture"))  # OpenAI's norms, which timm keeps
    return dict(positions="antialias", eps=1e-5 if clip else 1e-6, **statistics(weights))


FAMILY = Family("timm", _fits, options=_options, others=("fc_norm.",), left_out="classifier left out")
