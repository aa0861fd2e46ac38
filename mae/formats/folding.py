"""Any plain vision transformer as our encoder of images or of clips.

What ours has no place for is folded into the weights beside it: pixel statistics into the patch embedding, LayerScale
into the maps before it, which is exact. What cannot be folded is named in words: `as_mae`, `as_mae_st`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from mae.formats.encoder import Encoder
from mae.formats.family import Loaded
from mae.models_mae import MAEEncoder
from mae.patches import IMAGENET_MEAN, IMAGENET_STD


@torch.no_grad()
def as_mae(loaded: Loaded) -> tuple[MAEEncoder, list[str]]:
    """Our encoder with a loaded one's weights, and in words what is different in it, if anything is."""
    if isinstance(loaded.encoder, MAEEncoder):
        return loaded.encoder, []
    encoder, state, differences = _folded(loaded)
    _fold_pixels(state, encoder)
    differences += [*_settle_positions(state, encoder), *_tokens_left_out(state, encoder)]
    h, w = (side * encoder.patch_size for side in encoder.grid)
    sizes = (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.mlp_ratio, encoder.eps)
    with torch.device("meta"):
        own = MAEEncoder((h, w) if h != w else h, encoder.patch_size, *sizes)
    own.load_state_dict(state, assign=True)
    return own.eval(), differences


@torch.no_grad()
def as_mae_st(loaded: Loaded) -> tuple[dict[str, Tensor], list[str]]:
    """The state of our encoder of clips with a loaded one's weights, and in words what is different in it."""
    encoder, state, differences = _folded(loaded)
    if encoder.table == "fixed":
        table = encoder.positions(*encoder.grid, encoder.steps).unflatten(1, (encoder.steps, -1))  # [1, T, h·w, D]
        state["pos_embed_spatial"] = table.mean(1)
        state["pos_embed_temporal"] = table.mean(2) - table.mean((1, 2))[:, None]
        differences.append("positions become the nearest sum of one for the place and one for the step")
    if encoder.cls_token is None:
        state["cls_token"] = state["pos_embed_class"] = state["pos_embed_spatial"].new_zeros(1, 1, encoder.embed_dim)
        differences.append("a class token of zeros is added")
    if encoder.eps != 1e-6:
        differences.append(f"LayerNorm's ε is 1e-6 in place of {encoder.eps:g}")
    return state, differences


def _folded(loaded: Loaded) -> tuple[Encoder, dict[str, Tensor], list[str]]:
    """The encoder, and its weights with LayerScale, absent biases and an absent norm folded; and what differs then."""
    encoder, source = loaded.encoder, loaded.weights.path
    if not isinstance(encoder, Encoder):
        raise InputError(
            f"{source} holds {loaded.family.name}, which is no plain vision transformer: it can be evaluated, but none "
            "of our models can start from it"
        )
    first: Any = encoder.blocks[0]
    if not isinstance(encoder.norm_pre, nn.Identity) or not isinstance(first.attn.q_norm, nn.Identity):
        raise InputError(f"{source} has norms that MAE's encoder has no place for: it can be evaluated, not trained on")
    if hasattr(first.mlp, "gate_last"):
        raise InputError(f"{source} has a gated MLP, which MAE's encoder has not: it can be evaluated, not trained on")
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    _fold_layer_scale(state)
    _add_biases(state, len(encoder.blocks))
    if "norm.weight" in state:
        return encoder, state, []
    state["norm.weight"] = state["blocks.0.norm1.weight"].new_ones(encoder.embed_dim)
    state["norm.bias"] = torch.zeros_like(state["norm.weight"])
    return encoder, state, ["a final norm is added"]


def _fold_pixels(state: dict[str, Tensor], encoder: Encoder) -> None:
    """(x − mean) / std → (x − m) / s of ImageNet: the kernel is multiplied by s / std, the bias takes the rest."""
    kernel, bias = state["patch_embed.proj.weight"].double(), state["patch_embed.proj.bias"].double()
    if encoder.t_patch_size:  # a still tubelet: all its frames are the same
        kernel = kernel.sum(2)
    if (encoder.mean, encoder.std) != (IMAGENET_MEAN, IMAGENET_STD):
        mean, std, m, s = (
            torch.tensor(v, dtype=torch.double).view(3, 1, 1)
            for v in (encoder.mean, encoder.std, IMAGENET_MEAN, IMAGENET_STD)
        )
        bias = bias + (kernel * (m - mean) / std).sum((1, 2, 3))
        kernel = kernel * s / std
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = kernel.float(), bias.float()


def _fold_layer_scale(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.endswith(".gamma")]:
        gamma = state.pop(name)
        target = name.replace("ls1.gamma", "attn.proj").replace("ls2.gamma", "mlp.fc2")
        state[f"{target}.weight"] = state[f"{target}.weight"] * gamma[:, None]
        state[f"{target}.bias"] = state[f"{target}.bias"] * gamma


def _add_biases(state: dict[str, Tensor], depth: int) -> None:
    for n in range(depth):
        weight = state[f"blocks.{n}.attn.qkv.weight"]
        state.setdefault(f"blocks.{n}.attn.qkv.bias", weight.new_zeros(len(weight)))


def _settle_positions(state: dict[str, Tensor], encoder: Encoder) -> list[str]:
    """One table with the class token's place; of a clip's places, the mean over its steps."""
    table = encoder.positions(*encoder.grid, encoder.steps)
    prefix = int(encoder.table == "class" or (encoder.table == "space-time" and encoder.cls_token is not None))
    places = table[:, prefix:].unflatten(1, (encoder.steps, -1)).mean(1)
    for name in [name for name in state if name.startswith("pos_embed")]:
        del state[name]
    of_class = table[:, :1] if prefix else torch.zeros_like(table[:, :1])
    state["pos_embed"] = torch.cat([of_class, places], dim=1)
    return ["it is a model of clips, read as one of images"] if encoder.t_patch_size else []


def _tokens_left_out(state: dict[str, Tensor], encoder: Encoder) -> list[str]:
    words = []
    if encoder.cls_token is None:
        state["cls_token"] = state["pos_embed"].new_zeros(1, 1, encoder.embed_dim)
        words.append("a class token of zeros is added")
    if state.pop("reg_token", None) is not None:
        words.append("its registers are left out")
    return words
