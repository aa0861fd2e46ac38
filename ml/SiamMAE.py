"""The siamese masked autoencoder (Gupta, Wu, Deng, Fei-Fei 2023, "Siamese Masked Autoencoders", arXiv 2305.14344, §3).

Two frames of one video: f1, the past, is seen whole; of f2, the future, only a few patches are seen. One encoder reads
both, and a decoder predicts f2's hidden patches by looking into f1. What differs from a textbook MAE is the decoder:
its queries are all places of f2, its keys and values are f1's tokens.

Legend: B batch, N patches, K kept (visible) patches, D width, M memory tokens, P pixels in a patch, h w patch grid.
"""

import re
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from mae.files import InputError
from mae.masking import random_masking
from mae.models_mae import (
    ARCHITECTURES,
    LayerNorm,
    MAEEncoder,
    MaskedAutoencoderViT,
    init_weights,
    noise_for,
    positions_for,
    restore_tokens,
)
from mae.patches import grid_size, masked_loss, normalize, normalize_patches
from mae.positions import sincos_positions
from mae.weights import download_pretrained_model
from mae.weights import load_pretrained as prepare_model

__all__ = ["MODELS", "CrossDecoder", "SiamMAE", "build_model", "download_pretrained_model", "prepare_model"]

DecoderKind = Literal["cross-self", "cross", "joint"]
EncoderKind = Literal["siamese", "joint"]


SelfBlock = partial(Block, qkv_bias=True, norm_layer=LayerNorm)  # MAE's own


class CrossAttention(nn.Module):
    """Multi-head attention of queries x [B, N, D] to a memory [B, M, D] → [B, N, D]."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, D / heads]
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossSelfBlock(nn.Module):
    """Cross-attention to f1, then self-attention and MLP; `block` is MAE's, so it can keep MAE's weights."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.cross_norm = LayerNorm(dim)
        self.cross = CrossAttention(dim, num_heads)
        self.block = SelfBlock(dim, num_heads, mlp_ratio)

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


class CrossDecoder(nn.Module):
    """Predicts every patch of f2 from f2's visible tokens and all of f1's (SiamMAE §3, "Decoder").

    kind `cross-self` (the paper's default): cross-attention to f1, self-attention, MLP in each block; `cross`: without
    the self-attention; `joint`: self-attention over both frames' tokens. f2's class token is among the queries, f1's
    among the keys. Both frames get the same positions: the model is not told which came first (no temporal position).
    """

    def __init__(
        self,
        encoder_dim: int,
        patch_size: int,
        grid: tuple[int, int],
        *,
        dim: int = 256,
        depth: int = 4,
        num_heads: int = 8,
        kind: DecoderKind = "cross-self",
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        if kind not in get_args(DecoderKind):
            raise InputError(f"decoder kind {kind!r} is unknown; there are {', '.join(get_args(DecoderKind))}")
        self.kind, self.grid, self.size = kind, grid, (dim, depth, num_heads)
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(dim, grid), requires_grad=False)
        self.memory_norm = nn.Identity() if kind == "joint" else LayerNorm(dim)
        build: Any = {"cross-self": CrossSelfBlock, "cross": CrossBlock, "joint": SelfBlock}[kind]
        self.blocks = nn.ModuleList(build(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.pred = nn.Linear(dim, patch_size**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_weights)

    @classmethod
    def around(cls, mae: MaskedAutoencoderViT, kind: DecoderKind = "cross-self") -> "CrossDecoder":
        """A decoder of the size of MAE's that begins with MAE's weights.

        Cross-attention joins with an output of zero, so that `cross-self` begins by predicting what MAE predicts.
        """
        size, mlp_ratio = mae.decoder_config, mae.encoder_config["mlp_ratio"]
        dim, depth, num_heads = (size[f"decoder_{x}"] for x in ("embed_dim", "depth", "num_heads"))
        decoder = cls(
            mae.embed_dim, mae.patch_size, mae.grid,
            dim=dim, depth=depth, num_heads=num_heads, kind=kind, mlp_ratio=mlp_ratio,
        )  # fmt: skip
        state = mae.state_dict()
        public = {k.removeprefix("decoder_"): v for k, v in state.items() if k.startswith(("decoder_", "mask_token"))}
        if kind == "cross-self":
            public = {re.sub(r"^blocks\.\d+\.", r"\g<0>block.", key): value for key, value in public.items()}
        own = decoder.state_dict()
        decoder.load_state_dict(own | {k: v for k, v in public.items() if k in own})  # `cross` has no self-attention
        for module in decoder.modules():
            if isinstance(module, CrossAttention):
                nn.init.zeros_(module.proj.weight)
        return decoder

    def forward(self, past: Tensor, future: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """f1's tokens [B, M, D], f2's visible tokens [B, 1 + K, D], ids_restore [B, N] → prediction [B, N, P]."""
        positions = positions_for(self.pos_embed, self.grid, grid)
        memory = self.memory_norm(self.embed(past) + positions)
        x = restore_tokens(self.embed(future), self.mask_token, ids_restore) + positions
        if self.kind == "joint":
            x = torch.cat([x, memory], dim=1)
            for block in self.blocks:
                x = block(x)
        else:
            for block in self.blocks:
                x = block(x, memory)
        N = ids_restore.shape[1]
        return self.pred(self.norm(x[:, 1 : 1 + N]))


class SiamMAE(nn.Module):
    """An MAE encoder and a `CrossDecoder`.

    mae: whose encoder is copied, and with `pretrained_decoder` (default: if it was loaded with one) its decoder too;
    else a new decoder of `decoder_size` (width, depth, heads). encoder_kind `siamese` reads each frame by itself with
    the same weights; `joint` reads both frames' tokens together. norm_pix_loss is mae's unless given.
    """

    def __init__(
        self,
        mae: MAEEncoder,
        mask_ratio: float = 0.75,
        device: torch.device | str | None = None,
        *,
        encoder_kind: EncoderKind = "siamese",
        decoder_kind: DecoderKind = "cross-self",
        decoder_size: tuple[int, int, int] = (256, 4, 8),
        pretrained_decoder: bool | None = None,
        norm_pix_loss: bool | None = None,
    ):
        super().__init__()
        if encoder_kind not in get_args(EncoderKind):
            raise InputError(f"encoder kind {encoder_kind!r} is unknown; there are {', '.join(get_args(EncoderKind))}")
        self.mask_ratio, self.encoder_kind, self.decoder_kind = mask_ratio, encoder_kind, decoder_kind
        self.norm_pix_loss = getattr(mae, "norm_pix_loss", True) if norm_pix_loss is None else norm_pix_loss
        self.patch_size, self.grid = mae.patch_size, mae.grid
        self.encoder = MAEEncoder(**mae.encoder_config)
        own = self.encoder.state_dict()
        self.encoder.load_state_dict({key: value for key, value in mae.state_dict().items() if key in own})
        if pretrained_decoder is None:
            pretrained_decoder = getattr(mae, "decoder_is_pretrained", False)
        if pretrained_decoder:
            if not isinstance(mae, MaskedAutoencoderViT):
                raise InputError("pretrained_decoder=True, but this MAE is an encoder alone; pass one with a decoder")
            self.decoder = CrossDecoder.around(mae, decoder_kind)
        else:
            dim, depth, num_heads = decoder_size
            self.decoder = CrossDecoder(
                mae.embed_dim, mae.patch_size, mae.grid,
                dim=dim, depth=depth, num_heads=num_heads, kind=decoder_kind, mlp_ratio=mae.encoder_config["mlp_ratio"],
            )  # fmt: skip
        self.to(device)

    @property
    def config(self) -> dict[str, Any]:
        """All that `build_model` needs to build the model again, as plain values."""
        return dict(
            model="SiamMAE",
            mae=self.encoder.config,
            mask_ratio=self.mask_ratio,
            encoder_kind=self.encoder_kind,
            decoder_kind=self.decoder_kind,
            decoder_size=list(self.decoder.size),
            norm_pix_loss=self.norm_pix_loss,
        )

    def forward(
        self, video: Tensor, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs [B, 2, 3, H, W] (uint8, or floats in [0, 1]) → loss (scalar), prediction [B, N, P], mask [B, N].

        mask is 1 where a patch of f2 was hidden; it follows from `noise` [B, N], or from the samples' `seeds` [B], or
        else from torch's global generator. The loss is the squared error on hidden patches only (§3, "Loss").
        """
        if video.ndim != 5 or video.shape[1:3] != (2, 3):
            raise InputError(f"video has shape {list(video.shape)}; expected [B, 2, 3, H, W]: f1 and f2 in RGB")
        past, future = normalize(video).unbind(1)
        h, w = grid_size(video.shape[-2], video.shape[-1], self.patch_size)
        noise = noise_for(future, h * w, noise, seeds)
        ids_keep, mask, ids_restore = random_masking(noise, self.mask_ratio)
        past_tokens, future_tokens = self.encode_pair(past, future, ids_keep)
        prediction = self.decoder(past_tokens, future_tokens, ids_restore, (h, w))
        return masked_loss(prediction, self.target(future), mask), prediction, mask

    def encode_pair(self, past: Tensor, future: Tensor, ids_keep: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, 3, H, W] of both frames → f1's tokens [B, 1 + N, D], f2's kept [B, 1 + K, D]."""
        past_tokens, future_tokens = self.encoder.tokens(past), self.encoder.tokens(future, ids_keep)
        if self.encoder_kind == "siamese":
            return self.encoder.transform(past_tokens), self.encoder.transform(future_tokens)
        both = self.encoder.transform(torch.cat([past_tokens, future_tokens], dim=1))
        past_tokens, future_tokens = both.split([past_tokens.shape[1], future_tokens.shape[1]], dim=1)
        return past_tokens, future_tokens

    def target(self, future: Tensor) -> Tensor:
        """What is to be predicted: f2's patches [B, N, P] of normalised pixels [B, 3, H, W]."""
        patches = self.patchify(future)
        return normalize_patches(patches) if self.norm_pix_loss else patches

    def encode(self, images: Tensor) -> Tensor:
        """Frames [B, 3, H, W] (uint8, or floats in [0, 1]) → features [B, h, w, D]; see `MAEEncoder.encode`."""
        return self.encoder.encode(images)

    def patchify(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, N, P]."""
        return self.encoder.patchify(images)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, N, P] → [B, 3, H, W]; the grid (h, w) is the model's own unless given."""
        return self.encoder.unpatchify(patches, grid)


# Named models: the MAE inside, and the decoder. tiny and small as the paper and its reproductions have them; base and
# large around MAE's own decoder, as when one starts from the public MAE weights; micro learns in minutes on a laptop.
MODELS: dict[str, dict[str, Any]] = {
    "siammae_tiny_patch16": dict(arch="mae_vit_tiny_patch16"),
    "siammae_small_patch16": dict(arch="mae_vit_small_patch16"),
    "siammae_small_patch8": dict(arch="mae_vit_small_patch8"),
    "siammae_base_patch16": dict(arch="mae_vit_base_patch16", decoder_size=(512, 8, 16)),
    "siammae_large_patch16": dict(arch="mae_vit_large_patch16", decoder_size=(512, 8, 16)),
    "siammae_micro_patch8": dict(
        arch=dict(img_size=64, patch_size=8, embed_dim=128, depth=6, num_heads=4), decoder_size=(128, 2, 4)
    ),
}


def build_model(config: str | dict[str, Any], *, weights: str | None = None, **overrides: Any) -> SiamMAE:
    """A model by name (one of `MODELS`) or from a `config` that a model or a checkpoint gave.

    weights: a public MAE checkpoint, or the folder where it lies, to start from (`prepare_model`); names only.
    overrides: any keyword of `SiamMAE`, such as mask_ratio or device.
    """
    if isinstance(config, str):
        if config not in MODELS:
            raise InputError(f"model {config!r} is unknown; there are {', '.join(MODELS)}")
        arguments: dict[str, Any] = {**MODELS[config], **overrides}
        arch = arguments.pop("arch")
        if isinstance(arch, dict):
            if weights:
                raise InputError(f"there are no public weights of the size of {config}; start it from nothing")
            return SiamMAE(MAEEncoder(**arch), **arguments)
        return SiamMAE(prepare_model(weights, arch) if weights else ARCHITECTURES[arch](), **arguments)
    arguments = {**config, **overrides}
    kind = arguments.pop("model", None)
    if kind != "SiamMAE":
        raise InputError(f"this configuration is of a model {kind!r}; expected 'SiamMAE'")
    return SiamMAE(MAEEncoder(**arguments.pop("mae")), **arguments)
