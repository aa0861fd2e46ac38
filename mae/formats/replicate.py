"""aweers/replicate_siamMAE: its LayerNorm works over the tokens of each channel, so it is a model of its own.

For evaluation at the size of its training only; nothing else here can start from it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from mae.formats.family import Family, heads_of, load_into
from mae.formats.opening import Weights
from mae.patches import grid_size, normalize


class TokenNorm(nn.Module):
    """(x − mean) / (unbiased std + ε) over the tokens of each channel, as published."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=-2, keepdim=True)
        return self.weight * (x - mean) / (std + 1e-6) + self.bias


class _Attention(nn.Module):
    """Self-attention with a softmax scale of width^-0.5, whatever the number of heads."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.Wq, self.Wk, self.Wv, self.Wo = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for m in (self.Wq, self.Wk, self.Wv))
        out = F.scaled_dot_product_attention(q, k, v, scale=x.shape[-1] ** -0.5)
        return self.Wo(out.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = TokenNorm(dim), TokenNorm(dim)
        self.attention = _Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ReplicateEncoder(nn.Module):
    """Patches, positions, blocks; no class token, no final norm."""

    def __init__(self, patch_size: int, places: int, dim: int, depth: int, num_heads: int, hidden: int):
        super().__init__()
        self.patch_size, self.embed_dim, self.num_heads = patch_size, dim, num_heads
        self.side = math.isqrt(places)
        self.e = nn.Linear(3 * patch_size**2, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, places, dim))
        self.blocks = nn.ModuleList(_Block(dim, num_heads, hidden) for _ in range(depth))

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] (uint8, or floats in [0, 1]), square and of the training's size → [B, h, w, D]."""
        h, w = grid_size(images.shape[-2], images.shape[-1], self.patch_size)
        if (h, w) != (self.side, self.side):
            size = self.side * self.patch_size
            raise InputError(
                f"this model normalises over the tokens of an image, so it takes images of {size}×{size} pixels only, "
                f"not {images.shape[-2]}×{images.shape[-1]}"
            )
        patches = F.unfold(normalize(images), self.patch_size, stride=self.patch_size).mT  # channel, row, column
        x = self.e(patches) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x.unflatten(1, (h, w))


def _build(weights: Weights, num_heads: int | None) -> ReplicateEncoder:
    state = {
        name.removeprefix("encoder.encoder_").removeprefix("embedding."): value
        for name, value in weights.state.items()
        if name.startswith(("encoder.encoder_blocks.", "embedding.e.", "embedding.pos_embed"))
    }
    if "e.weight" not in state or "pos_embed" not in state:
        raise InputError(
            f"{weights.path} holds the encoder of replicate_siamMAE without its embedding: keep encoder.pt and "
            "embedding.pt in one folder, and give the folder"
        )
    dim, pixels = state["e.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    sizes: dict[str, Any] = dict(
        patch_size=math.isqrt(pixels // 3), places=state["pos_embed"].shape[1], dim=dim, depth=depth,
        num_heads=heads_of(weights, dim, depth, num_heads), hidden=state["blocks.0.mlp.0.weight"].shape[0],
    )  # fmt: skip
    with torch.device("meta"):
        encoder = ReplicateEncoder(**sizes)
    load_into(encoder, state, weights, FAMILY.name)
    return encoder.eval()


FAMILY = Family(
    "SiamMAE of replicate_siamMAE",
    lambda weights: weights.has(r"(encoder\.)?encoder_blocks\.0\.attention\.Wq"),
    build=_build,
    left_out="decoder left out; LayerNorm over tokens, so images of the training's size only",
)
