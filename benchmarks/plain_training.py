"""SiamMAE's training step told plainly: what `ml.SiamMAE` is measured against, in results, in operations and in time.

Each frame goes through the encoder by itself, queries, keys and values have a linear layer each, all patches are
embedded by a convolution and those that stay are gathered (as in the public MAE). There is no dropout. Attention is
either written out (`explicit`: product, softmax, product) or torch's fused one (`sdpa`). Not for use.

Legend: B batch, N patches, K kept patches, D width, M memory tokens, P pixels in a patch.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae.masking import mask_noise, visible_count
from mae.patches import IMAGENET_MEAN, IMAGENET_STD
from ml.SiamMAE import SiamMAE

AttentionKind = Literal["explicit", "sdpa"]


class Attention(nn.Module):
    """Queries from x [B, N, D], keys and values from memory [B, M, D], each by a layer of its own."""

    def __init__(self, dim: int, num_heads: int, kind: AttentionKind):
        super().__init__()
        self.num_heads, self.kind = num_heads, kind
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        B, N, D = x.shape
        d = D // self.num_heads
        q = self.q(x).reshape(B, -1, self.num_heads, d).transpose(1, 2)  # [B, heads, N, d]
        k = self.k(memory).reshape(B, -1, self.num_heads, d).transpose(1, 2)
        v = self.v(memory).reshape(B, -1, self.num_heads, d).transpose(1, 2)
        if self.kind == "sdpa":
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * d**-0.5).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Cross-attention first if `cross`, then self-attention and MLP, all with the norm before and a sum after."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, kind: AttentionKind, cross: bool = False):
        super().__init__()
        if cross:
            self.norm0 = nn.LayerNorm(dim, eps=1e-6)
            self.cross = Attention(dim, num_heads, kind)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, num_heads, kind)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, int(dim * mlp_ratio)), nn.GELU(), nn.Linear(int(dim * mlp_ratio), dim))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        if memory is not None:
            x = x + self.cross(self.norm0(x), memory)
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return x + self.mlp(self.norm2(x))


class PlainSiamMAE(nn.Module):
    """A siamese encoder and a cross-self decoder of the sizes and with the weights of a `SiamMAE`."""

    def __init__(self, ours: SiamMAE, kind: AttentionKind):
        super().__init__()
        encoder, decoder = ours.encoder, ours.decoder
        self.patch_size, self.mask_ratio, self.norm_pix_loss = ours.patch_size, ours.mask_ratio, ours.norm_pix_loss
        size = encoder.encoder_config
        width, mlp_ratio = size["embed_dim"], size["mlp_ratio"]
        dim, depth, heads = decoder.size
        self.mean = nn.Buffer(torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.patch_embed = nn.Conv2d(3, width, self.patch_size, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(encoder.pos_embed.detach().clone(), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, size["num_heads"], mlp_ratio, kind) for _ in range(size["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(decoder.pos_embed.detach().clone(), requires_grad=False)
        self.memory_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, kind, cross=True) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, self.patch_size**2 * 3)
        self.load_state_dict(self.state_dict() | as_plain(ours.state_dict()))

    def encode(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] → tokens [B, 1 + N, D], or [B, 1 + K, D] of the patches that are kept."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        if ids_keep is not None:
            x = torch.gather(x, 1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([class_token, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, past: Tensor, future: Tensor, ids_restore: Tensor) -> Tensor:
        """f1's tokens [B, 1 + N, D] and f2's kept ones [B, 1 + K, D] → prediction [B, N, P]."""
        memory = self.memory_norm(self.decoder_embed(past) + self.decoder_pos_embed)
        x = self.decoder_embed(future)
        B, N = ids_restore.shape
        mask_tokens = self.mask_token.expand(B, N + 1 - x.shape[1], -1)
        places = torch.cat([x[:, 1:], mask_tokens], dim=1)
        places = torch.gather(places, 1, ids_restore.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], places], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x, memory)
        return self.pred(self.decoder_norm(x))[:, 1:]

    def patchify(self, images: Tensor) -> Tensor:
        B, _, H, W = images.shape
        p = self.patch_size
        x = images.reshape(B, 3, H // p, p, W // p, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * 3)

    def forward(self, video: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs uint8 [B, 2, 3, H, W] and seeds [B] → loss, prediction [B, N, P], mask [B, N]."""
        video = (video.float() / 255 - self.mean) / self.std
        past, future = video[:, 0], video[:, 1]
        target = self.patchify(future)
        N = target.shape[1]
        K = visible_count(N, self.mask_ratio)
        ids_shuffle = torch.argsort(mask_noise(seeds, N), dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        mask = torch.ones(len(video), N, device=video.device)
        mask[:, :K] = 0
        mask = torch.gather(mask, 1, ids_restore)
        prediction = self.decode(self.encode(past), self.encode(future, ids_shuffle[:, :K]), ids_restore)
        if self.norm_pix_loss:
            mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6) ** 0.5
        error = ((prediction - target) ** 2).mean(dim=-1)
        return (error * mask).sum() / mask.sum(), prediction, mask


# Our names → the plain ones, in this order; what is fused in ours is then cut apart.
_RENAMED = (
    (r"^encoder\.(patch_embed)\.proj", r"\1"),
    (r"^encoder\.", ""),
    (r"^decoder\.(embed|pos_embed|blocks|norm)\b", r"decoder_\1"),
    (r"^decoder\.", ""),
    (r"\.block\.", "."),
    (r"\.cross_norm\.", ".norm0."),
    (r"\.attn\.", ".attention."),
    (r"\.fc1\.", ".0."),
    (r"\.fc2\.", ".2."),
)


def as_plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of a `SiamMAE`'s parameters (weights, or gradients) → by those of `PlainSiamMAE`."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, plain in _RENAMED:
            name = re.sub(pattern, plain, name)
        fused = re.search(r"\.(qkv|kv)\.", name)
        if fused:
            parts = tensor.chunk(len(fused[1]))
            result |= {name.replace(fused[0], f".{k}."): part for k, part in zip(fused[1], parts, strict=True)}
        else:
            result[name] = tensor
    return result
