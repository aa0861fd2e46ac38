"""DINOv3 (facebookresearch/dinov3): tokens are turned by their place (RoPE), which timm's EVA models do.

Of the patches' places alone: no table of positions is stored. The number of heads follows from the periods.
"""

from functools import partial

import torch
from torch import nn

from common.errors import InputError
from mae.formats.family import Family, few, heads_of, load_into
from mae.formats.opening import State, Weights
from mae.formats.timm_vit import ThroughTimm

_LEFT_OUT = ("rope_embed.", "mask_token", "local_cls_norm.", "head.")
_NAMES = {  # its authors' and Transformers' → timm's
    "storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2",
    "mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x.", "mlp.w3.": "mlp.fc2.",
}  # fmt: skip


def to_timm(state: State) -> State:
    """timm's names: no buffers, the bias of queries and values apart, that of the keys is zero by `bias_mask`."""
    renamed: State = {}
    for name, value in state.items():
        if name.startswith(_LEFT_OUT) or name.endswith("bias_mask"):
            continue
        for theirs, own in _NAMES.items():
            name = name.replace(theirs, own)
        if name.endswith("attn.qkv.bias"):
            q, _, v = value.chunk(3)
            renamed[name.replace("qkv.bias", "q_bias")], renamed[name.replace("qkv.bias", "v_bias")] = q, v
        else:
            renamed[name] = value
    return renamed


def _build(weights: Weights, num_heads: int | None) -> ThroughTimm:
    from timm.models.eva import Eva

    state, periods = to_timm(weights.state), weights.state.get("rope_embed.periods")
    kernel = state["patch_embed.proj.weight"]
    width, depth = kernel.shape[0], len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    gated = "blocks.0.mlp.fc1_g.weight" in state
    hidden = state["blocks.0.mlp.fc2.weight"].shape[1]
    heads = heads_of(weights, width, depth, num_heads or (width // (4 * len(periods)) if periods is not None else None))
    if periods is not None:
        usual = 100 ** (2 * torch.arange(len(periods)) / (width // heads / 2))
        if not torch.allclose(periods, usual, rtol=0.02):
            raise InputError(
                f"{weights.path}: its periods of RoPE ({few(map(str, periods.tolist()))}) are not DINOv3's"
            )
    model = Eva(
        patch_size=kernel.shape[-1], embed_dim=width, depth=depth, num_heads=heads, num_classes=0, global_pool="token",
        dynamic_img_size=True, mlp_ratio=(hidden + 0.5) / width,
        qkv_bias="blocks.0.attn.q_bias" in state, init_values=1e-5, num_reg_tokens=state["reg_token"].shape[1],
        rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False,
        use_fc_norm=False, swiglu_mlp=gated, swiglu_align_to=1 if gated else 0,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )  # fmt: skip
    load_into(model, state, weights, FAMILY.name)
    return ThroughTimm(model).eval()


FAMILY = Family(
    "DINOv3",
    lambda weights: weights.has("rope_embed.periods") or weights.has("storage_tokens"),
    build=_build,
)
