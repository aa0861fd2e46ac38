"""What every model to pretrain offers: `ml.SiamMAE.SiamMAE` for pairs, `mae.models_mae_st.SpatiotemporalMAE` for clips.

Training, pictures and comparisons ask these methods, never which of the models it is.

Legend: B samples, F frames of one (a pair: 2), n predicted frames, N patches or tubelets, P pixels in one, H W pixels.
What a model predicts is [B', N, P]: B' is B, times the futures of each past where there are several.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from common.errors import InputError
from mae.models_mae import MAEEncoder
from mae.patches import IMAGENET_MEAN, IMAGENET_STD, LOSSES, denormalize, normalize, normalize_patches, patch_statistics


class Comparison(NamedTuple):
    """A model's prediction beside guesses that know nothing, for one batch."""

    target: Tensor
    """[B', N, P]"""
    guesses: dict[str, Tensor]
    """`model`, `copy`, `mean`, perhaps more, each [B', N, P]"""
    parts: dict[str, Tensor]
    """which places count: `all`, and the kinds they divide into, each [B', N]"""


class PretrainingModel(nn.Module):
    """mask_ratio, loss (one of `LOSSES`) and norm_pix_loss (predict per-patch normalised pixels) may be changed later.

    How it is computed, which is no part of `config`: `checkpointing` keeps only what enters each block in training and
    computes the rest twice; `decoder_float32` takes the decoder out of autocast's reach, in full precision.
    """

    STATISTICS: ClassVar[Mapping[str, str]]
    """Whose mean and spread turn normalised predictions into colours, and the caption that says so; the first is the
    default, and `target` is always among them."""

    looks_into_past: ClassVar[bool] = False
    """Whether the decoder predicts a future by cross-attention to a past that it sees whole."""

    of_pairs: ClassVar[bool] = False
    """Whether a sample is a past with its futures, in which something may have moved; else it is a clip."""

    patch_size: int
    grid: tuple[int, int]
    decoder_float32: bool

    def __init__(self, mask_ratio: float, loss: str, norm_pix_loss: bool) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise InputError(f"loss {loss!r} is unknown; there are {', '.join(LOSSES)}")
        self.mask_ratio, self.loss, self.norm_pix_loss = mask_ratio, loss, norm_pix_loss
        self.pixel_mean: Sequence[float] = IMAGENET_MEAN
        self.pixel_std: Sequence[float] = IMAGENET_STD

    @property
    def config(self) -> dict[str, Any]:
        """All that `ml.SiamMAE.build_model` needs to build the model again, as plain values."""
        raise NotImplementedError

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """[F, 3, H, W] of a sample as the model was built for."""
        raise NotImplementedError

    def forward(
        self, video: Tensor, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples [B, F, 3, H, W] → loss (scalar), prediction [B', N, P], mask [B', N] (1 = hidden).

        [B, R, F, 3, H, W], as torch's own collate leaves repeated samples, is taken as B·R samples.
        """
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """Frames [B, 3, H, W] (uint8, or floats in [0, 1]) → features [B, h, w, D]."""
        raise NotImplementedError

    def predict(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, F, 3, H, W] and noise [B', N] → prediction and mask as `forward` gives them."""
        raise NotImplementedError

    def draw_noise(self, video: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The noise [B', N] that decides the masks: from the samples' seeds, or else fresh.

        `forward` draws it itself unless it is given; drawn outside, a compiled `forward` is one graph.
        """
        raise NotImplementedError

    def before_step(self, step: int, steps: int) -> None:
        """Called before each step of a training, with the steps that are done, of so many in the whole run."""

    def predicted_frames(self, frames: int) -> list[int]:
        """Which of a sample's frames are predicted."""
        raise NotImplementedError

    def decode(self, decoder: Callable[..., Tensor], tokens: Sequence[Tensor], *places: Any) -> Tensor:
        """What a decoder makes of tokens and places, in full precision if `decoder_float32`."""
        if not self.decoder_float32:
            return decoder(*tokens, *places)
        with torch.autocast(tokens[0].device.type, enabled=False):
            return decoder(*(x.float() for x in tokens), *places)

    def pairs_in(self, video: Tensor) -> int:
        """How many pairs, or clips, a batch [..., F, 3, H, W] holds: the B' of its prediction."""
        return video.shape[:-4].numel()

    def patches(self, pixels: Tensor) -> Tensor:
        """The places to be predicted, [B', N, P], of normalised pixels [B, F, 3, H, W]."""
        raise NotImplementedError

    def patchify(self, frames: Tensor) -> Tensor:
        """The inverse of `unpatchify`, for frames of any origin."""
        raise NotImplementedError

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B', N, P] → predicted frames; the grid (h, w) is the model's own unless given."""
        raise NotImplementedError

    def guessed_statistics(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of each place, [B', N, 1], guessed from what is seen: the first of `STATISTICS`."""
        raise NotImplementedError

    def compare(self, video: Tensor, batch: Mapping[str, Any]) -> Comparison:
        """The prediction beside that of copying; batch: the samples' `seed`, `time` and `path`."""
        raise NotImplementedError

    def image_encoder(self) -> MAEEncoder:
        """The part that other programs know as a ViT; an InputError if the model has none."""
        raise NotImplementedError

    def public_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of public code; of a decoder that no public code has, the encoder alone."""
        raise NotImplementedError

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """The weights that one file holds for other programs, their configuration, and in words what they are."""
        raise NotImplementedError

    def target(self, pixels: Tensor) -> Tensor:
        """What is to be predicted, [B', N, P], of normalised pixels [B, F, 3, H, W]."""
        patches = self.patches(pixels)
        return normalize_patches(patches) if self.norm_pix_loss else patches

    def statistics(self, pixels: Tensor, mask: Tensor, which: str) -> tuple[Tensor, Tensor]:
        """Mean and spread [B', N, 1] that turn normalised predictions into pixels; which: one of `STATISTICS`."""
        if which not in self.STATISTICS:
            raise InputError(f"statistics are {which!r}; this model has {' or '.join(self.STATISTICS)}")
        if which == "target":
            return patch_statistics(self.patches(pixels))
        return self.guessed_statistics(pixels, mask)

    def normalize(self, frames: Tensor) -> Tensor:
        """Frames [..., 3, H, W] (uint8, or floats in [0, 1]) → the pixels that the model reads and predicts."""
        return normalize(frames, self.pixel_mean, self.pixel_std)

    def denormalize(self, pixels: Tensor) -> Tensor:
        """The inverse of `normalize`: [..., 3, H, W] in [0, 1]."""
        return denormalize(pixels, self.pixel_mean, self.pixel_std)


def folded(video: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """[B, R, F, 3, H, W] and seeds [B, R] → [B·R, F, 3, H, W] and [B·R]; anything else as it is.

    R samples of each video, as torch's own collate leaves them.
    """
    if video.ndim == 6:
        video, seeds = video.flatten(0, 1), None if seeds is None else seeds.flatten()
    return video, seeds
