"""What a model makes of a pair or a clip, as pictures and as numbers: reconstructions, and the comparison with copying.

Legend: B batch, F frames of a clip, of which n are predicted, N patches or tubelets, K visible ones, P pixels in one,
H W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mae.files import InputError
from mae.models_mae_st import SpatiotemporalMAE
from mae.patches import denormalize, grid_size, normalize, normalize_patches
from ml.SiamMAE import SiamMAE

Statistics = Literal["past", "target"]
ClipStatistics = Literal["visible", "target"]


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

    return Reconstruction(
        past=_show(past),
        future=_show(future),
        masked=torch.where(hidden[0].cpu() == 1, 0.5, _show(future)),
        pasted=_show(torch.where(hidden == 1, raw, future)),
        raw=_show(raw),
        loss=loss.item(),
        gap=None if time is None else float(time[1] - time[0]),
        caption=how,
    )


@dataclass(frozen=True)
class ClipReconstruction:
    """One clip and its prediction: the predicted frames alone, all [n, 3, H, W] in [0, 1], and how it was made."""

    frames: Tensor
    """the clip's own"""
    masked: Tensor
    """with the hidden tubelets in grey"""
    pasted: Tensor
    """the prediction, with the visible tubelets pasted in"""
    raw: Tensor
    """the prediction as it is, visible tubelets too"""
    time: list[float] | None
    """seconds of the frames"""
    numbers: list[int]
    """which of the clip's frames they are"""
    hidden: float
    """share of the tubelets that was hidden"""
    mask_kind: str
    loss: float
    caption: str


@torch.no_grad()
def reconstruct_clip(
    model: SpatiotemporalMAE,
    video: Tensor,
    *,
    time: Tensor | None = None,
    seed: int = 0,
    statistics: ClipStatistics = "visible",
) -> ClipReconstruction:
    """Predict the hidden tubelets of one clip [F, 3, H, W] with the mask that follows from `seed`.

    A model that predicts per-patch normalised pixels says nothing of a patch's mean and spread. They are guessed from
    the visible tubelets around (`visible`), or taken from the hidden one itself (`target`), which gives a part of the
    answer away and is said so in the caption.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    video = video[None].to(device)
    loss, prediction, mask = model(video, seeds=torch.tensor([seed], device=device))
    model.train(was_training)
    grid = grid_size(video.shape[-2], video.shape[-1], model.patch_size)
    numbers = model.predicted_frames(video.shape[1])
    frames = normalize(video)[:, numbers]
    prediction = prediction.float()
    if model.norm_pix_loss:
        variance, mean = torch.var_mean(model.patchify(frames), dim=-1, keepdim=True)
        spread = (variance + 1e-6).sqrt()
        if statistics == "visible":
            mean, spread = (_from_visible(values, mask, grid) for values in (mean, spread))
        prediction = prediction * spread + mean
        how = {
            "visible": "normalised prediction, shown with mean and spread of the nearest visible tubelets",
            "target": "normalised prediction, shown with mean and spread of the HIDDEN tubelet: part of the answer",
        }[statistics]
    else:
        how = "prediction of plain pixels, shown as it is"
    hidden = model.unpatchify(mask[..., None].expand(-1, -1, prediction.shape[-1]), grid)
    raw = model.unpatchify(prediction, grid)
    return ClipReconstruction(
        frames=_show(frames),
        masked=torch.where(hidden[0].cpu() == 1, 0.5, _show(frames)),
        pasted=_show(torch.where(hidden == 1, raw, frames)),
        raw=_show(raw),
        time=None if time is None else [float(time[k]) for k in numbers],
        numbers=numbers,
        hidden=mask.mean().item(),
        mask_kind=model.mask_kind,
        loss=loss.item(),
        caption=how,
    )


def reconstruct_sample(
    sample: dict[str, Any] | Tensor, model: SpatiotemporalMAE, *, statistics: ClipStatistics = "visible"
) -> ClipReconstruction:
    """`reconstruct_clip` for what data sets and loaders give: a dict with `video` and perhaps `time` and `seed`, or the
    video alone; [F, 3, H, W], or more clips, of which the first is taken. Without a `seed` it is 0."""
    sample = sample if isinstance(sample, dict) else {"video": sample}
    video = torch.as_tensor(sample["video"])
    video = video.reshape(-1, *video.shape[-4:])[0]
    time = torch.as_tensor(sample["time"]).reshape(-1, len(video))[0] if "time" in sample else None
    seed = int(torch.as_tensor(sample["seed"]).flatten()[0]) if "seed" in sample else 0
    return reconstruct_clip(model, video, time=time, seed=seed, statistics=statistics)


def _from_visible(values: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values [1, N, 1] of places, of which the hidden ones are replaced by a mean over the visible ones around.

    Weights fall with the square of the distance in places and steps as those of a Gaussian do, so that the nearest
    visible places count.
    """
    h, w = grid
    n = torch.arange(mask.shape[1], device=mask.device)
    places = torch.stack([n // (h * w), n // w % h, n % w], dim=1).float()  # step, row, column
    visible = mask[0] == 0
    weights = (-0.5 * torch.cdist(places, places[visible]).square()).softmax(dim=1)  # [N, K]
    return torch.where(visible[None, :, None], values, weights @ values[:, visible])


def _show(pixels: Tensor) -> Tensor:
    """Normalised pixels of one sample, [1, …, 3, H, W], in [0, 1] and on the CPU."""
    return denormalize(pixels).clamp(0, 1)[0].cpu()


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
