"""Families that are recognised and not read, each with the reason."""

from mae.formats.family import Family
from mae.formats.opening import Weights

_TIMM = "timm may have it as a source of features: --source timm:NAME@FILE"


def _vjepa(weights: Weights) -> bool:
    kernel = weights.state.get("patch_embed.proj.weight")
    plain = weights.has(r"blocks\.0\.attn\.qkv\.bias") and not weights.has("(cls_token|pos_embed_spatial)")
    return (kernel is not None and kernel.ndim == 5 and plain) or weights.has(r".*embeddings\.patch_embeddings\.proj\.")


def _convolutions(weights: Weights) -> bool:
    marks = r"(.*\.)?(conv1|conv_stem|conv_dw|dwconv|downsample_layers|embedder|stem)[._]"
    return weights.has(marks) and not weights.has(r"blocks\.0\.attn")


FAMILIES = (
    Family(
        "DINOv3 as Transformers writes it",
        lambda w: w.has(r"(.*\.)?embeddings\.register_tokens") and w.has(r"(.*\.)?layer\.0\.attention\.q_proj"),
        refused="take its authors' file, or timm's: --source timm:vit_small_patch16_dinov3@FILE",
    ),
    Family("V-JEPA", _vjepa, refused="it turns its tokens by their place and step (RoPE), which no model here does"),
    Family(
        "CLIP or SigLIP",
        lambda w: (
            w.has(r"(.*\.)?(class_embedding|logit_scale|text_model|resblocks|patch_embedding|in_proj_weight)\b")
            and not w.has(r"decoder_blocks|cross_decoder")
        ),
        refused=f"its image tower has another GELU and other names than the models here; {_TIMM}",
    ),
    Family(
        "a language model",
        lambda w: w.has(r"(.*\.)?(embed_tokens|wte|word_embeddings|tok_embeddings|lm_head)\b"),
        refused="it reads words, not images: give the weights of a vision transformer",
    ),
    Family(
        "a hierarchical vision transformer, such as Swin or Hiera",
        lambda w: (
            w.has(r"(.*\.)?(layers|stages|encoder\.layers)\.0\.(blocks|layers)\.0\.(attn|attention|norm1)\b")
            or w.has(r"blocks\.\d+\.(proj\.|attn\.(rel_pos_h|pool_q))")
        ),
        refused=f"it has windows, or patches of several sizes, which no model here has; {_TIMM}",
    ),
    Family("a convolutional network", _convolutions, refused=f"it has no patches; {_TIMM}"),
    Family(
        "BEiT or data2vec",
        lambda w: w.has(r".*(relative_position_bias|rel_pos_bias)|.*\.lambda_1$"),
        refused=f"its attention adds relative positions, which no model here does; {_TIMM}",
    ),
    Family(
        "DeiT, distilled",
        lambda w: w.has(r"(.*\.)?(dist_token|distillation_token)\b"),
        refused=f"it has a second class token with a position of its own, which no model here has; {_TIMM}",
    ),
    Family(
        "TimeSformer",
        lambda w: w.has(r".*(temporal_attention|time_embed)"),
        refused="it attends to space and time in turn, which no model here does",
    ),
)
