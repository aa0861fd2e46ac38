"""Models of a pair of frames: f1, the past, and f2, the future, of which most is hidden and is to be predicted.

`PairModel` is what they share: masks, targets, the loss, comparisons. `ml.SiamMAE.SiamMAE` is one; the other is the
control, `ImageMAE`, which has the same pairs and masks and does not look at f1 at all.

Legend: B pasts in a batch, F futures of each (what is [B·F, …] has the futures of the first past first), N patches,
P pixels in a patch, h w patch grid.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from mae.masking import check_some_hidden, mask_noise
from mae.models_mae import MAEEncoder, MaskedAutoencoderViT
from mae.patches import grid_size, masked_loss, patch_statistics, patchify, unpatchify
from mae.pretraining import Comparison, PretrainingModel, folded
from ml.extensions.heads import decoder_features
from ml.extensions.hiding import Hiding


class PairModel(PretrainingModel):
    """A model that predicts the hidden patches of f2; a subclass has an `encoder` and says how (`predict`)."""

    of_pairs = True
    STATISTICS = {
        "past": "normalised prediction, shown with mean and spread of f1's patch at the same place",
        "target": "normalised prediction, shown with mean and spread of the HIDDEN patch: part of the answer",
    }
    encoder: MAEEncoder
    pasts = 1  # frames that are seen whole
    hiding: Hiding | None  # which patches training hides, unless it is random ones

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        return self.pasts + 1, 3, self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def forward(
        self, video: Tensor, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs [B, 2, 3, H, W] (uint8, or floats in [0, 1]) → loss (scalar), prediction [B, N, P], mask [B, N].

        With a second frame to look into (`pasts` 2) it stands before f2: [B, 3, 3, H, W].
        A past may have F futures, [B, 1 + F, 3, H, W] (`dataset_loader`'s `futures`): it is read once, and prediction
        and mask are [B·F, …], number b·F + f the f-th future of past b. mask is 1 where a patch was hidden; it follows
        from `noise` [B·F, N], or from the samples' `seeds` [B], of which the first future's mask does not depend on F,
        or else from torch's global generator. The loss is the error on hidden patches only (arXiv 2305.14344, §3).
        """
        video, seeds = folded(video, seeds)
        if video.ndim != 5 or video.shape[1] <= self.pasts or video.shape[2] != 3:
            asked = f"[B, {self.pasts + 1}, 3, H, W]: {'f1 and f2' if self.pasts == 1 else 'two frames and f2'} in RGB"
            raise InputError(f"video has shape {list(video.shape)}; expected {asked}, or more futures")
        noise = self.draw_noise(video, seeds) if noise is None else noise
        frames = self.normalize(video)
        teaching = self.hiding if self.training and self.hiding and self.hiding.strategy.lesson else None
        with decoder_features(self) if teaching else nullcontext() as features:
            prediction, mask = self.predict(frames, noise)
        check_some_hidden(mask.shape[1], self.mask_ratio)
        target = self.target(frames)
        loss = masked_loss(prediction, target, mask, self.loss)
        if teaching and features:
            loss = loss + teaching.lesson(features[0], prediction, target, mask)
        return loss, prediction, mask

    def predict(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, 1 + F, 3, H, W] → prediction and mask as `forward` gives them. All may be visible."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder.encode(images)

    def image_encoder(self) -> MAEEncoder:
        return self.encoder

    def public_state_dict(self) -> dict[str, Tensor]:
        return self.encoder.public_state_dict()

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        return self.encoder.export_state()

    def draw_noise(self, video: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Each future has its own stretch of the one stream that a sample's seed gives; in training a `Hiding` has its
        say."""
        futures, (h, w) = video.shape[-4] - self.pasts, grid_size(video.shape[-2], video.shape[-1], self.patch_size)
        if seeds is None:
            noise = torch.rand(self.pairs_in(video), h * w, device=video.device)
        else:
            noise = mask_noise(seeds.flatten().to(video.device), futures * h * w).reshape(-1, h * w)
        return self.hiding.noise(self, folded(video)[0], noise) if self.training and self.hiding else noise

    def before_step(self, step: int, steps: int) -> None:
        if self.hiding:
            self.hiding.before_step(self, step, steps)

    def predicted_frames(self, frames: int) -> list[int]:
        """All but the past."""
        return list(range(self.pasts, frames))

    def patches(self, pixels: Tensor) -> Tensor:
        return self.patchify(pixels[:, self.pasts :].flatten(0, 1))

    def guessed_statistics(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of each place those of f1's patch there."""
        mean, spread = patch_statistics(self.patchify(pixels[:, 0]))
        futures = pixels.shape[1] - self.pasts
        return mean.repeat_interleave(futures, dim=0), spread.repeat_interleave(futures, dim=0)

    def compare(self, video: Tensor, batch: Mapping[str, Any]) -> Comparison:
        """What is copied is f1's patch at the same place, normalised by its own statistics if the model's targets are;
        `wrong f1` is the model, given the f1 of another video; `mean` is the hidden patch's own mean. Parts: `short`
        gaps, up to 26/30 s, and `long` ones."""
        P, seeds = self.pasts, batch["seed"]
        video = video[:, : P + 1]
        pixels = self.normalize(video)
        target, copy = self.target(pixels), self.target(pixels[:, [0] * (P + 1)])
        _, prediction, mask = self(video, seeds=seeds)
        _, fooled, _ = self(torch.cat([video[strangers(batch["path"]), :P], video[:, P:]], dim=1), seeds=seeds)
        mean = target.mean(-1, keepdim=True).expand_as(target)
        guesses = {"model": prediction, "copy": copy, "mean": mean, "wrong f1": fooled}
        short = (batch["time"][:, P] - batch["time"][:, 0] <= 26 / 30).to(mask.device)[:, None]
        return Comparison(target, guesses, {"all": mask, "short": mask * short, "long": mask * ~short})

    def pairs_in(self, video: Tensor) -> int:
        """Each future is a pair."""
        return video.shape[:-4].numel() * (video.shape[-4] - self.pasts)

    def patchify(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, N, P]."""
        return patchify(images, self.patch_size)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, N, P] → [B, 3, H, W]; the grid (h, w) is the model's own unless given."""
        return unpatchify(patches, self.patch_size, grid or self.grid)


class ImageMAE(PairModel):
    """The MAE of images (arXiv 2111.06377) on the futures of pairs: the control that cannot look into f1.

    The weights are those of `mae` and have its names, so they are public MAE weights.
    """

    def __init__(
        self,
        mae: MaskedAutoencoderViT,
        mask_ratio: float = 0.75,
        device: torch.device | str | None = None,
        *,
        norm_pix_loss: bool | None = None,
        loss: str = "mse",
        checkpointing: bool = False,
        decoder_float32: bool = False,
    ):
        super().__init__(mask_ratio, loss, mae.norm_pix_loss if norm_pix_loss is None else norm_pix_loss)
        self.mae, self.patch_size, self.grid, self.hiding = mae, mae.patch_size, mae.grid, None
        mae.checkpointing, self.decoder_float32 = checkpointing, decoder_float32
        self.to(device)

    @property
    def encoder(self) -> MAEEncoder:  # type: ignore[override]
        return self.mae

    @property
    def config(self) -> dict[str, Any]:
        mine = {"mask_ratio": self.mask_ratio, "loss": self.loss, "norm_pix_loss": self.norm_pix_loss}
        return {"model": "MAE", "mae": {**self.mae.config, "norm_pix_loss": self.norm_pix_loss}, **mine}

    def predict(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        future = frames[:, 1:].flatten(0, 1)
        latent, mask, ids_restore = self.mae.forward_encoder(future, self.mask_ratio, noise=noise)
        grid = grid_size(future.shape[-2], future.shape[-1], self.patch_size)
        return self.decode(self.mae.forward_decoder, [latent], ids_restore, grid), mask


def strangers(paths: list[str]) -> list[int]:
    """For each pair of a batch the index of a pair from another video."""
    if len(set(paths)) < 2:
        raise InputError(
            f"all pairs of a batch come from {paths[0]}; a wrong f1 needs a second video: hold out more, or give more "
            "videos"
        )
    n = len(paths)
    return [next((b + d) % n for d in range(1, n) if paths[(b + d) % n] != paths[b]) for b in range(n)]
