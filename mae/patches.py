"""Pixels and patches: tensors in, tensors out.

Legend: B batch, F frames, N patches, P pixels in a patch (p·p·C), h w patch grid, H W pixels, C channels; of a clip:
T steps in time, t frames in a tubelet.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError

# The statistics that the public weights of MAE and of MAE-ST were trained with; they stand here and nowhere else.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAE_ST_MEAN = (0.45, 0.45, 0.45)  # facebookresearch/mae_st, util/kinetics.py
MAE_ST_STD = (0.225, 0.225, 0.225)


def normalize(frames: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """uint8 frames, or floats in [0, 1], `[..., 3, H, W]` in RGB → float32 with the channels' mean and std taken out.

    mean and std are of frames in [0, 1].
    """
    middle, spread = _of_channels(mean, frames.device), _of_channels(std, frames.device)
    if frames.dtype == torch.uint8:
        return (frames.float() - 255 * middle) / (255 * spread)
    if not frames.is_floating_point():
        raise InputError(f"frames are {frames.dtype}; expected uint8, or floats in [0, 1]")
    if not torch.compiler.is_compiling():
        low, high = (x.item() for x in torch.aminmax(frames))
        if not (-1e-3 <= low and high <= 1 + 1e-3):
            raise InputError(
                f"float frames lie in [{low:.3g}, {high:.3g}]; expected [0, 1]: the model normalises them itself, "
                "so pass them as they come from the decoder"
            )
    return (frames.float() - middle) / spread


def denormalize(pixels: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """The inverse of `normalize`: float32 `[..., 3, H, W]`, in [0, 1] where the input came from an image."""
    return pixels * _of_channels(std, pixels.device) + _of_channels(mean, pixels.device)


def _of_channels(values: Sequence[float], device: torch.device) -> Tensor:
    """[3, 1, 1], filled on the device. Made of a list it would be copied there, which the host waits for."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])


def grid_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Patches per column and per row, (h, w); an InputError where the patch does not divide the image."""
    if height % patch_size or width % patch_size:
        patch = f"{patch_size}×{patch_size}"
        raise InputError(f"an image of {height}×{width} pixels does not divide into patches of {patch}")
    return height // patch_size, width // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images [B, C, H, W] → patches [B, N, P], row by row; within a patch: row, column, channel, as in MAE."""
    B, C, H, W = images.shape
    h, w = grid_size(H, W, patch_size)
    x = images.reshape(B, C, h, patch_size, w, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, patch_size**2 * C)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, for a patch grid (h, w): [B, N, P] → [B, C, H, W]."""
    B, N, P = patches.shape
    h, w = grid
    if h * w != N or P % patch_size**2:
        raise InputError(f"patches of shape {tuple(patches.shape)} do not fill a grid of {h}×{w}, patch {patch_size}")
    x = patches.reshape(B, h, w, patch_size, patch_size, P // patch_size**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, h * patch_size, w * patch_size)


def time_steps(frames: int, t_patch_size: int) -> int:
    """Tubelets one behind the other in time, T; an InputError where their length does not divide the clip."""
    if frames == 0 or frames % t_patch_size:
        raise InputError(f"a clip of {frames} frames does not divide into tubelets of {t_patch_size} frames")
    return frames // t_patch_size


def patchify_clip(clip: Tensor, patch_size: int, t_patch_size: int) -> Tensor:
    """Clips [B, F, C, H, W] → tubelets [B, T·h·w, t·P], step by step; within one: frame, row, column, channel."""
    B, F, C, H, W = clip.shape
    h, w = grid_size(H, W, patch_size)
    T = time_steps(F, t_patch_size)
    x = clip.reshape(B, T, t_patch_size, C, h, patch_size, w, patch_size)
    return x.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(B, T * h * w, t_patch_size * patch_size**2 * C)


def unpatchify_clip(tubelets: Tensor, patch_size: int, t_patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify_clip`, for a patch grid (h, w) and as many steps as it takes: → [B, F, C, H, W]."""
    B, N, P = tubelets.shape
    h, w = grid
    pixels = t_patch_size * patch_size**2
    if N % (h * w) or P % pixels:
        raise InputError(
            f"tubelets of shape {tuple(tubelets.shape)} do not fill steps of {h}×{w}, "
            f"tubelet {t_patch_size}×{patch_size}×{patch_size}"
        )
    x = tubelets.reshape(B, -1, h, w, t_patch_size, patch_size, patch_size, P // pixels)
    return x.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(B, -1, P // pixels, h * patch_size, w * patch_size)


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch [..., P] minus its mean, over its standard deviation (unbiased, ε = 1e-6 under the root; MAE §3)."""
    mean, spread = patch_statistics(patches)
    return (patches - mean) / spread


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each patch [..., P], both [..., 1], as `normalize_patches` takes them out."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """[B, N, P] twice → the mean over a patch's pixels, [B, N] (MAE §3)."""
    return F.mse_loss(prediction, target, reduction="none").mean(dim=-1)  # one pass over the pixels, not two


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """[B, N, P] twice → the mean over a patch's pixels, [B, N] (SimMIM, Xie et al. 2021, §3.4)."""
    return F.l1_loss(prediction, target, reduction="none").mean(dim=-1)


# To add a loss, write such a function and give it a name here and in `ml.config.LossKind`.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared_error, "l1": absolute_error}


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, kind: str = "mse") -> Tensor:
    """Mean error over the hidden patches: prediction and target [B, N, P], mask [B, N] (1 = hidden) → scalar.

    The mean runs over patches, not over images, and does not depend on B. kind: one of `LOSSES`.
    """
    error = LOSSES[kind](prediction.float(), target)
    return (error * mask).sum() / mask.sum()
