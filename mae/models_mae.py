"""The masked autoencoder of images (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", 2111.06377).

A plain vision transformer that sees only the visible patches, and a small decoder that sees all places. Parameter
names are those of the public weights. What differs from the public code: frames come in as uint8 and are normalised
here, only visible patches are embedded at all, and the image may have any size that the patch divides.

Legend: B batch, N patches, K kept (visible) patches, D width, P pixels in a patch, h w patch grid, H W pixels.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from mae.blocks import Block, Norm, through, through_together
from mae.masking import check_some_hidden, mask_noise, random_masking
from mae.patches import grid_size, masked_loss, normalize, normalize_patches, patchify, unpatchify
from mae.positions import sincos_positions

Model = TypeVar("Model", bound=nn.Module)


class MAEEncoder(nn.Module):
    """The vision transformer of MAE: patches with fixed positions, a class token, pre-norm blocks, a final norm.

    `checkpointing` (an attribute) makes training compute each block a second time in place of keeping its inside.
    """

    checkpointing = False

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.grid = grid_size(height, width, patch_size)
        self.encoder_config: dict[str, Any] = dict(
            img_size=img_size, patch_size=patch_size, embed_dim=embed_dim,
            depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio,
        )  # fmt: skip
        if norm_eps != 1e-6:
            self.encoder_config["norm_eps"] = norm_eps
        layer_norm: Any = partial(Norm, eps=norm_eps)
        self.patch_embed = PatchEmbed((height, width), patch_size, 3, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_positions(embed_dim, self.grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, norm_layer=layer_norm) for _ in range(depth))
        self.norm = layer_norm(embed_dim)
        nn.init.normal_(self.cls_token, std=0.02)
        self.apply(init_weights)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(embed_dim, -1))  # as the linear map that it is

    @property
    def config(self) -> dict[str, Any]:
        """All that is needed to build the module again, as plain values."""
        return dict(self.encoder_config)

    def image_encoder(self) -> "MAEEncoder":
        """Itself: see `mae.pretraining`, as for the next two."""
        return self

    def public_state_dict(self) -> dict[str, Tensor]:
        return self.state_dict()

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        return self.state_dict(), self.config, "the encoder, under timm's names"

    def patchify(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, N, P]."""
        return patchify(images, self.patch_size)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, N, P] → [B, 3, H, W]; the grid (h, w) is the model's own unless given."""
        return unpatchify(patches, self.patch_size, grid or self.grid)

    def tokens(self, pixels: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Normalised pixels [B, 3, H, W] → the class token and the kept patches, with positions: [B, 1 + K, D].

        The hidden patches are left out before the embedding, so they cost nothing and cannot leak.
        """
        B, _, H, W = pixels.shape
        p = self.patch_size
        h, w = grid_size(H, W, p)
        patches = pixels.reshape(B, 3, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, -1)  # channel first
        class_position, positions = positions_for(self.pos_embed, self.grid, (h, w)).split([1, h * w], dim=1)
        if ids_keep is not None:
            patches = patches[torch.arange(B, device=pixels.device)[:, None], ids_keep]
            positions = positions[0, ids_keep]
        x = F.linear(patches, self.patch_embed.proj.weight.flatten(1), self.patch_embed.proj.bias) + positions
        return torch.cat([(self.cls_token + class_position).expand(B, -1, -1), x], dim=1)

    def transform(self, x: Tensor) -> Tensor:
        """Tokens [B, 1 + K, D] through all blocks and the final norm."""
        return self.norm(through(self.blocks, x, checkpointing=self.checkpointing and self.training))

    def transform_together(self, *sequences: Tensor) -> list[Tensor]:
        """As `transform` of each, [B, N, D] of several lengths, in one pass through the matrices."""
        checkpointing = self.checkpointing and self.training
        return [self.norm(x) for x in through_together(self.blocks, *sequences, checkpointing=checkpointing)]

    def encode(self, images: Tensor) -> Tensor:
        """Frames [B, 3, H, W] (uint8, or floats in [0, 1]) → features of the last block after its norm, [B, h, w, D].

        The class token is left out. It is the training path at mask ratio 0.
        """
        h, w = grid_size(images.shape[-2], images.shape[-1], self.patch_size)
        return self.transform(self.tokens(normalize(images)))[:, 1:].unflatten(1, (h, w))


class MaskedAutoencoderViT(MAEEncoder):
    """MAE: `MAEEncoder`, and a decoder that predicts the pixels of the hidden patches."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_pix_loss: bool = True,
        norm_eps: float = 1e-6,
    ):
        super().__init__(img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, norm_eps)
        self.norm_pix_loss = norm_pix_loss
        self.decoder_is_pretrained = False  # set where weights are loaded
        self.cross_decoder: Any = None  # a decoder of pairs, where weights with one are loaded
        self.decoder_config: dict[str, Any] = dict(
            decoder_embed_dim=decoder_embed_dim, decoder_depth=decoder_depth, decoder_num_heads=decoder_num_heads
        )
        width = decoder_embed_dim
        layer_norm: Any = partial(Norm, eps=norm_eps)
        self.decoder_embed = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(width, self.grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, decoder_num_heads, mlp_ratio, norm_layer=layer_norm) for _ in range(decoder_depth)
        )
        self.decoder_norm = layer_norm(width)
        self.decoder_pred = nn.Linear(width, patch_size**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred):
            part.apply(init_weights)

    @property
    def config(self) -> dict[str, Any]:
        return {**self.encoder_config, **self.decoder_config, "norm_pix_loss": self.norm_pix_loss}

    def forward(
        self, frames: Tensor, mask_ratio: float = 0.75, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B, 3, H, W] → loss (scalar), prediction [B, N, P], mask [B, N] (1 = hidden).

        The mask follows from `noise` [B, N], or from `seeds` [B], or else from torch's global generator.
        """
        pixels = normalize(frames)
        latent, mask, ids_restore = self.forward_encoder(pixels, mask_ratio, noise=noise, seeds=seeds)
        check_some_hidden(mask.shape[1], mask_ratio)
        prediction = self.forward_decoder(
            latent, ids_restore, grid_size(pixels.shape[-2], pixels.shape[-1], self.patch_size)
        )
        return self.forward_loss(pixels, prediction, mask), prediction, mask

    def forward_encoder(
        self, pixels: Tensor, mask_ratio: float, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised pixels [B, 3, H, W] → latent [B, 1 + K, D], mask [B, N], ids_restore [B, N]."""
        h, w = grid_size(pixels.shape[-2], pixels.shape[-1], self.patch_size)
        noise = noise_for(pixels, h * w, noise, seeds)
        ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
        return self.transform(self.tokens(pixels, ids_keep)), mask, ids_restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Latent [B, 1 + K, D] and ids_restore [B, N] → prediction [B, N, P] for every patch, in image order."""
        x = restore_tokens(self.decoder_embed(latent), self.mask_token, ids_restore)  # [B, 1 + N, decoder width]
        x = x + positions_for(self.decoder_pos_embed, self.grid, grid or self.grid)
        x = through(self.decoder_blocks, x, checkpointing=self.checkpointing and self.training)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, pixels: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error on the hidden patches, on per-patch normalised pixels if `norm_pix_loss`."""
        target = self.patchify(pixels)
        return masked_loss(prediction, normalize_patches(target) if self.norm_pix_loss else target, mask)


def init_weights(module: nn.Module) -> None:
    """Linear layers from Xavier's uniform distribution, biases zero (MAE, appendix A.1)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def positions_for(positions: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Positions [1, 1 + N, D] of a grid, the class token's in front, interpolated (bicubic) to the wanted grid."""
    return resample_abs_pos_embed(positions, list(wanted), list(grid), num_prefix_tokens=1, antialias=False)


def noise_for(frames: Tensor, N: int, noise: Tensor | None, seeds: Tensor | None) -> Tensor:
    """The noise [B, N] that decides the mask: as given, or from the samples' seeds [B], or fresh."""
    B = len(frames)
    if noise is None:
        noise = torch.rand(B, N, device=frames.device) if seeds is None else mask_noise(seeds.to(frames.device), N)
    if noise.shape != (B, N):
        raise InputError(f"the mask's noise has shape {tuple(noise.shape)}; these frames need {(B, N)}")
    return noise


def restore_tokens(x: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Class token and visible tokens [B, 1 + K, D] → class token and all places [B, 1 + N, D], mask tokens between."""
    B, N = ids_restore.shape
    shuffled = torch.cat([x[:, 1:], mask_token.to(x.dtype).expand(B, N + 1 - x.shape[1], -1)], dim=1)
    return torch.cat([x[:, :1], shuffled[torch.arange(B, device=x.device)[:, None], ids_restore]], dim=1)


# Named sizes. base, large and huge have the public decoder; nothing public exists below, where the decoder is the one
# that reproductions of SiamMAE use with ViT-S.
_SMALL_DECODER = dict(decoder_embed_dim=256, decoder_depth=4, decoder_num_heads=8)
_SIZES: dict[str, dict[str, Any]] = {
    "mae_vit_micro_patch8": dict(
        img_size=64, patch_size=8, embed_dim=128, depth=6, num_heads=4,
        decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4,
    ),
    "mae_vit_tiny_patch16": dict(patch_size=16, embed_dim=192, depth=12, num_heads=3, **_SMALL_DECODER),
    "mae_vit_small_patch16": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6, **_SMALL_DECODER),
    "mae_vit_small_patch8": dict(patch_size=8, embed_dim=384, depth=12, num_heads=6, **_SMALL_DECODER),
    "mae_vit_base_patch16": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
    "mae_vit_large_patch16": dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16),
    "mae_vit_huge_patch14": dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}  # fmt: skip


def builders(kind: type[Model], sizes: Mapping[str, dict[str, Any]]) -> dict[str, Callable[..., Model]]:
    """For each named size a function that builds the model; keyword arguments override the size's."""
    return {name: partial(kind, **size) for name, size in sizes.items()}


ARCHITECTURES: dict[str, Callable[..., MaskedAutoencoderViT]] = builders(MaskedAutoencoderViT, _SIZES)
mae_vit_tiny_patch16 = ARCHITECTURES["mae_vit_tiny_patch16"]
mae_vit_small_patch16 = ARCHITECTURES["mae_vit_small_patch16"]
mae_vit_small_patch8 = ARCHITECTURES["mae_vit_small_patch8"]
mae_vit_base_patch16 = ARCHITECTURES["mae_vit_base_patch16"]
mae_vit_large_patch16 = ARCHITECTURES["mae_vit_large_patch16"]
mae_vit_huge_patch14 = ARCHITECTURES["mae_vit_huge_patch14"]
