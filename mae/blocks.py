"""Transformer blocks: timm's, for several lengths at once, with a residual stream that keeps to autocast's precision.

Legend: B batch, N tokens, D width, M memory tokens.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Shapes = Sequence[tuple[int, int]]
"""(B, N) of sequences whose tokens lie one behind the other in [ΣB·N, D]"""


class Norm(nn.LayerNorm):
    """A LayerNorm whose output has its input's precision; in autocast it would be float32, and make the stream so.

    Mean and variance are computed in float32 all the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


LayerNorm: Any = partial(Norm, eps=1e-6)  # the public weights were trained with this ε


class Block(timm_vit.Block):
    """timm's pre-norm block as MAE has it: self-attention and MLP, all with biases."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, norm_layer: Any = LayerNorm) -> None:
        super().__init__(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer)

    def forward(self, x: Tensor, shapes: Shapes | None = None) -> Tensor:  # type: ignore[override]
        """Tokens [B, N, D], or with `shapes` several sequences as [ΣB·N, D], each of which attends to itself alone.

        All of them go through the matrices together: the same numbers from fewer and larger products.
        """
        if shapes is None:
            return super().forward(x)
        x = x + self._attend(self.norm1(x), shapes)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, shapes: Shapes) -> Tensor:
        attention: Any = self.attn
        attended = []
        for qkv, (B, N) in zip(attention.qkv(x).split([B * N for B, N in shapes]), shapes, strict=True):
            q, k, v = qkv.view(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            attended.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B * N, -1))
        return torch.cat([attention.proj(x) for x in attended])  # joined earlier, the copy would be kept for backward


def through(blocks: Iterable[nn.Module], x: Tensor, *others: Any, checkpointing: bool = False) -> Tensor:
    """Tokens through one block after the other; others: what each block is given besides, such as a memory [B, M, D].

    In autocast the stream gets its precision here, once. checkpointing: keep only what enters each block, and compute
    the rest again in the backward pass: less memory, the same numbers. No block draws random numbers, so no generator's
    state has to be restored.
    """
    x, others = in_autocast(x), tuple(in_autocast(y) if isinstance(y, Tensor) else y for y in others)
    for block in blocks:
        if checkpointing:
            x = checkpoint(block, x, *others, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, *others)
    return x


def in_autocast(x: Tensor) -> Tensor:
    """The tensor in the precision that autocast computes matrix products in, where it is on."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def through_together(blocks: Iterable[nn.Module], *sequences: Tensor, checkpointing: bool = False) -> list[Tensor]:
    """Sequences [B, N, D] of several lengths through blocks of kind `Block`, as `through` takes each."""
    shapes = [(len(x), x.shape[1]) for x in sequences]
    x = torch.cat([x.flatten(0, 1) for x in sequences])
    parts = through(blocks, x, shapes, checkpointing=checkpointing).split([B * N for B, N in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]
