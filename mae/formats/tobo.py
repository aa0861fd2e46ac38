"""ToBo (naver-ai/tobo): MAE's encoder, and a cross-self decoder, of which ours is a special case.

Its decoder normalises the memory anew in each block, ours once. The weights of a norm can be moved into the linear map
that follows it, so that ours computes the same. Where all blocks have the same norm, as in what `siammae export --to
public` writes, nothing is moved.
"""

import torch
from torch import Tensor

from mae.formats.family import Decoder, Family, heads_of
from mae.formats.mae import DECODER, USUAL_HEADS
from mae.formats.opening import State, Weights

_NAMES = {
    "norm1": "cross_norm", "cattn.q": "cross.q", "cattn.kv": "cross.kv", "cattn.proj": "cross.proj",
    "norm3": "block.norm1", "attn.qkv": "block.attn.qkv", "attn.proj": "block.attn.proj",
    "norm4": "block.norm2", "mlp2.fc1": "block.mlp.fc1", "mlp2.fc2": "block.mlp.fc2",
}  # fmt: skip
_REST = {
    "decoder_embed_mae": "embed", "decoder_norm": "norm", "decoder_pred": "pred",
    "mask_token": "mask_token", "decoder_pos_embed": "pos_embed",
}  # fmt: skip


def to_ours(state: State) -> State:
    """The decoder's weights under the names of `ml.SiamMAE.CrossDecoder`."""
    ours: State = {}
    blocks = sorted({name.split(".")[1] for name in state if name.startswith("decoder_blocks.")}, key=int)
    norms = [[state[f"decoder_blocks.{n}.norm_kv1.{kind}"] for kind in ("weight", "bias")] for n in blocks]
    same = all(torch.equal(a, b) for norm in norms for a, b in zip(norm, norms[0], strict=True))
    ours["memory_norm.weight"] = norms[0][0] if same else torch.ones_like(norms[0][0])
    ours["memory_norm.bias"] = norms[0][1] if same else torch.zeros_like(norms[0][1])
    for n, (weight, bias) in zip(blocks, norms, strict=True):
        for theirs, own in _NAMES.items():
            for kind in ("weight", "bias"):
                ours[f"blocks.{n}.{own}.{kind}"] = state[f"decoder_blocks.{n}.{theirs}.{kind}"]
        if not same:
            kernel, offset = (f"blocks.{n}.cross.kv.{kind}" for kind in ("weight", "bias"))
            ours[offset] = (ours[offset].double() + ours[kernel].double() @ bias.double()).float()
            ours[kernel] = ours[kernel] * weight
    return ours | {_rename(name): value for name, value in state.items() if name.split(".")[0] in _REST}


def to_public(decoder: State) -> State:
    """The inverse: the weights of our cross-self decoder under ToBo's names, its one memory norm in every block."""
    back = {own: theirs for theirs, own in _NAMES.items()}
    public: State = {}
    for name, value in decoder.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            number, _, part = rest.partition(".")
            part, _, kind = part.rpartition(".")
            public[f"decoder_blocks.{number}.{back[part]}.{kind}"] = value
        elif first == "memory_norm":
            for number in {other.split(".")[1] for other in decoder if other.startswith("blocks.")}:
                public[f"decoder_blocks.{number}.norm_kv1.{rest}"] = value.clone()
        else:
            theirs = next(t for t, own in _REST.items() if own == first)
            public[f"{theirs}.{rest}" if rest else theirs] = value
    return public


def _rename(name: str) -> str:
    first, dot, rest = name.partition(".")
    return _REST[first] + dot + rest


def _decoder(family: Family, weights: Weights) -> Decoder:
    state: dict[str, Tensor] = to_ours(weights.state)
    width, depth = state["embed.weight"].shape[0], len({n.split(".")[1] for n in state if n.startswith("blocks.")})
    heads = heads_of(weights, width, depth, None, prefix="decoder_", usual=USUAL_HEADS.get(width))
    stated = weights.setting("norm_pix_loss")
    ratio = weights.setting("mask_ratio")
    return Decoder(
        state, (width, depth, heads), stated is None or bool(stated), ratio if isinstance(ratio, float) else None
    )


FAMILY = Family(
    "ToBo",
    lambda weights: weights.has("decoder_embed_mae") and weights.has(r"decoder_blocks\.0\.norm_kv1"),
    options=lambda weights: dict(positions="scale"),
    others=DECODER,
    decoder=_decoder,
    left_out="with its cross-self decoder",
    fixed_positions=True,
)
