"""timm's vision transformers: a folder of `model.safetensors` and `config.json`, which tells the pixels' statistics."""

from typing import Any

from common.errors import InputError
from mae.formats.family import Family, statistics
from mae.formats.opening import Weights


def _fits(weights: Weights) -> bool:
    if not (weights.has(r"patch_embed\.proj\.") and weights.has(r"blocks\.0\.attn\.qkv\.")):
        return False
    told = "pretrained_cfg" in weights.settings or "architecture" in weights.settings
    return told or (weights.bare and weights.has(r"head\.weight|reg_token|blocks\.0\.ls1|norm_pre|fc_norm"))


def _options(weights: Weights) -> dict[str, Any]:
    if "quickgelu" in (name := str(weights.setting("architecture"))):
        raise InputError(
            f"{weights.path} wants another GELU than ours; timm has it: --source timm:{name}@{weights.path}"
        )
    clip = "clip" in str(weights.setting("architecture"))  # OpenAI's norms, which timm keeps
    return dict(positions="antialias", eps=1e-5 if clip else 1e-6, **statistics(weights))


FAMILY = Family("timm", _fits, options=_options, others=("fc_norm.",), left_out="classifier left out")
