<<<<<<< HEAD
"""Transformer blocks: timm's, for several lengths at once, with a residual stream that keeps to autocast's precision.

Legend: B batch, N tokens, D width, M memory tokens.
=======
"""Parts of the transformers: blocks for several stacks of tokens together, norms that keep autocast's dtype.

Legend: B samples, N tokens of one, D width.
>>>>>>> 2eb48fc (J1, J3, J4: a step waits for no copy (pixel statistics as buffers); under autocast the stream stays bfloat16; f1 and f2 through the same matrices together)
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

<<<<<<< HEAD
import timm.models.vision_transformer as timm_vit
import torch
=======
import torch
from timm.models.vision_transformer import Block
>>>>>>> 2eb48fc (J1, J3, J4: a step waits for no copy (pixel statistics as buffers); under autocast the stream stays bfloat16; f1 and f2 through the same matrices together)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Shapes = Sequence[tuple[int, int]]
<<<<<<< HEAD
"""(B, N) of sequences whose tokens lie one behind the other in [ΣB·N, D]"""


class Norm(nn.LayerNorm):
    """A LayerNorm whose output has its input's precision; in autocast it would be float32, and make the stream so.

    Mean and variance are computed in float32 all the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
=======
"""(B, N) of each stack of tokens"""


class LayerNorm(nn.LayerNorm):
    """torch's, with the ε of the public weights. Under autocast a bfloat16 stream stays bfloat16.

    Autocast would return float32, and so promote every addition after it. The statistics are float32 either way.
    """

    def __init__(self, dim: int, eps: float = 1e-6, **where: Any) -> None:
        super().__init__(dim, eps, **where)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16 or not torch.is_autocast_enabled(x.device.type):
>>>>>>> 2eb48fc (J1, J3, J4: a step waits for no copy (pixel statistics as buffers); under autocast the stream stays bfloat16; f1 and f2 through the same matrices together)
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


<<<<<<< HEAD
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
=======
class TransformerBlock(Block):
    """timm's pre-norm block. Given `shapes`, its tokens [sum of B·N, D] are several stacks: all go through the same
    matrices together, and each sample attends to itself."""

    attn: Any
    norm1: Any
    norm2: Any
    mlp: Any

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6) -> None:
        norm_layer: Any = partial(LayerNorm, eps=eps)
        super().__init__(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer)

    def forward(self, x: Tensor, shapes: Shapes | None = None) -> Tensor:  # type: ignore[override]
        if shapes is None:
            return super().forward(x)
        x = x + self.attention(self.norm1(x), shapes)
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor, shapes: Shapes) -> Tensor:
        """Tokens [sum of B·N, D] → the same shape."""
        mixed = []
        for qkv, (B, N) in zip(self.attn.qkv(x).split([B * N for B, N in shapes]), shapes, strict=True):
            q, k, v = qkv.view(B, N, 3, self.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B * N, -1)
            mixed.append(self.attn.proj(y))  # each apart: joined before it, a copy of y would be kept for backward
        return torch.cat(mixed)


def through(blocks: Iterable[nn.Module], x: Tensor, *more: Any, checkpointing: bool = False) -> Tensor:
    """Tokens through one block after the other; more: what each block takes beside them (a memory, shapes).

    checkpointing: keep only what enters each block, and compute the rest again in the backward pass: less memory, the
    same numbers. No block draws random numbers, so no generator's state has to be restored.
    """
    for block in blocks:
        if checkpointing:
            x = checkpoint(block, x, *more, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, *more)
    return x


def added(x: Tensor, other: Tensor) -> Tensor:
    """The sum; a bfloat16 x (autocast's) is not promoted by float32 positions."""
    return x + (other.to(x.dtype) if x.dtype == torch.bfloat16 else other)
>>>>>>> 2eb48fc (J1, J3, J4: a step waits for no copy (pixel statistics as buffers); under autocast the stream stays bfloat16; f1 and f2 through the same matrices together)
