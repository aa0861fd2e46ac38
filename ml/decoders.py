"""The decoder of SiamMAE and its kinds (Gupta et al. 2023, §3, "Decoder").

Legend: B pasts in a batch, F futures of each (what is [B·F, …] has the futures of the first past first), N patches,
K kept (visible) patches, D width, M memory tokens, P pixels in a patch.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.layers import AttentionRope, Mlp, apply_rot_embed_cat, build_rotary_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from mae.blocks import Block, LayerNorm, through
from mae.models_mae import MaskedAutoencoderViT, init_weights, positions_for, restore_tokens
from mae.positions import sincos_positions


class CrossAttention(nn.Module):
    """Multi-head attention of queries x [B·F, N, D] to a memory [B, M, D] → [B·F, N, D].

    Queries do not see each other, so those of all futures of one past are taken together, and f1's keys and values are
    computed once. rotary [N, 2 · D / heads]: the sines and cosines by which queries, keys and values are turned, if
    any; what comes out is turned back, so that it tells how far away it was found.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, rotary: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x, memory, rotary)
        found = F.scaled_dot_product_attention(q, k, v)
        if rotary is not None:
            sines, cosines = rotary.chunk(2, dim=-1)
            found = turned(found, torch.cat([-sines, cosines], dim=-1))
        return self.proj(found.transpose(1, 2).reshape(x.shape))

    def heads(self, x: Tensor, memory: Tensor, rotary: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, F·N, D / heads], keys and values [B, heads, M, D / heads]."""
        q = self.q(x).reshape(len(memory), -1, self.num_heads, x.shape[-1] // self.num_heads).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k, v = turned(q, rotary), turned(k, rotary), turned(v, rotary)
        return q, k, v


def turned(x: Tensor, rotary: Tensor) -> Tensor:
    """Tokens [B, heads, F·N, d] of F frames, each turned by the sines and cosines [N, 2·d] of its place."""
    return apply_rot_embed_cat(x, rotary.repeat(x.shape[2] // len(rotary), 1)).to(x)


class CrossSelfBlock(nn.Module):
    """Cross-attention to f1, then self-attention and MLP; `block` is MAE's, so it can keep MAE's weights."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.cross_norm = LayerNorm(dim)
        self.cross = CrossAttention(dim, num_heads)
        self.block = Block(dim, num_heads, mlp_ratio)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.block(x + self.cross(self.cross_norm(x), memory))


class CrossBlock(nn.Module):
    """Cross-attention to f1, then MLP: the places of f2 do not see each other."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.cross_norm = LayerNorm(dim)
        self.cross = CrossAttention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.cross(self.cross_norm(x), memory)
        return x + self.mlp(self.norm2(x))


class RotaryBlock(CrossSelfBlock):
    """As `CrossSelfBlock`, and both attentions know how far apart two places are (rotary positions, Su et al. 2021,
    arXiv 2104.09864, by rows and columns): a query can ask for "two patches to the left" wherever it stands."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__(dim, num_heads, mlp_ratio)
        self.block.attn = AttentionRope(dim, num_heads, num_prefix_tokens=0)

    def forward(self, x: Tensor, memory: Tensor, rotary: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.cross(self.cross_norm(x), memory, rotary)
        x = x + self.block.attn(self.block.norm1(x), rotary)
        return x + self.block.mlp(self.block.norm2(x))


def rotary_positions(dim: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Sines and cosines [1 + N, 2 · dim] for heads of width dim: the class token is not turned, a patch by its row and
    column times dim / 4 rates each, from a quarter of a turn a patch down to a 64th: fine enough to tell neighbours
    apart, coarse enough not to repeat within the grid."""
    rates = torch.pi / 2 * 16.0 ** -torch.linspace(0, 1, dim // 4, device=device)
    sines, cosines = build_rotary_pos_embed(list(grid), bands=rates, in_pixels=False, device=device)
    return torch.cat([F.pad(sines, (0, 0, 1, 0)), F.pad(cosines, (0, 0, 1, 0), value=1.0)], dim=-1)


class DecoderBlocks(NamedTuple):
    """What a kind of decoder is made of."""

    block: Callable[..., nn.Module]
    """of width, heads and MLP ratio; takes tokens, and the memory [B, M, D] that it looks into unless `joint`"""
    joint: bool = False
    """f1's tokens are not a memory, but stand among f2's"""
    rotary: bool = False
    """takes `rotary_positions` besides"""


# To add a decoder, write its block and give it a name here and in `ml.config.DecoderKind`.
DECODERS: dict[str, DecoderBlocks] = {
    "cross-self": DecoderBlocks(CrossSelfBlock),
    "cross": DecoderBlocks(CrossBlock),
    "joint": DecoderBlocks(Block, joint=True),
    "rotary": DecoderBlocks(RotaryBlock, rotary=True),
}


def takes_over(kind: str, trained: str) -> bool:
    """Whether a decoder of a kind has the parts of one that was trained on pairs, and so can begin with its weights."""
    return kind == trained or (kind, trained) == ("rotary", "cross-self")


class CrossDecoder(nn.Module):
    """Predicts every patch of f2 from f2's visible tokens and all of f1's (SiamMAE §3, "Decoder").

    kind, one of `DECODERS`: `cross-self` (the paper's default): cross-attention to f1, self-attention, MLP in each
    block; `cross`: without the self-attention; `joint`: self-attention over both frames' tokens; `rotary`: cross-self
    with rotary positions (not the paper's). f2's class token is among the queries, f1's among the keys. Both frames get
    the same positions: the model is not told which came first (no temporal position). `checkpointing` (an attribute) is
    as in `MAEEncoder`.
    """

    checkpointing = False

    def __init__(
        self,
        encoder_dim: int,
        patch_size: int,
        grid: tuple[int, int],
        *,
        dim: int = 256,
        depth: int = 4,
        num_heads: int = 8,
        kind: str = "cross-self",
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        if kind not in DECODERS:
            raise InputError(f"decoder kind {kind!r} is unknown; there are {', '.join(DECODERS)}")
        build, self.joint, self.rotary = DECODERS[kind]
        if self.rotary and (dim % num_heads or dim // num_heads % 4):
            raise InputError(
                f"a decoder {dim} wide with {num_heads} heads cannot be rotary: a head turns rows and columns in "
                "pairs, so its width must be a multiple of 4; choose another decoder_embed_dim or decoder_num_heads"
            )
        self.grid, self.size = grid, (dim, depth, num_heads)
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(dim, grid), requires_grad=False)
        self.memory_norm = nn.Identity() if self.joint else LayerNorm(dim)
        self.blocks = nn.ModuleList(build(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.pred = nn.Linear(dim, patch_size**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_weights)

    @classmethod
    def around(cls, mae: MaskedAutoencoderViT, kind: str = "cross-self") -> "CrossDecoder":
        """A decoder of the size of MAE's that begins with MAE's weights, as far as it has the same parts.

        Cross-attention starts with an output of zero, so that `cross-self` begins by predicting what MAE predicts. Of
        weights that were trained on pairs all is taken over; `rotary` takes over those of `cross-self`, too.
        """
        size, mlp_ratio = mae.decoder_config, mae.encoder_config["mlp_ratio"]
        if mae.cross_decoder is not None and takes_over(kind, mae.cross_decoder.kind):
            decoder = cls(mae.embed_dim, mae.patch_size, mae.grid, kind=kind, **mae.cross_decoder.sizes)
            decoder.load_state_dict(mae.cross_decoder.state)
            return decoder
        dim, depth, num_heads = (size[f"decoder_{x}"] for x in ("embed_dim", "depth", "num_heads"))
        decoder = cls(
            mae.embed_dim, mae.patch_size, mae.grid,
            dim=dim, depth=depth, num_heads=num_heads, kind=kind, mlp_ratio=mlp_ratio,
        )  # fmt: skip
        own = decoder.state_dict()
        for key, value in mae.state_dict().items():
            if key.startswith(("decoder_", "mask_token")):
                name = key.removeprefix("decoder_")
                inner = re.sub(r"^blocks\.\d+\.", r"\g<0>block.", name)  # where a kind has MAE's block inside
                own |= {k: value for k in (name, inner) if k in own}
        decoder.load_state_dict(own)
        for module in decoder.modules():
            if isinstance(module, CrossAttention):
                nn.init.zeros_(module.proj.weight)
        return decoder

    def forward(self, past: Tensor, future: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of f1 [B, M, D] (or of two pasts, one after the other), and the futures' visible ones [B·F, 1 + K, D];
        ids_restore [B·F, N] → [B·F, N, P]."""
        positions = positions_for(self.pos_embed, self.grid, grid)
        memory = self.embed(past)
        memory = self.memory_norm(memory + positions.repeat(1, memory.shape[1] // positions.shape[1], 1))
        x = restore_tokens(self.embed(future), self.mask_token, ids_restore) + positions
        checkpointing = self.checkpointing and self.training
        if self.joint:
            x = torch.cat([x, memory.repeat_interleave(len(x) // len(memory), dim=0)], dim=1)
            x = through(self.blocks, x, checkpointing=checkpointing)
        else:
            dim, _, heads = self.size
            others = (rotary_positions(dim // heads, grid, x.device),) if self.rotary else ()
            x = through(self.blocks, x, memory, *others, checkpointing=checkpointing)
        N = ids_restore.shape[1]
        return self.pred(self.norm(x[:, 1 : 1 + N]))
