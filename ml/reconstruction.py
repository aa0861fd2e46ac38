"""What a model makes of a sample, as pictures and as numbers: reconstructions, and the comparison with copying.

Legend: B samples in a batch, F frames of one, of which n are predicted, N patches or tubelets, P pixels in one, H W
pixels of a frame.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from ml.SiamMAE import Model

Sample = Mapping[str, Any] | Tensor


@contextmanager
def masking(model: Model, ratio: float | None = None, kind: str | None = None) -> Iterator[None]:
    """Give a model another mask ratio or, if it is one of clips, another kind of mask for a while; None: its own."""
    changes = {name: x for name, x in {"mask_ratio": ratio, "mask_kind": kind}.items() if x is not None}
    if "mask_kind" in changes and model.of_pairs:
        raise InputError(f"mask_kind is {kind}; a model of pairs has one kind of mask")
    own = {name: getattr(model, name) for name in changes}
    try:
        vars(model).update(changes)
        yield
    finally:
        vars(model).update(own)


@contextmanager
def evaluating(model: Model) -> Iterator[torch.device]:
    """Evaluation mode without gradients for a while; the model's device."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Reconstruction:
    """One sample and its prediction: the predicted frames [n, 3, H, W] in [0, 1], and how they were made."""

    past: Tensor | None
    """the frame [3, H, W] that is seen whole and is not predicted: f1 of a pair"""
    frames: Tensor
    """the sample's own"""
    masked: Tensor
    """with the hidden patches in grey"""
    pasted: Tensor
    """the prediction, with the visible patches pasted in"""
    raw: Tensor
    """the prediction as it is, visible patches too"""
    times: list[float] | None
    """seconds of all frames of the sample"""
    numbers: list[int]
    """which of the sample's frames are predicted"""
    hidden: float
    """share of the patches that was hidden"""
    loss: float
    mask_kind: str
    caption: str

    @property
    def time(self) -> list[float] | None:
        """Seconds of the predicted frames."""
        return None if self.times is None else [self.times[n] for n in self.numbers]


def reconstruct(
    sample: Sample,
    model: Model,
    *,
    statistics: str | None = None,
    mask_ratio: float | None = None,
    mask_kind: str | None = None,
) -> Reconstruction:
    """Predict the hidden patches of one sample, with the mask that follows from its seed, or from `noise` [N] in it.

    sample: what data sets and loaders give, a dict with `video` and perhaps `time` and `seed` (else 0), or the video
    alone; [F, 3, H, W], or more samples, of which the first is taken. statistics: a model that predicts per-patch
    normalised pixels says nothing of a patch's mean and spread. They are guessed from what is seen, or taken from the
    hidden patch itself (`target`), which gives a part of the answer away; the caption says so. mask_ratio, mask_kind:
    other ones than the model's.
    """
    sample = sample if isinstance(sample, Mapping) else {"video": sample}
    video = torch.as_tensor(sample["video"])
    video = video.reshape(-1, *video.shape[-4:])[0]
    times = torch.as_tensor(sample["time"]).reshape(-1, len(video))[0].tolist() if "time" in sample else None
    seeds = torch.as_tensor(sample.get("seed", 0)).flatten()[:1]
    which = statistics or next(iter(model.STATISTICS))
    with masking(model, mask_ratio, mask_kind), evaluating(model) as device:
        pixels = model.normalize(video[None].to(device))
        asked = {"noise": sample["noise"][None].to(device)} if "noise" in sample else {"seeds": seeds.to(device)}
        loss, prediction, mask = model(video[None].to(device), **asked)
        prediction, caption = prediction.float(), "prediction of plain pixels, shown as it is"
        if model.norm_pix_loss:
            mean, spread = model.statistics(pixels, mask, which)
            prediction, caption = prediction * spread + mean, model.STATISTICS[which]
        grid = (video.shape[-2] // model.patch_size, video.shape[-1] // model.patch_size)

        def shown(patches: Tensor) -> Tensor:
            return model.unpatchify(patches, grid).flatten(0, -4)  # [n, 3, H, W]

        numbers = model.predicted_frames(len(video))
        hidden, raw, frames = shown(mask[..., None].expand_as(prediction)) == 1, shown(prediction), pixels[0, numbers]
        pictures = [raw, torch.where(hidden, raw, frames), frames, pixels[0, :1]]
        raw, pasted, frames, past = (model.denormalize(x).clamp(0, 1).cpu() for x in pictures)
        return Reconstruction(
            past=None if 0 in numbers else past[0],
            frames=frames,
            masked=torch.where(hidden.cpu(), 0.5, frames),
            pasted=pasted,
            raw=raw,
            times=times,
            numbers=numbers,
            hidden=mask.mean().item(),
            loss=loss.item(),
            mask_kind=getattr(model, "mask_kind", "random"),
            caption=caption,
        )


def reconstruct_all(
    model: Model,
    samples: Iterable[Mapping[str, Any]],
    *,
    mask_ratios: Sequence[float] = (),
    mask_kind: str | None = None,
    statistics: str | None = None,
) -> tuple[list[Reconstruction], list[str]]:
    """What a model makes of samples with a `name` or `path`, and what to call each; once for each of mask_ratios."""
    asked = [(sample, ratio) for sample in samples for ratio in mask_ratios or (None,)]
    rows = [reconstruct(s, model, statistics=statistics, mask_ratio=r, mask_kind=mask_kind) for s, r in asked]
    titles = [str(s["name"]) if "name" in s else Path(s["path"]).stem for s, _ in asked]
    return rows, [title + (f"\n{r:.0%} hidden" if r else "") for title, (_, r) in zip(titles, asked, strict=True)]


def first_samples(loader: Iterable[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first samples of a loader, one by one: their `video` [F, 3, H, W], and what is known of them."""
    samples: list[dict[str, Any]] = []
    for batch in loader:
        batch = folded_batch(batch)
        for b in range(len(batch["video"])):
            known: dict[str, Any] = {key: batch[key][b] for key in ("video", "time", "seed", "path") if key in batch}
            samples.append({"path": f"sample {len(samples) + 1}", **known})
            if len(samples) == count:
                return samples
    return samples


@dataclass
class _Sums:
    """Errors over hidden patches, summed in float64: by name, and what the best factor needs."""

    patches: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    copy_target: float = 0.0
    copy_copy: float = 0.0
    target_target: float = 0.0

    def add(self, errors: dict[str, Tensor], copy: Tensor, target: Tensor, where: Tensor) -> None:
        """Errors, means over the pixels of patches [B, N], and the patches [B, N, P], where `where` [B, N] is not 0."""
        copy_target, copy_copy = _per_patch(copy * target), _per_patch(copy.square())
        self.patches += int(where.sum())
        self.target_target += (_per_patch(target.square()) * where).sum().item()
        self.copy_target += (copy_target * where).sum().item()
        self.copy_copy += (copy_copy * where).sum().item()
        for name, values in errors.items():
            self.errors[name] = self.errors.get(name, 0.0) + (values * where).sum().item()

    def table(self) -> dict[str, float]:
        """Errors per hidden patch and pixel; `copy × factor` with the one factor that is best for these samples."""
        if not self.patches:
            return {}
        means = {name: error / self.patches for name, error in self.errors.items()}
        nothing = self.copy_copy < 1e-9 * self.target_target  # what is copied is a mean of 0, but for rounding
        factor = 0.0 if nothing else self.copy_target / self.copy_copy
        scaled = (self.target_target - factor * self.copy_target) / self.patches
        return {**means, "copy × factor": scaled, "factor": factor, "patches": float(self.patches)}


def compare_with_copying(model: Model, batches: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The model's squared error beside that of guesses that know nothing, over hidden patches, in the unit of its
    targets: per-patch normalised pixels, or plain ones (in units of the data set's spread).

    Returns for `all` of them and for each of the parts that the model names: `model`; `copy`, what `model.compare` says
    can be copied; `copy × factor`: that times the best single factor; `mean`: each patch's own mean (nearly 1 by
    construction where pixels are normalised); and what else the model compares. The masks follow from the samples'
    seeds, so two models are asked the same.
    """
    sums: dict[str, _Sums] = {}
    with evaluating(model) as device:
        for batch in batches:
            batch = folded_batch(batch)
            batch["seed"] = batch["seed"].to(device)
            target, guesses, parts = model.compare(batch["video"].to(device), batch)
            copy = guesses["copy"]
            errors = {name: _per_patch((guess - target).square()) for name, guess in guesses.items()}
            for name, where in parts.items():
                total = sums.setdefault(name, _Sums())
                total.add(errors, copy, target, where)
    return {name: total.table() for name, total in sums.items()}


def folded_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as torch's own collate leaves it, with R samples of each video ([B, R, F, 3, H, W]), as B·R samples."""
    if batch["video"].ndim < 6:
        return dict(batch)
    B, R = batch["video"].shape[:2]
    folded = {k: v.flatten(0, 1) if isinstance(v, Tensor) and v.shape[:2] == (B, R) else v for k, v in batch.items()}
    return folded | {"path": [path for path in batch["path"] for _ in range(R)]} if "path" in batch else folded


def _per_patch(values: Tensor) -> Tensor:
    """Values [B, N, P] averaged over pixels: [B, N], float64."""
    return values.double().mean(-1)
