"""How sure a model of pairs is of what it predicts: variance heads on the frozen model, and maps that need no training.

All are of normalised pixels, whose variance is 1 in each patch of the target, so that a prediction of 0 has error 1.

Legend: B pairs, N patches, P pixels in one, M hidden patches of all pairs, D width of the decoder.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError
from mae.masking import mask_noise
from mae.reading import read_checkpoint
from ml.checkpoints import save_checkpoint
from ml.extensions import calibration
from ml.extensions.heads import PatchHead, beta_nll, decoder_features, hidden_mean
from ml.optimisation import lr_scale
from ml.pair_models import PairModel, strangers
from ml.reconstruction import evaluating

KNOWS = ("f1 against a wrong f1", "|f1 − f2|")  # maps that look at the answer: not to be had in use


class VarianceHeads(nn.Module):
    """log σ² of each patch, and of each of its pixels, from the decoder's features [B, N, D]."""

    def __init__(self, width: int, pixels: int) -> None:
        super().__init__()
        self.patch, self.pixel = PatchHead(width), PatchHead(width, pixels)


def train_heads(
    model: PairModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    steps: int = 500,
    lr: float = 1e-3,
    beta: float = 0.5,
    seed: int = 0,
    told: Callable[[int, float, float], None] = lambda step, patch, pixel: None,
) -> VarianceHeads:
    """Teach both heads by β-NLL on the errors of a frozen model, one batch a step; nothing of the model changes.

    batches: `video` and `seed`, from which the masks follow. told: hears of each step's NLL of
    patches and of pixels (that of β-NLL would not tell whether it gets better).
    """
    width, pixels = model.decoder.pred.in_features, model.decoder.pred.out_features  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[]), evaluating(model) as device:
        torch.manual_seed(seed)
        heads = VarianceHeads(int(width), int(pixels)).to(device)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(heads.parameters(), lr, weight_decay=0.05)
        step = 0
        for step, batch in zip(range(1, steps + 1), batches, strict=False):
            video = batch["video"].to(device)
            features, error, mask = _asked(model, video, batch["seed"].to(device))
            with torch.enable_grad():
                guesses = [head(features) for head in (heads.patch, heads.pixel)]
                optimizer.zero_grad(set_to_none=True)
                torch.stack([hidden_mean(beta_nll(error, guess, beta), mask) for guess in guesses]).sum().backward()
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_scale(step - 1, max(1, steps // 20), steps)
            optimizer.step()
            told(step, *(hidden_mean(beta_nll(error, guess, 0.0), mask).item() for guess in guesses))
    if step < steps:
        raise InputError(f"the pairs ended after {step} of {steps} steps")
    return heads.eval()


def _asked(model: PairModel, video: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the decoder [B, N, D], squared errors [B, N, P] and mask [B, N], as the seeds hide f2."""
    frames = model.normalize(video)
    with decoder_features(model) as features:
        prediction, mask = model.predict(frames, model.draw_noise(video, seeds))
    return features[0], (model.target(frames) - prediction.float()).square(), mask


class Member(NamedTuple):
    """A model and its heads, if it has any; several are an ensemble."""

    model: PairModel
    heads: VarianceHeads | None


class Map(NamedTuple):
    """An uncertainty of each patch, [B, N, 1], or of each pixel, [B, N, P], beside the squared errors that it is of.

    variance: whether its values are variances, or only rank.
    """

    values: Tensor
    error: Tensor
    variance: bool = False


def total_variance(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of members, [members, …] → mean and variance of their even mixture: the mean variance
    (aleatoric) plus the variance of the means (epistemic)."""
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


@torch.no_grad()
def uncertainty_maps(
    members: Sequence[Member], batch: Mapping[str, Any], *, draws: int = 8
) -> tuple[Tensor, dict[str, Map]]:
    """Mask [B, N] of f2 and what each way says of it, for a batch with `video`, `seed` and `path`.

    draws: visible sets over which predictions of a hidden patch spread. The maps of `KNOWS` look at the answer; texture
    of f1 and a constant are what must be beaten.
    """
    model, heads = members[0]
    device = next(model.parameters()).device
    video, seeds = batch["video"][:, :2].to(device), batch["seed"].flatten().to(device)
    frames = model.normalize(video)
    noise, target = model.draw_noise(video, seeds), model.target(frames)
    asked = [_with_features(member.model, frames, noise) for member in members]
    prediction, mask, features = asked[0]
    error = (target - prediction).square()
    maps: dict[str, Map] = {}
    if heads is not None:
        maps["head, patch"] = Map(heads.patch(features).exp(), error, True)
        maps["head, pixel"] = Map(heads.pixel(features).exp(), error, True)
    hiding = getattr(model, "hiding", None)
    if hiding is not None and hiding.strategy.lesson:
        maps[f"head trained along ({hiding.name})"] = Map(
            hiding.head(features).exp(), error, hiding.name == "uncertain"
        )
    maps["spread over visible sets"] = Map(_spread(model, frames, seeds, draws), error, True)
    if len(members) > 1:
        means = torch.stack([each[0] for each in asked])
        own = [m.heads.patch(each[2]).exp() if m.heads else torch.zeros_like(error[..., :1])
               for m, each in zip(members, asked, strict=True)]  # fmt: skip
        mean, variance = total_variance(means, torch.stack(own).expand_as(means))
        maps[f"ensemble of {len(members)}"] = Map(variance, (target - mean).square(), True)
    wrong = frames[strangers(list(batch["path"])), 0]
    fooled, _ = model.predict(torch.stack([wrong, frames[:, 1]], dim=1), noise)
    gain = error.mean(-1, keepdim=True) - (target - fooled.float()).square().mean(-1, keepdim=True)
    maps[KNOWS[0]] = Map(gain, error)
    maps[KNOWS[1]] = Map(model.patchify((frames[:, 0] - frames[:, 1]).abs()).mean(-1, keepdim=True), error)
    maps["texture of f1"] = Map(model.patchify(frames[:, 0]).var(-1, keepdim=True), error)
    maps["constant"] = Map(torch.ones_like(error[..., :1]), error, True)
    return mask, maps


def _with_features(model: PairModel, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with decoder_features(model) as features:
        prediction, mask = model.predict(frames, noise)
    return prediction.float(), mask, features[0]


def _spread(model: PairModel, frames: Tensor, seeds: Tensor, draws: int) -> Tensor:
    """The variance of predictions over visible sets in which a patch is hidden, [B, N, P]."""
    count = total = squares = torch.zeros((), device=frames.device)
    for draw in range(1, draws + 1):
        noise = mask_noise(seeds + draw, model.patches(frames).shape[1])
        prediction, mask = model.predict(frames, noise)
        prediction, mask = prediction.float(), mask[..., None]
        count, total, squares = count + mask, total + mask * prediction, squares + mask * prediction.square()
    mean = total / count.clamp(min=1)
    return (squares / count.clamp(min=1) - mean.square()).clamp(min=1e-6)


@dataclass
class Evidence:
    """Values and squared errors of the hidden patches of many pairs, by way: [M, 1 or P] each, and whose they are."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    errors: dict[str, list[Tensor]] = field(default_factory=dict)
    variances: set[str] = field(default_factory=set)
    videos: list[str] = field(default_factory=list)

    def add(self, mask: Tensor, maps: Mapping[str, Map], paths: Sequence[str]) -> None:
        """Take over a batch."""
        where = mask > 0
        for name, each in maps.items():
            self.values.setdefault(name, []).append(each.values[where].cpu())
            self.errors.setdefault(name, []).append(each.error[where].cpu())
            self.variances |= {name} if each.variance else set()
        self.videos += [path for path, row in zip(paths, where, strict=True) for _ in range(int(row.sum()))]

    def measure(self) -> dict[str, dict[str, Any]]:
        """Of each way its measures on every second video, after recalibration on the others: plain values.

        Ranks are of patches (mean variance, mean squared error), sizes of pixels. `curve` and `oracle` are the two
        sparsification curves, `covered` the shares beside `calibration.LEVELS`, without and with recalibration.
        """
        names = sorted(set(self.videos))
        if len(names) < 2:
            raise InputError(f"all pairs come from {names[0]}: one half of the videos calibrates, the other measures")
        other = np.isin(self.videos, names[::2])
        found: dict[str, dict[str, Any]] = {}
        for name in self.values:
            values, errors = (torch.cat(part[name]).double().numpy() for part in (self.values, self.errors))
            ranks, squared = values[~other].mean(1), errors[~other].mean(1)
            found[name] = row = {
                "AUSE": calibration.ause(squared, ranks), "Spearman": calibration.spearman(squared, ranks),
                "RMSE": float(np.sqrt(squared.mean())), "knows the answer": name in KNOWS,
                "curve": calibration.sparsification(squared, ranks).tolist(),
                "oracle": calibration.sparsification(squared, squared).tolist(),
            }  # fmt: skip
            if name not in self.variances:
                continue
            every, pixels = (np.broadcast_to(values, errors.shape)[part].ravel() for part in (other, ~other))
            factor = calibration.recalibration(errors[other].ravel(), every)
            squared = errors[~other].ravel()
            row["factor"], row["covered"] = factor, []
            for suffix, variance in (("", pixels), (" recalibrated", factor * pixels)):
                row[f"NLL{suffix}"] = calibration.nll(squared, variance)
                row[f"ENCE{suffix}"] = calibration.ence(squared, variance)
                row[f"coverage error{suffix}"] = calibration.coverage_error(squared, variance)
                row["covered"].append(calibration.coverage(squared, variance).tolist())
        return found


def save_heads(path: Path, heads: VarianceHeads, about: Mapping[str, Any]) -> None:
    """Write heads with plain values about them: `weights`, the digest of the model's, among them."""
    save_checkpoint(path, {"variance_heads": {k: v.cpu() for k, v in heads.state_dict().items()}, **about})


def load_heads(path: Path, weights: str) -> VarianceHeads:
    """Read what `save_heads` wrote; an InputError for another file, or for heads of other weights."""
    saved = read_checkpoint(path)
    state = saved.get("variance_heads")
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no variance heads: siammae uncertainty RUN --data VIDEOS --out DIR trains some")
    if saved["weights"] != weights:
        raise InputError(f"{path} was trained on other weights ({saved['weights']}) than the model's ({weights})")
    heads = VarianceHeads(len(state["patch.layers.0.weight"]), len(state["pixel.layers.3.bias"]))
    heads.load_state_dict(state)
    return heads.eval()
