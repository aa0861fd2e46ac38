"""timm's vision transformers: a folder of `model.safetensors` and `config.json`, which tells the pixels' statistics.

Plain ones are built here. The others that timm knows by the name of the architecture (RoPE, another GELU, pooling by
attention) are opened by timm itself, for evaluation.
"""

from typing import Any

from torch import Tensor, nn

from common.errors import InputError
from mae.formats.encoder import Encoder
from mae.formats.family import Family, build_encoder, statistics
from mae.formats.opening import Weights
from mae.patches import IMAGENET_MEAN, IMAGENET_STD, grid_size, normalize


class ThroughTimm(nn.Module):
    """A model of timm's with `encode`, for what our `Encoder` has no place for."""

    def __init__(self, model: Any, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD):
        super().__init__()
        self.model, self.mean, self.std = model, tuple(mean), tuple(std)
        self.patch_size, self.embed_dim = int(model.feature_info[-1]["reduction"]), model.embed_dim
        self.num_heads = model.blocks[0].attn.num_heads
        # where it keeps the final norm if it pools patches
        self.norm_after_pool = getattr(model, "fc_norm", None) if isinstance(model.norm, nn.Identity) else None

    @property
    def blocks(self) -> Any:
        return self.model.blocks

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] (uint8, or floats in [0, 1]) → features after the final norm, [B, h, w, D]."""
        grid_size(images.shape[-2], images.shape[-1], self.patch_size)
        pixels = normalize(images, self.mean, self.std)
        (last,) = self.model.forward_intermediates(
            pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        features = last.permute(0, 2, 3, 1)
        return features if self.norm_after_pool is None else self.norm_after_pool(features)


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


def _build(weights: Weights, num_heads: int | None) -> Encoder | ThroughTimm:
    try:
        return build_encoder(FAMILY, weights, num_heads)
    except InputError:
        import timm

        if not weights.folder or not timm.is_model(str(weights.setting("architecture"))):
            raise
        try:
            place = f"local-dir:{weights.path.parent}"
            model: Any = timm.create_model(place, pretrained=True, dynamic_img_size=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:400]
            name = weights.setting("architecture")
            raise InputError(f"{weights.path.parent} does not fit timm's {name} ({reason})") from error
        return ThroughTimm(model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]).eval()


FAMILY = Family("timm", _fits, options=_options, others=("fc_norm.",), left_out="classifier left out", build=_build)
