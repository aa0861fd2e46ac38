"""The masked autoencoder of clips (Feichtenhofer, Fan, Li, He 2022, "Masked Autoencoders As Spatiotemporal Learners",
arXiv 2205.09113), MAE-ST for short.

It is MAE with tubelets for patches: a few frames long, as wide and high as a patch. A plain vision transformer sees the
visible tubelets of all steps in time together, a small decoder sees all places, and some of the frames are predicted.
Positions are learned, one for the place plus one for the step (§3, "Patch embedding"). Parameter names are the public
ones, except that attention's separate q, k, v are one matrix here (`fuse_qkv`, `split_qkv`). What differs from the
public code: frames come in as uint8 and are normalised here, hidden tubelets are never embedded, and clips may have
any size and length that the tubelets divide.

Legend: B batch, F frames, T steps in time, N = T·h·w tubelets, K kept (visible) tubelets, D width, P pixels that are
predicted in a place, h w patch grid, H W pixels; t frames and p×p pixels in a tubelet, of whose frames u are predicted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from mae.blocks import Block, LayerNorm, through
from mae.masking import MASKINGS, check_some_hidden, clip_masking, fill_from_visible, mask_noise, nearest_in_time
from mae.models_mae import MAEEncoder, builders, init_weights, noise_for, positions_for, restore_tokens
from mae.patches import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAE_ST_MEAN,
    MAE_ST_STD,
    grid_size,
    masked_loss,
    patch_statistics,
    patchify_clip,
    time_steps,
    unpatchify_clip,
)
from mae.pretraining import Comparison, PretrainingModel, folded


class TubeletEmbed(nn.Module):
    """A linear map of tubelets; its weights have the shape of the convolution that the public code takes for it."""

    def __init__(self, patch_size: int, t_patch_size: int, embed_dim: int):
        super().__init__()
        size = (t_patch_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, embed_dim, kernel_size=size, stride=size)
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))  # as the linear map that it is

    def forward(self, tubelets: Tensor) -> Tensor:
        """Pixels [B, K, 3, t, p, p] → [B, K, D]."""
        return F.linear(tubelets.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


class SpatiotemporalMAE(PretrainingModel):
    """MAE-ST: what `SiamMAE` is to pairs, to clips of `num_frames` frames.

    pred_t_dim frames are predicted, the same number in each step. mask_kind: one of `mae.masking.MASKINGS`. `grid` is
    the patch grid (h, w) and `steps` the T that the model was built for. pixel_mean, pixel_std: of the three channels
    of frames in [0, 1]; those of the public weights unless given.
    """

    model_type = "mae_st"  # in the config.json of its folder on the Hub: Transformers has no such model
    STATISTICS = {
        "visible": "normalised prediction, shown with mean and spread of the nearest visible tubelets",
        "target": "normalised prediction, shown with mean and spread of the HIDDEN tubelet: part of the answer",
    }

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_frames: int = 16,
        t_patch_size: int = 2,
        pred_t_dim: int = 8,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 4,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pixel_mean: Sequence[float] = MAE_ST_MEAN,
        pixel_std: Sequence[float] = MAE_ST_STD,
        norm_pix_loss: bool = True,
        mask_ratio: float = 0.9,
        mask_kind: str = "agnostic",
        device: torch.device | str | None = None,
        *,
        loss: str = "mse",
        checkpointing: bool = False,
        decoder_float32: bool = False,
    ):
        super().__init__(mask_ratio, loss, norm_pix_loss)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid, self.steps = grid_size(height, width, patch_size), time_steps(num_frames, t_patch_size)
        if pred_t_dim % self.steps or not 0 < pred_t_dim <= num_frames:
            raise InputError(
                f"pred_t_dim is {pred_t_dim}; a clip of {num_frames} frames in {self.steps} steps has as many "
                f"predicted frames in each step: expected a multiple of {self.steps} up to {num_frames}"
            )
        if mask_kind not in MASKINGS:
            raise InputError(f"mask kind {mask_kind!r} is unknown; there are {', '.join(MASKINGS)}")
        self.architecture: dict[str, Any] = dict(
            img_size=img_size, patch_size=patch_size, num_frames=num_frames, t_patch_size=t_patch_size,
            pred_t_dim=pred_t_dim, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
            decoder_embed_dim=decoder_embed_dim, decoder_depth=decoder_depth, decoder_num_heads=decoder_num_heads,
            mlp_ratio=mlp_ratio, pixel_mean=list(pixel_mean), pixel_std=list(pixel_std),
        )  # fmt: skip
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.patch_size, self.t_patch_size, self.num_frames = patch_size, t_patch_size, num_frames
        self.predicted_in_step = pred_t_dim // self.steps
        self.mask_kind, self.checkpointing, self.decoder_float32 = mask_kind, checkpointing, decoder_float32

        def learned(count: int, dim: int) -> nn.Parameter:
            return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02))

        def blocks(dim: int, depth: int, num_heads: int) -> nn.ModuleList:
            return nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(depth))

        places = self.grid[0] * self.grid[1]
        self.patch_embed = TubeletEmbed(patch_size, t_patch_size, embed_dim)
        self.cls_token = learned(1, embed_dim)
        self.pos_embed_class = learned(1, embed_dim)
        self.pos_embed_spatial = learned(places, embed_dim)
        self.pos_embed_temporal = learned(self.steps, embed_dim)
        self.blocks = blocks(embed_dim, depth, num_heads)
        self.norm = LayerNorm(embed_dim)

        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = learned(1, decoder_embed_dim)
        self.decoder_cls_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed_class = learned(1, decoder_embed_dim)
        self.decoder_pos_embed_spatial = learned(places, decoder_embed_dim)
        self.decoder_pos_embed_temporal = learned(self.steps, decoder_embed_dim)
        self.decoder_blocks = blocks(decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.decoder_norm = LayerNorm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, self.predicted_in_step * patch_size**2 * 3)
        self.apply(init_weights)
        self.to(device)

    @property
    def config(self) -> dict[str, Any]:
        names = ("norm_pix_loss", "mask_ratio", "mask_kind", "loss")
        return {"model": "MAE-ST", **self.architecture, **{name: getattr(self, name) for name in names}}

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        return self.num_frames, 3, self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def forward(
        self, video: Tensor, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clips [B, F, 3, H, W] (uint8, or floats in [0, 1]) → loss (scalar), prediction [B, N, P], mask [B, N].

        mask is 1 where a tubelet was hidden; it follows from `noise` [B, N], or from the samples' `seeds` [B], or else
        from torch's global generator. The loss is the error on hidden places of the predicted frames.
        """
        video, seeds = folded(video, seeds)
        noise = self.draw_noise(video, seeds) if noise is None else noise
        pixels = self.pixels(video)
        T, grid = self.steps_and_grid(pixels)
        latent, mask, ids_restore = self.forward_encoder(pixels, noise=noise)
        check_some_hidden(mask.shape[1], self.mask_ratio, visible=latent.shape[1])
        prediction = self.decode(self.forward_decoder, [latent], ids_restore, T, grid)
        return masked_loss(prediction, self.target(pixels), mask, self.loss), prediction, mask

    def forward_encoder(
        self, pixels: Tensor, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised pixels [B, F, 3, H, W] → latent [B, K, D] without class token, mask [B, N], ids_restore [B, N]."""
        T, (h, w) = self.steps_and_grid(pixels)
        noise = noise_for(pixels, T * h * w, noise, seeds)
        ids_keep, mask, ids_restore = clip_masking(noise, self.mask_ratio, T, self.mask_kind)
        return self.transform(self.tokens(pixels, ids_keep))[:, 1:], mask, ids_restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor, T: int, grid: tuple[int, int]) -> Tensor:
        """Latent [B, K, D] and ids_restore [B, N] → prediction [B, N, P] for every place, step by step."""
        x = torch.cat([self.decoder_cls_token.expand(len(latent), -1, -1), self.decoder_embed(latent)], dim=1)
        x = restore_tokens(x, self.mask_token, ids_restore)  # [B, 1 + N, decoder width]
        positions = self.positions("decoder_pos_embed", T, grid)
        x = x + torch.cat([self.decoder_pos_embed_class, positions[None]], dim=1)
        x = through(self.decoder_blocks, x, checkpointing=self.checkpointing and self.training)
        return self.decoder_pred(self.decoder_norm(x[:, 1:]))

    def tokens(self, pixels: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Normalised pixels [B, F, 3, H, W] → class token and kept tubelets, with positions: [B, 1 + K, D].

        The hidden tubelets are left out before the embedding, so they cost nothing and cannot leak.
        """
        B = len(pixels)
        T, (h, w) = self.steps_and_grid(pixels)
        t, p = self.t_patch_size, self.patch_size
        tubelets = pixels.reshape(B, T, t, 3, h, p, w, p).permute(0, 1, 4, 6, 3, 2, 5, 7)  # [B, T, h, w, 3, t, p, p]
        positions = self.positions("pos_embed", T, (h, w))
        if ids_keep is None:
            tubelets = tubelets.flatten(1, 3)
        else:
            batch = torch.arange(B, device=pixels.device)[:, None]
            tubelets = tubelets[batch, ids_keep // (h * w), ids_keep // w % h, ids_keep % w]
            positions = positions[ids_keep]
        first = (self.cls_token + self.pos_embed_class).expand(B, -1, -1)
        return torch.cat([first, self.patch_embed(tubelets) + positions], dim=1)

    def transform(self, x: Tensor) -> Tensor:
        """Tokens [B, 1 + K, D] through all blocks and the final norm."""
        return self.norm(through(self.blocks, x, checkpointing=self.checkpointing and self.training))

    def positions(self, prefix: str, T: int, grid: tuple[int, int]) -> Tensor:
        """Positions [N, D] of the places of a clip: the place's (interpolated bicubically) plus the step's (linearly).

        prefix: `pos_embed` for the encoder's, `decoder_pos_embed` for the decoder's.
        """
        spatial, temporal = getattr(self, f"{prefix}_spatial"), getattr(self, f"{prefix}_temporal")
        spatial = resample_abs_pos_embed(spatial, list(grid), list(self.grid), num_prefix_tokens=0, antialias=False)
        if T != self.steps:
            temporal = F.interpolate(temporal.float().mT, T, mode="linear").mT.to(temporal.dtype)
        return (temporal[0, :, None] + spatial).flatten(0, 1)

    def patches(self, pixels: Tensor) -> Tensor:
        wanted = self.predicted_frames(pixels.shape[1])  # not as an index: that would be copied to the device
        return self.patchify(torch.stack([pixels[:, n] for n in wanted], dim=1))

    def draw_noise(self, video: Tensor, seeds: Tensor | None = None) -> Tensor:
        T, (h, w) = self.steps_and_grid(video)
        if seeds is None:
            return torch.rand(self.pairs_in(video), T * h * w, device=video.device)
        return mask_noise(seeds.flatten().to(video.device), T * h * w)

    def predicted_frames(self, frames: int) -> list[int]:
        """Which of a clip's frames are predicted: evenly spread from the first to the last, rounded down.

        16 frames of which 8 are predicted: 0 2 4 6 8 10 12 15. Frame number n belongs to step n // u.
        """
        count = time_steps(frames, self.t_patch_size) * self.predicted_in_step
        return [n * (frames - 1) // max(count - 1, 1) for n in range(count)]  # linspace, without its rounding

    def encode(self, images: Tensor, *, steps: int | None = None) -> Tensor:
        """Images [B, 3, H, W] (uint8, or floats in [0, 1]) → features [B, h, w, D], each image taken as a still clip.

        The features of the last block after its norm, averaged over time; the class token is left out. steps: of how
        many tubelets in time the still clip is, the model's own number unless given; 1 is the cheapest.
        """
        frames = self.t_patch_size * (self.steps if steps is None else steps)
        still = self.normalize(images)[:, None].expand(-1, frames, -1, -1, -1)
        return self._features(still).mean(dim=1)

    def encode_clip(self, video: Tensor) -> Tensor:
        """Clips [B, F, 3, H, W] (uint8, or floats in [0, 1]) → features [B, T, h, w, D]: training at mask ratio 0."""
        return self._features(self.pixels(video))

    def _features(self, pixels: Tensor) -> Tensor:
        T, (h, w) = self.steps_and_grid(pixels)
        return self.transform(self.tokens(pixels))[:, 1:].unflatten(1, (T, h, w))

    def pixels(self, video: Tensor) -> Tensor:
        """Clips [B, F, 3, H, W] as they come → normalised."""
        if video.ndim != 5 or video.shape[2] != 3:
            raise InputError(f"video has shape {list(video.shape)}; expected [B, F, 3, H, W]: clips of frames in RGB")
        return self.normalize(video)

    def steps_and_grid(self, pixels: Tensor) -> tuple[int, tuple[int, int]]:
        """T and (h, w) of clips [B, F, 3, H, W]."""
        H, W = pixels.shape[-2:]
        return time_steps(pixels.shape[-4], self.t_patch_size), grid_size(H, W, self.patch_size)

    def patchify(self, clip: Tensor) -> Tensor:
        """Predicted frames [B, T·u, 3, H, W] → [B, N, P]."""
        return patchify_clip(clip, self.patch_size, self.predicted_in_step)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, N, P] → predicted frames [B, T·u, 3, H, W]; the grid (h, w) is the model's own unless given."""
        return unpatchify_clip(patches, self.patch_size, self.predicted_in_step, grid or self.grid)

    def guessed_statistics(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        T, (h, w) = self.steps_and_grid(pixels)
        mean, spread = patch_statistics(self.patches(pixels))
        return fill_from_visible(mean, mask, (T, h, w)), fill_from_visible(spread, mask, (T, h, w))

    def compare(self, video: Tensor, batch: Mapping[str, Any]) -> Comparison:
        """What is copied is the visible tubelet at the same place that is nearest in time, normalised by its own
        statistics if targets are, and the mean where there is none: parts `seen` and `unseen`."""
        target, T = self.target(self.normalize(video)), self.steps_and_grid(video)[0]
        _, prediction, mask = self(video, seeds=batch["seed"])
        seen = (mask == 0).unflatten(1, (T, -1)).any(1).repeat(1, T)
        mean = target.mean(-1, keepdim=True).expand_as(target)
        copy = target.gather(1, nearest_in_time(mask, T)[..., None].expand_as(target))
        guesses = {"model": prediction, "copy": torch.where(seen[..., None], copy, mean), "mean": mean}
        return Comparison(target, guesses, {"all": mask, "seen": mask * seen, "unseen": mask * ~seen})

    def image_encoder(self) -> MAEEncoder:
        raise InputError("this is a model of clips, and the format has none: --to public, hf and onnx write it")

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        about = "MAE-ST, encoder and decoder, under its public names with q, k, v apart (timm has no model of clips)"
        return self.public_state_dict(), self.config, about

    def public_state_dict(self) -> dict[str, Tensor]:
        """The weights under the public names, q, k, v apart; `mae.weights.load_pretrained_st` reads them back."""
        return split_qkv(self.state_dict())


def pixel_statistics(config: Mapping[str, Any]) -> dict[str, Any]:
    """pixel_mean and pixel_std of a `config` that was written: ImageNet's where it has none.

    Before they were a part of it, all models were trained with ImageNet's.
    """
    return {name: config.get(name, value) for name, value in _IMAGENET.items()}


_IMAGENET = dict(pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)
_QKV = (".attn.q.", ".attn.k.", ".attn.v.")


def fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with separate `attn.q`, `attn.k`, `attn.v` → one with `attn.qkv`, the rest untouched.

    Where one of the three is missing or of another shape, all are left as they are, for strict loading to name.
    """
    fused: dict[str, Tensor] = {}
    for name, value in state.items():
        part = next((part for part in _QKV if part in name), None)
        names = [name.replace(part, other) for other in _QKV] if part else []
        if part and all(other in state and state[other].shape == value.shape for other in names):
            fused[name.replace(part, ".attn.qkv.")] = torch.cat([state[other] for other in names])
        else:
            fused[name] = value
    return fused


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `fuse_qkv`."""
    apart: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            parts = value.chunk(3)
            apart |= {name.replace(".attn.qkv.", part): v.clone() for part, v in zip(_QKV, parts, strict=True)}
        else:
            apart[name] = value
    return apart


@torch.no_grad()
def inflate(mae: MAEEncoder, **arguments: Any) -> SpatiotemporalMAE:
    """A MAE-ST that begins with the encoder of an image MAE: of a still clip of one tubelet it gives MAE's features.

    The patch embedding is spread evenly over a tubelet's frames (as Carreira & Zisserman 2017 inflate filters);
    positions of places and class token are MAE's, those of time begin at zero; class token, blocks and norm are copied,
    and pixels are normalised as MAE does. The decoder is new. arguments: keywords of `SpatiotemporalMAE` that MAE does
    not decide, and img_size.
    """
    given = {**mae.encoder_config, **_IMAGENET}
    decided = [name for name in arguments if name in given and name != "img_size"]
    if decided:
        raise InputError(f"{', '.join(decided)} of an inflated model are the image model's and cannot be given")
    model = SpatiotemporalMAE(**{**given, **arguments})
    own = model.state_dict()
    state = {k: v for k, v in mae.state_dict().items() if k in own and k.startswith(("blocks.", "norm.", "cls_token"))}
    state["patch_embed.proj.bias"] = mae.patch_embed.proj.bias
    t = model.t_patch_size
    state["patch_embed.proj.weight"] = mae.patch_embed.proj.weight[:, :, None].expand(-1, -1, t, -1, -1) / t
    positions = positions_for(mae.pos_embed, mae.grid, model.grid)
    state["pos_embed_class"], state["pos_embed_spatial"] = positions[:, :1], positions[:, 1:]
    state["pos_embed_temporal"] = torch.zeros_like(own["pos_embed_temporal"])
    model.load_state_dict(own | state)
    return model


# Named sizes, all with the paper's decoder (512 wide, 4 deep, 16 heads) and tubelets of 2×16×16. Huge has patches of 16
# too: so has the public model for its weights, although it is named `vit_huge_patch14` (mae_st, models_vit.py).
_SIZES: dict[str, dict[str, Any]] = {
    "mae_st_vit_small_patch16": dict(embed_dim=384, depth=12, num_heads=6),
    "mae_st_vit_base_patch16": dict(embed_dim=768, depth=12, num_heads=12),
    "mae_st_vit_large_patch16": dict(embed_dim=1024, depth=24, num_heads=16),
    "mae_st_vit_huge_patch16": dict(embed_dim=1280, depth=32, num_heads=16),
}


ARCHITECTURES_ST: dict[str, Callable[..., SpatiotemporalMAE]] = builders(SpatiotemporalMAE, _SIZES)
mae_st_vit_small_patch16 = ARCHITECTURES_ST["mae_st_vit_small_patch16"]
mae_st_vit_base_patch16 = ARCHITECTURES_ST["mae_st_vit_base_patch16"]
mae_st_vit_large_patch16 = ARCHITECTURES_ST["mae_st_vit_large_patch16"]
mae_st_vit_huge_patch16 = ARCHITECTURES_ST["mae_st_vit_huge_patch16"]
vit_large_patch16 = mae_st_vit_large_patch16  # the name that MAE3D's README gives to its default
