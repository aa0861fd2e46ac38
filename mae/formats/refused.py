"""Families that are recognised and not read, each with the reason."""

from mae.formats.family import Family
from mae.formats.opening import Weights


def _vjepa(weights: Weights) -> bool:
    kernel = weights.state.get("patch_embed.proj.weight")
    plain = weights.has(r"blocks\.0\.attn\.qkv\.bias") and not weights.has("(cls_token|pos_embed_spatial)")
    return kernel is not None and kernel.ndim == 5 and plain


FAMILIES = (
    Family("V-JEPA", _vjepa, refused="it turns its tokens by their place and step (RoPE), which no model here does"),
    Family(
        "a language model",
        lambda w: w.has(r"(model\.|transformer\.)?(embed_tokens|wte|word_embeddings)\.") or w.has("lm_head"),
        refused="it reads words, not images: give the weights of a vision transformer",
    ),
    Family(
        "a convolutional network",
        lambda w: w.has(r"(conv1|stem|downsample_layers)[._]") and not w.has(r"blocks\.0\.attn"),
        refused="it has no patches; as a source of features, timm has many: --source timm:NAME@FILE",
    ),
)
