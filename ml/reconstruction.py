"""What a model makes of a pair, as pictures and as numbers: reconstructions, and the comparison with plain copying.

Legend: B batch, N patches, P pixels in a patch, H W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mae.files import InputError
from mae.patches import denormalize, grid_size, normalize, normalize_patches
from ml.SiamMAE import SiamMAE

Statistics = Literal["past", "target"]


@dataclass(frozen=True)
class Reconstruction:
    """One pair and its prediction, all [3, H, W] in [0, 1], and how it was made."""

    past: Tensor
    future: Tensor
    masked: Tensor
    """f2 with its hidden patches in grey"""
    pasted: Tensor
    """the prediction, with f2's visible patches pasted in"""
    raw: Tensor
    """the prediction as it is, visible patches too"""
    loss: float
    gap: float | None
    """seconds between the frames"""
    caption: str


@torch.no_grad()
def reconstruct(
    model: SiamMAE,
    video: Tensor,
    *,
    time: Tensor | None = None,
    seed: int = 0,
    statistics: Statistics = "past",
) -> Reconstruction:
    """Predict f2 of one pair [2, 3, H, W] with the mask that follows from `seed`.

    A model that predicts per-patch normalised pixels says nothing of a patch's mean and spread. They are taken from
    f1's patch at the same place (`past`), or from the hidden patch itself (`target`), which gives a part of the answer
    away and is said so in the caption.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    video = video[None].to(device)
    loss, prediction, mask = model(video, seeds=torch.tensor([seed], device=device))
    model.train(was_training)
    grid = grid_size(video.shape[-2], video.shape[-1], model.patch_size)
    past, future = normalize(video).unbind(1)
    prediction = prediction.float()
    if model.norm_pix_loss:
        source = model.patchify(past if statistics == "past" else future)
        variance, mean = torch.var_mean(source, dim=-1, keepdim=True)
        prediction = prediction * (variance + 1e-6).sqrt() + mean
        how = {
            "past": "normalised prediction, shown with mean and spread of f1's patch at the same place",
            "target": "normalised prediction, shown with mean and spread of the HIDDEN patch: part of the answer",
        }[statistics]
    else:
        how = "prediction of plain pixels, shown as it is"
    hidden = model.unpatchify(mask[..., None].expand(-1, -1, prediction.shape[-1]), grid)
    raw = model.unpatchify(prediction, grid)

    def show(pixels: Tensor) -> Tensor:
        return denormalize(pixels).clamp(0, 1)[0].cpu()

    return Reconstruction(
        past=show(past),
        future=show(future),
        masked=torch.where(hidden[0].cpu() == 1, 0.5, show(future)),
        pasted=show(torch.where(hidden == 1, raw, future)),
        raw=show(raw),
        loss=loss.item(),
        gap=None if time is None else float(time[1] - time[0]),
        caption=how,
    )


@dataclass
class _Sums:
    """Squared errors over hidden patches, summed in float64: errors by name, and what the best factor needs."""

    patches: int = 0
    errors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("model", "copy", "mean", "wrong f1"), 0.0))
    copy_target: float = 0.0
    copy_copy: float = 0.0

    def table(self) -> dict[str, float]:
        """Errors per hidden patch and pixel; `copy × factor` with the one factor that is best for these pairs."""
        if not self.patches:
            return {}
        means = {name: error / self.patches for name, error in self.errors.items()}
        gain = self.copy_target**2 / self.copy_copy / self.patches if self.copy_copy else 0.0
        factor = self.copy_target / self.copy_copy if self.copy_copy else 0.0
        return {**means, "copy × factor": means["mean"] - gain, "factor": factor, "patches": float(self.patches)}


@torch.no_grad()
def compare_with_copying(
    model: SiamMAE, batches: Iterable[dict[str, Any]], *, short_gap: float = 26 / 30
) -> dict[str, dict[str, float]]:
    """The model's error beside that of guesses that know nothing, over hidden patches, on per-patch normalised pixels.

    Returns for `all`, `short` (gap ≤ short_gap seconds) and `long` pairs: `model`; `copy`: f1's patch at the same
    place, normalised by its own statistics; `copy × factor`: that times the best single factor; `mean`: the patch's
    mean everywhere (nearly 1 by construction); `wrong f1`: the model, given the f1 of another video. The masks follow
    from the pairs' seeds, so two models are asked the same.
    """
    if not model.norm_pix_loss:
        raise InputError("this model predicts plain pixels; the comparison is made on per-patch normalised ones")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = {name: _Sums() for name in ("all", "short", "long")}
    for batch in batches:
        video, seeds = batch["video"].to(device), batch["seed"].to(device)
        past, future = normalize(video).unbind(1)
        target, copy = model.target(future), normalize_patches(model.patchify(past))
        _, prediction, mask = model(video, seeds=seeds)
        strangers = torch.tensor(_strangers(batch["path"]), device=device)
        _, fooled, _ = model(torch.stack([video[strangers, 0], video[:, 1]], dim=1), seeds=seeds)
        guesses = {"model": prediction, "copy": copy, "mean": torch.zeros_like(target), "wrong f1": fooled}
        errors = {name: _per_pair((guess - target).square(), mask) for name, guess in guesses.items()}
        copy_target, copy_copy = _per_pair(copy * target, mask), _per_pair(copy.square(), mask)
        gaps = batch["time"][:, 1] - batch["time"][:, 0]
        for b in range(len(video)):
            for part in ("all", "short" if gaps[b] <= short_gap else "long"):
                total = sums[part]
                total.patches += int(mask[b].sum())
                total.copy_target += copy_target[b].item()
                total.copy_copy += copy_copy[b].item()
                for name, error in errors.items():
                    total.errors[name] += error[b].item()
    model.train(was_training)
    return {name: total.table() for name, total in sums.items()}


def _per_pair(values: Tensor, mask: Tensor) -> Tensor:
    """Values [B, N, P], averaged over pixels and summed over hidden patches: [B], float64."""
    return (values.double().mean(-1) * mask).sum(1)


def _strangers(paths: list[str]) -> list[int]:
    """For each pair of a batch the index of a pair from another video."""
    if len(set(paths)) < 2:
        raise InputError(f"all pairs of a batch come from {paths[0]}; a wrong f1 needs a second video in the batch")
    n = len(paths)
    return [next((b + d) % n for d in range(1, n) if paths[(b + d) % n] != paths[b]) for b in range(n)]
