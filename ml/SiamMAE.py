"""The siamese masked autoencoder (Gupta, Wu, Deng, Fei-Fei 2023, "Siamese Masked Autoencoders", arXiv 2305.14344, §3).

Two frames of one video: f1, the past, is seen whole; of f2, the future, only a few patches are seen. One encoder reads
both, and a decoder predicts f2's hidden patches by looking into f1. What differs from a textbook MAE is the decoder:
its queries are all places of f2, its keys and values are f1's tokens. One f1 may have several futures, each a pair with
it: f1 is then read once.

Legend: B pasts in a batch, F futures of each (what is [B·F, …] has the futures of the first past first), N patches,
K kept (visible) patches, D width, M memory tokens, P pixels in a patch, h w patch grid.
"""

import re
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from mae.masking import mask_noise, random_masking
from mae.models_mae import (
    ARCHITECTURES,
    LayerNorm,
    MAEEncoder,
    MaskedAutoencoderViT,
    init_weights,
    noise_for,
    positions_for,
    restore_tokens,
    through,
)
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, pixel_statistics
from mae.patches import denormalize, grid_size, masked_loss, normalize, normalize_patches
from mae.positions import sincos_positions
from mae.weights import download_pretrained_model, load_pretrained_st
from mae.weights import load_pretrained as prepare_model

__all__ = ["MODELS", "CrossDecoder", "Model", "SiamMAE", "build_model", "download_pretrained_model", "prepare_model"]

DecoderKind = Literal["cross-self", "cross", "joint"]
EncoderKind = Literal["siamese", "joint"]


SelfBlock = partial(Block, qkv_bias=True, norm_layer=LayerNorm)  # MAE's own


class CrossAttention(nn.Module):
    """Multi-head attention of queries x [B·F, N, D] to a memory [B, M, D] → [B·F, N, D].

    Queries do not see each other, so those of all futures of one past are taken together, and f1's keys and values are
    computed once.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        B, _, D = memory.shape
        q = self.q(x).reshape(B, -1, self.num_heads, D // self.num_heads).transpose(1, 2)  # [B, heads, F·N, D / heads]
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


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
    `checkpointing` (an attribute) is as in `MAEEncoder`.
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
        if mae.cross_decoder is not None and kind == mae.cross_decoder.kind:  # of weights that were trained on pairs
            decoder = cls(mae.embed_dim, mae.patch_size, mae.grid, kind=kind, **mae.cross_decoder.sizes)
            decoder.load_state_dict(mae.cross_decoder.state)
            return decoder
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
        """f1's tokens [B, M, D], the futures' visible ones [B·F, 1 + K, D], ids_restore [B·F, N] → [B·F, N, P]."""
        positions = positions_for(self.pos_embed, self.grid, grid)
        memory = self.memory_norm(self.embed(past) + positions)
        x = restore_tokens(self.embed(future), self.mask_token, ids_restore) + positions
        checkpointing = self.checkpointing and self.training
        if self.kind == "joint":
            x = torch.cat([x, memory.repeat_interleave(len(x) // len(memory), dim=0)], dim=1)
            x = through(self.blocks, x, checkpointing=checkpointing)
        else:
            x = through(self.blocks, x, memory, checkpointing=checkpointing)
        N = ids_restore.shape[1]
        return self.pred(self.norm(x[:, 1 : 1 + N]))


class SiamMAE(nn.Module):
    """An MAE encoder and a `CrossDecoder`.

    mae: whose encoder is copied, and with `pretrained_decoder` (default: if it was loaded with one) its decoder too;
    else a new decoder of `decoder_size` (width, depth, heads). encoder_kind `siamese` reads each frame by itself with
    the same weights; `joint` reads both frames' tokens together. norm_pix_loss is mae's unless given.

    How it is computed, which is no part of `config`: checkpointing keeps only what enters each block in training and
    computes the rest twice. decoder_float32 takes the decoder out of autocast's reach, in full precision.
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
        checkpointing: bool = False,
        decoder_float32: bool = False,
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
            taken = getattr(mae, "cross_decoder", None)
            pretrained_decoder = getattr(mae, "decoder_is_pretrained", False) or (taken and taken.kind == decoder_kind)
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
        self.encoder.checkpointing = self.decoder.checkpointing = checkpointing
        self.decoder_float32 = decoder_float32
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

        A past may have F futures, [B, 1 + F, 3, H, W] (`dataset_loader`'s `futures`): it is read once, and prediction
        and mask are [B·F, …], number b·F + f the f-th future of past b. mask is 1 where a patch was hidden; it follows
        from `noise` [B·F, N], or from the samples' `seeds` [B], of which the first future's mask does not depend on F,
        or else from torch's global generator. The loss is the squared error on hidden patches only (§3, "Loss").
        """
        if video.ndim != 5 or video.shape[1] < 2 or video.shape[2] != 3:
            raise InputError(
                f"video has shape {list(video.shape)}; expected [B, 2, 3, H, W]: f1 and f2 in RGB, or more futures"
            )
        futures = video.shape[1] - 1
        if futures > 1 and self.encoder_kind == "joint":
            raise InputError(
                f"a joint encoder reads f1 anew with each future, so {futures} futures cannot share it; use futures=1, "
                "or the siamese encoder"
            )
        frames = self.normalize(video)
        past, future = frames[:, 0], frames[:, 1:].flatten(0, 1)
        h, w = grid_size(video.shape[-2], video.shape[-1], self.patch_size)
        if noise is None and seeds is not None:
            noise = mask_noise(seeds.to(video.device), futures * h * w).reshape(-1, h * w)  # one stream a sample
        noise = noise_for(future, h * w, noise, None)
        ids_keep, mask, ids_restore = random_masking(noise, self.mask_ratio)
        past_tokens, future_tokens = self.encode_pair(past, future, ids_keep)
        prediction = self.decode(past_tokens, future_tokens, ids_restore, (h, w))
        return masked_loss(prediction, self.target(future), mask), prediction, mask

    def encode_pair(self, past: Tensor, future: Tensor, ids_keep: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels of f1 [B, 3, H, W] and the futures [B·F, …] → [B, 1 + N, D], and kept [B·F, 1 + K, D]."""
        past_tokens, future_tokens = self.encoder.tokens(past), self.encoder.tokens(future, ids_keep)
        if self.encoder_kind == "siamese":
            return self.encoder.transform(past_tokens), self.encoder.transform(future_tokens)
        both = self.encoder.transform(torch.cat([past_tokens, future_tokens], dim=1))
        past_tokens, future_tokens = both.split([past_tokens.shape[1], future_tokens.shape[1]], dim=1)
        return past_tokens, future_tokens

    def decode(self, past: Tensor, future: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """What `encode_pair` gave → the prediction [B·F, N, P], in full precision if `decoder_float32`."""
        if not self.decoder_float32:
            return self.decoder(past, future, ids_restore, grid)
        with torch.autocast(past.device.type, enabled=False):
            return self.decoder(past.float(), future.float(), ids_restore, grid)

    def target(self, future: Tensor) -> Tensor:
        """What is to be predicted: f2's patches [B, N, P] of normalised pixels [B, 3, H, W]."""
        patches = self.patchify(future)
        return normalize_patches(patches) if self.norm_pix_loss else patches

    def pairs_in(self, video: Tensor) -> int:
        """How many pairs a batch [..., 1 + F, 3, H, W] holds: each future is one."""
        return video.shape[:-4].numel() * (video.shape[-4] - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Frames [B, 3, H, W] (uint8, or floats in [0, 1]) → features [B, h, w, D]; see `MAEEncoder.encode`."""
        return self.encoder.encode(images)

    def normalize(self, frames: Tensor) -> Tensor:
        """Frames [..., 3, H, W] (uint8, or floats in [0, 1]) → the pixels that the model reads and predicts."""
        return normalize(frames)

    def denormalize(self, pixels: Tensor) -> Tensor:
        """The inverse of `normalize`: [..., 3, H, W] in [0, 1]."""
        return denormalize(pixels)

    def patchify(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, N, P]."""
        return self.encoder.patchify(images)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, N, P] → [B, 3, H, W]; the grid (h, w) is the model's own unless given."""
        return self.encoder.unpatchify(patches, grid)


Model = SiamMAE | SpatiotemporalMAE  # interchangeable in training, pictures and evaluation

# Named models: the MAE inside, and the decoder. tiny and small as the paper and its reproductions have them; base and
# large around MAE's own decoder, as when one starts from the public MAE weights; micro learns in minutes on a laptop.
# The MAE-ST of these sizes have 16 frames and their paper's decoder; their micro has 8 frames.
_MICRO_CLIPS = dict(
    img_size=64, patch_size=8, num_frames=8, pred_t_dim=4, embed_dim=128, depth=6, num_heads=4,
    decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4,
)  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "siammae_tiny_patch16": dict(arch="mae_vit_tiny_patch16"),
    "siammae_small_patch16": dict(arch="mae_vit_small_patch16"),
    "siammae_small_patch8": dict(arch="mae_vit_small_patch8"),
    "siammae_base_patch16": dict(arch="mae_vit_base_patch16", decoder_size=(512, 8, 16)),
    "siammae_large_patch16": dict(arch="mae_vit_large_patch16", decoder_size=(512, 8, 16)),
    "siammae_micro_patch8": dict(
        arch=dict(img_size=64, patch_size=8, embed_dim=128, depth=6, num_heads=4), decoder_size=(128, 2, 4)
    ),
    **{name.replace("_vit", ""): dict(arch=name) for name in ARCHITECTURES_ST},
    "mae_st_micro_patch8": dict(arch=_MICRO_CLIPS),
}


def build_model(config: str | dict[str, Any], *, weights: str | None = None, **overrides: Any) -> Any:
    """A `Model` by name (one of `MODELS`) or from a `config` that a model or a checkpoint gave.

    weights: a public MAE checkpoint, or the folder where it lies, to start from (`prepare_model`); names only. A MAE-ST
    starts from a public MAE-ST or, inflated, from an image MAE (`load_pretrained_st`).
    overrides: any keyword of `SiamMAE`, or of `SpatiotemporalMAE`, such as mask_ratio or device.
    """
    if isinstance(config, str):
        if config not in MODELS:
            raise InputError(f"model {config!r} is unknown; there are {', '.join(MODELS)}")
        arguments: dict[str, Any] = {**MODELS[config], **overrides}
        arch = arguments.pop("arch")
        of_clips = config.startswith("mae_st")
        if isinstance(arch, dict):
            if weights and of_clips:
                raise InputError(f"there are no public weights of the size of {config}; start it from nothing")
            if weights:
                mae = prepare_model(weights, None)
                if any(mae.encoder_config[name] != size for name, size in arch.items() if name != "img_size"):
                    raise InputError(f"{weights} holds an encoder of {mae.encoder_config}; {config} has one of {arch}")
                return SiamMAE(mae, **arguments)
            return SpatiotemporalMAE(**{**arch, **arguments}) if of_clips else SiamMAE(MAEEncoder(**arch), **arguments)
        if of_clips:
            return load_pretrained_st(weights, arch, **arguments) if weights else ARCHITECTURES_ST[arch](**arguments)
        return SiamMAE(prepare_model(weights, arch) if weights else ARCHITECTURES[arch](), **arguments)
    arguments = {**config, **overrides}
    kind = arguments.pop("model", None)
    if kind == "MAE-ST":
        return SpatiotemporalMAE(**{**pixel_statistics(config), **arguments})
    if kind != "SiamMAE":
        raise InputError(f"this configuration is of a model {kind!r}; expected 'SiamMAE' or 'MAE-ST'")
    return SiamMAE(MAEEncoder(**arguments.pop("mae")), **arguments)
