"""What a model makes of a pair or a clip, as pictures and as numbers: reconstructions, and the comparison with copying.

Legend: B batch, F frames of a clip, of which n are predicted, N patches or tubelets, K visible ones, P pixels in one,
H W pixels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from common.errors import InputError
from mae.masking import MaskKind
from mae.models_mae_st import SpatiotemporalMAE
from mae.patches import grid_size, normalize_patches
from ml.SiamMAE import Model, SiamMAE

Statistics = Literal["past", "target"]
ClipStatistics = Literal["visible", "target"]


@contextmanager
def masking(model: Model, ratio: float | None = None, kind: MaskKind | None = None) -> Iterator[None]:
    """Ask a model for a while as if it had another mask ratio or, of clips, another kind of mask; None: its own."""
    own = {"mask_ratio": model.mask_ratio, "mask_kind": getattr(model, "mask_kind", None)}
    changes = {"mask_ratio": ratio, "mask_kind": kind}
    changes = {name: value for name, value in changes.items() if value is not None}
    try:
        for name, value in changes.items():
            setattr(model, name, value)
        yield
    finally:
        for name in changes:
            setattr(model, name, own[name])


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
    video, loss, prediction, mask = _predict(model, video, seed)
    grid = grid_size(video.shape[-2], video.shape[-1], model.patch_size)
    past, future = model.normalize(video).unbind(1)
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
        past=_show(model, past),
        future=_show(model, future),
        masked=torch.where(hidden[0].cpu() == 1, 0.5, _show(model, future)),
        pasted=_show(model, torch.where(hidden == 1, raw, future)),
        raw=_show(model, raw),
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
    video, loss, prediction, mask = _predict(model, video, seed)
    grid = grid_size(video.shape[-2], video.shape[-1], model.patch_size)
    numbers = model.predicted_frames(video.shape[1])
    frames = model.normalize(video)[:, numbers]
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
        frames=_show(model, frames),
        masked=torch.where(hidden[0].cpu() == 1, 0.5, _show(model, frames)),
        pasted=_show(model, torch.where(hidden == 1, raw, frames)),
        raw=_show(model, raw),
        time=None if time is None else [float(time[k]) for k in numbers],
        numbers=numbers,
        hidden=mask.mean().item(),
        mask_kind=model.mask_kind,
        loss=loss.item(),
        caption=how,
    )


def reconstruct_sample(
    sample: dict[str, Any] | Tensor,
    model: SpatiotemporalMAE,
    *,
    statistics: ClipStatistics = "visible",
    mask_ratio: float | None = None,
    mask_kind: MaskKind | None = None,
) -> ClipReconstruction:
    """`reconstruct_clip` for what data sets and loaders give: a dict with `video` and perhaps `time` and `seed`, or the
    video alone; [F, 3, H, W], or more clips, of which the first is taken. Without a `seed` it is 0.

    mask_ratio, mask_kind: other ones than the model's.
    """
    sample = sample if isinstance(sample, dict) else {"video": sample}
    video = torch.as_tensor(sample["video"])
    video = video.reshape(-1, *video.shape[-4:])[0]
    time = torch.as_tensor(sample["time"]).reshape(-1, len(video))[0] if "time" in sample else None
    seed = int(torch.as_tensor(sample["seed"]).flatten()[0]) if "seed" in sample else 0
    with masking(model, mask_ratio, mask_kind):
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


def _predict(model: Model, video: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sample [F, 3, H, W] through a model in evaluation mode: as a batch on its device, loss, prediction, mask."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    video = video[None].to(device)
    loss, prediction, mask = model(video, seeds=torch.tensor([seed], device=device))
    model.train(was_training)
    return video, loss, prediction.float(), mask


def _show(model: Model, pixels: Tensor) -> Tensor:
    """A model's pixels of one sample, [1, …, 3, H, W], in [0, 1] and on the CPU."""
    return model.denormalize(pixels).clamp(0, 1)[0].cpu()


@dataclass
class _Sums:
    """Squared errors over hidden patches, summed in float64: errors by name, and what the best factor needs."""

    patches: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    copy_target: float = 0.0
    copy_copy: float = 0.0

    def add(self, errors: dict[str, Tensor], copy_target: Tensor, copy_copy: Tensor, where: Tensor) -> None:
        """Values of patches [B, N], as `_per_patch` gives them, of those where `where` [B, N] is not 0."""
        self.patches += int(where.sum())
        self.copy_target += (copy_target * where).sum().item()
        self.copy_copy += (copy_copy * where).sum().item()
        for name, values in errors.items():
            self.errors[name] = self.errors.get(name, 0.0) + (values * where).sum().item()

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
    device, was_training = _ready_to_compare(model)
    sums = {name: _Sums() for name in ("all", "short", "long")}
    for batch in batches:
        video, seeds = batch["video"].to(device), batch["seed"].to(device)
        past, future = model.normalize(video).unbind(1)
        target, copy = model.target(future), normalize_patches(model.patchify(past))
        _, prediction, mask = model(video, seeds=seeds)
        strangers = torch.tensor(_strangers(batch["path"]), device=device)
        _, fooled, _ = model(torch.stack([video[strangers, 0], video[:, 1]], dim=1), seeds=seeds)
        guesses = {"model": prediction, "copy": copy, "mean": torch.zeros_like(target), "wrong f1": fooled}
        errors = {name: _per_patch((guess - target).square()) for name, guess in guesses.items()}
        short = (batch["time"][:, 1] - batch["time"][:, 0] <= short_gap).to(device)[:, None]
        for name, where in {"all": mask, "short": mask * short, "long": mask * ~short}.items():
            sums[name].add(errors, _per_patch(copy * target), _per_patch(copy.square()), where)
    model.train(was_training)
    return {name: total.table() for name, total in sums.items()}


@torch.no_grad()
def compare_clip_with_copying(
    model: SpatiotemporalMAE, batches: Iterable[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """`compare_with_copying` for clips: the model's error beside that of copying the nearest visible tubelet in time.

    Returns for `all` hidden tubelets, those of places that are `seen` at another step, and those of places that are
    `unseen` at all steps: `model`; `copy`: the visible tubelet at the same place that is nearest in time, normalised by
    its own statistics, and the mean where there is none; `copy × factor`: that times the best single factor; `mean`:
    the mean of what is predicted in a place (nearly 1 by construction).
    """
    device, was_training = _ready_to_compare(model)
    sums = {name: _Sums() for name in ("all", "seen", "unseen")}
    for batch in batches:
        video, seeds = batch["video"].to(device), batch["seed"].to(device)
        target = model.target(model.normalize(video))
        _, prediction, mask = model(video, seeds=seeds)
        T, _ = model.steps_and_grid(video)
        seen = (mask == 0).unflatten(1, (T, -1)).any(1).repeat(1, T)
        nearest = _nearest_in_time(mask, T)[..., None].expand_as(target)
        copy = target.gather(1, nearest) * seen[..., None]
        guesses = {"model": prediction, "copy": copy, "mean": torch.zeros_like(target)}
        errors = {name: _per_patch((guess - target).square()) for name, guess in guesses.items()}
        for name, where in {"all": mask, "seen": mask * seen, "unseen": mask * ~seen}.items():
            sums[name].add(errors, _per_patch(copy * target), _per_patch(copy.square()), where)
    model.train(was_training)
    return {name: total.table() for name, total in sums.items()}


def _nearest_in_time(mask: Tensor, T: int) -> Tensor:
    """For each tubelet [B, N] the number of the visible one at its place whose step is nearest, of two the earlier.

    Where none is visible the number means nothing.
    """
    hidden = mask.unflatten(1, (T, -1))  # [B, T, h·w]
    steps = torch.arange(T, device=mask.device)
    away = (steps[:, None] - steps).abs()[None, :, :, None] + T * hidden[:, None]  # [B, T, T to copy from, h·w]
    places = torch.arange(hidden.shape[2], device=mask.device)
    return (away.argmin(2) * hidden.shape[2] + places).flatten(1)


def _ready_to_compare(model: Model) -> tuple[torch.device, bool]:
    """The device of a model that is to be evaluated, and whether it was in training."""
    if not model.norm_pix_loss:
        raise InputError("this model predicts plain pixels; the comparison is made on per-patch normalised ones")
    was_training = model.training
    model.eval()
    return next(model.parameters()).device, was_training


def _per_patch(values: Tensor) -> Tensor:
    """Values [B, N, P] averaged over pixels: [B, N], float64."""
    return values.double().mean(-1)


def _strangers(paths: list[str]) -> list[int]:
    """For each pair of a batch the index of a pair from another video."""
    if len(set(paths)) < 2:
        raise InputError(f"all pairs of a batch come from {paths[0]}; a wrong f1 needs a second video in the batch")
    n = len(paths)
    return [next((b + d) % n for d in range(1, n) if paths[(b + d) % n] != paths[b]) for b in range(n)]
