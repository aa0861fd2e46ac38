"""A plain vision transformer with the differences that public ones have: one encoder for all families of weights.

Legend: B batch, F frames, T steps in time, N patches, D width, h w patch grid, H W pixels; t frames in a tubelet.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import GluMlp, Mlp, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from mae.patches import IMAGENET_MEAN, IMAGENET_STD, grid_size, normalize, time_steps

Positions = Literal["scale", "size", "antialias"]


class Encoder(nn.Module):
    """Pre-norm blocks with exact GELU over patches or tubelets; parameter names are MAE's (and timm's).

    positions: how the table [1, N, D] is fitted to another grid, always bicubically. `size`: to the size (h, w);
    `antialias`: the same with antialiasing; `scale`: by the factors (h + 0.1) / M and (w + 0.1) / M of a table of
    M·M places, which are what the sampling grid follows (DINO's way, and CropMAE's after it).
    table: whether the table is stored with places for the class token ("class"), without ("patches"), as places plus
    steps ("space-time", MAE-ST), or not at all ("fixed", VideoMAE). registers: tokens beside the class token, without
    positions. steps: tubelets in time of a clip.
    """

    pos_embed: Tensor
    pos_embed_spatial: Tensor
    pos_embed_temporal: Tensor
    pos_embed_class: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        t_patch_size: int = 0,
        steps: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        eps: float = 1e-6,
        positions: Positions = "size",
        table: Literal["class", "patches", "space-time", "fixed"] = "class",
        fixed_grid: bool = True,
        class_token: bool = True,
        registers: int = 0,
        layer_scale: bool = False,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        pre_norm: bool = False,
        gated: bool = False,
        final_norm: bool = True,
    ):
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=eps)
        self.grid, self.patch_size, self.embed_dim, self.num_heads = grid, patch_size, embed_dim, num_heads
        self.t_patch_size, self.steps, self.eps, self.mlp_ratio = t_patch_size, steps, eps, mlp_ratio
        self.mean, self.std = tuple(mean), tuple(std)
        self.interpolation, self.table, self.fixed_grid = positions, table, fixed_grid
        self.prefix_tokens = class_token + registers
        mlp: Any = partial(GluMlp, gate_last=False) if gated else Mlp
        patch: Any = nn.Conv3d if t_patch_size else nn.Conv2d
        size = (t_patch_size, patch_size, patch_size) if t_patch_size else (patch_size, patch_size)
        self.patch_embed = nn.ModuleDict({"proj": patch(3, embed_dim, size, stride=size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, embed_dim)) if registers else None
        for name, count in self._tables(class_token).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(1, count, embed_dim), requires_grad=False))
        self.norm_pre = norm(embed_dim) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_layer=norm,
                init_values=1e-5 if layer_scale else None,
                mlp_layer=mlp,
                act_layer=nn.SiLU if gated else nn.GELU,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = norm(embed_dim) if final_norm else nn.Identity()

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] (uint8, or floats in [0, 1]) → features of the last block after its norm, [B, h, w, D].

        A model of clips gets each image as a still clip, and its features are averaged over time.
        """
        if self.t_patch_size:
            still = normalize(images, self.mean, self.std)[:, None].expand(
                -1, self.t_patch_size * self.steps, *[-1] * 3
            )
            return self._features(still).mean(dim=1)
        return self._features(normalize(images, self.mean, self.std)[:, None])[:, 0]

    def encode_clip(self, video: Tensor) -> Tensor:
        """Clips [B, F, 3, H, W] (uint8, or floats in [0, 1]) → features [B, T, h, w, D]."""
        return self._features(normalize(video, self.mean, self.std))

    def positions(self, h: int, w: int, steps: int = 1) -> Tensor:
        """The table for a grid, [1, steps·h·w, D], with the class token's place in front where the model has one."""
        if self.table == "fixed":
            return self._fixed_positions(steps, h, w)
        if self.table == "space-time":
            spatial = self._resample(self.pos_embed_spatial, h, w, 0)
            temporal = self.pos_embed_temporal
            if temporal.shape[1] != steps:
                temporal = F.interpolate(temporal.mT, steps, mode="linear").mT
            places = (temporal[:, :, None] + spatial[:, None]).flatten(1, 2)
            return torch.cat([self.pos_embed_class, places], dim=1) if self.cls_token is not None else places
        return self._resample(self.pos_embed, h, w, 1 if self.table == "class" else 0)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, F, 3, H, W] → class token, registers and patches, with positions: [B, … + N, D]."""
        B, _, _, H, W = pixels.shape
        h, w = grid_size(H, W, self.patch_size)
        if self.t_patch_size:
            steps = time_steps(pixels.shape[1], self.t_patch_size)
            x = self.patch_embed["proj"](pixels.transpose(1, 2))
        else:
            steps, x = 1, self.patch_embed["proj"](pixels[:, 0])
        positions = self.positions(h, w, steps)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if self.cls_token is not None and self.table in ("class", "space-time"):
            prefix[0] = prefix[0] + positions[:, :1]
            positions = positions[:, 1:]
        x = x.flatten(2).transpose(1, 2) + positions
        return torch.cat([*(token.expand(B, -1, -1) for token in prefix), x], dim=1)

    def _features(self, pixels: Tensor) -> Tensor:
        x = self.norm_pre(self.tokens(pixels))
        for block in self.blocks:
            x = block(x)
        h, w = grid_size(pixels.shape[-2], pixels.shape[-1], self.patch_size)
        return self.norm(x)[:, self.prefix_tokens :].unflatten(1, (-1, h, w))

    def _tables(self, class_token: bool) -> dict[str, int]:
        places = self.grid[0] * self.grid[1]
        if self.table == "space-time":
            own = {"pos_embed_spatial": places, "pos_embed_temporal": self.steps}
            return {**own, "pos_embed_class": 1} if class_token else own
        return {} if self.table == "fixed" else {"pos_embed": places + (self.table == "class")}

    def _resample(self, table: Tensor, h: int, w: int, prefix: int) -> Tensor:
        """The table [1, prefix + N, D] for a grid (h, w)."""
        if self.interpolation != "scale":
            antialias = self.interpolation == "antialias"
            return resample_abs_pos_embed(table, [h, w], list(self.grid), prefix, antialias=antialias)
        if not torch.compiler.is_compiling() and (h, w) == self.grid:
            return table
        square = table[:, prefix:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        factors = ((h + 0.1) / self.grid[0], (w + 0.1) / self.grid[1])
        places = F.interpolate(square, scale_factor=factors, mode="bicubic").permute(0, 2, 3, 1)
        return torch.cat([table[:, :prefix], places.flatten(1, 2)], dim=1)

    def _fixed_positions(self, steps: int, h: int, w: int) -> Tensor:
        """VideoMAE's sines and cosines of the flattened index of a place, of the grid that it was trained on."""
        own = (self.steps, *self.grid) if self.fixed_grid else (steps, h, w)
        index = torch.arange(math.prod(own), dtype=torch.float64)
        angles = index[:, None] / 10_000 ** (2 * (torch.arange(self.embed_dim) // 2).double() / self.embed_dim)
        angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
        table = angles.float().to(next(self.parameters()).device).unflatten(0, own)
        if own != (steps, h, w):
            table = F.interpolate(table.permute(3, 0, 1, 2)[None], (steps, h, w), mode="trilinear")[0].permute(
                1, 2, 3, 0
            )
        return table.flatten(0, 2)[None]
