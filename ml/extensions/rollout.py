"""A prediction as the next past: how far a model of pairs gets on its own, beside copying the frame it began with.

Legend: K steps of one gap, N patches, P pixels in one, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mae.patches import normalize_patches
from ml.pair_models import PairModel
from ml.reconstruction import Reconstruction, evaluating, reconstruct

_PICTURES = ("frames", "masked", "pasted", "raw")


@dataclass(frozen=True)
class Rollout:
    """steps: what each step made of the frame before, as reconstructions of pairs. errors: squared errors of normalised
    pixels over the hidden patches of each step [K]: `roll-out`, `from f1` (one prediction over the whole gap),
    `from the frame before` (the true one), `copy` (f1's patch at the same place), and `mean`."""

    steps: list[Reconstruction]
    errors: dict[str, list[float]]
    times: list[float]

    def joined(self) -> Reconstruction:
        """All steps as one past with K futures."""
        whole: dict[str, Any] = {name: torch.cat([getattr(step, name) for step in self.steps]) for name in _PICTURES}
        numbers, loss = list(range(1, len(self.times))), sum(self.errors["roll-out"]) / len(self.steps)
        return replace(self.steps[0], **whole, times=self.times, numbers=numbers, loss=loss)


def roll_out(sample: Mapping[str, Any], model: PairModel, *, mask_ratio: float | None = None) -> Rollout:
    """Follow a sample's frames [1 + K, 3, H, W]: each is predicted from what was predicted of the one before.

    Of each frame the few visible patches that its mask leaves are seen, and are pasted into the next past; the mask
    follows from `seed` and the step's number. Colours are guessed from the past, so nothing of a hidden patch leaks.
    """
    video = torch.as_tensor(sample["video"])
    times = torch.as_tensor(sample["time"]).flatten().tolist()
    seed = int(torch.as_tensor(sample.get("seed", 0)))
    errors: dict[str, list[float]] = {
        name: [] for name in ("roll-out", "from f1", "from the frame before", "copy", "mean")
    }
    steps: list[Reconstruction] = []
    frames = video.float() / 255
    past = frames[0]
    for k in range(1, len(frames)):
        target = _normalized(model, frames[k])
        pasts = {"roll-out": past, "from f1": frames[0], "from the frame before": frames[k - 1]}
        made = {}
        for name, before in pasts.items():
            pair = {"video": torch.stack([before, frames[k]]), "time": torch.tensor([times[k - 1], times[k]])}
            made[name] = reconstruct({**pair, "seed": seed + k}, model, mask_ratio=mask_ratio)
        hidden = _hidden(model, made["roll-out"])
        for name, each in made.items():
            # A model of normalised pixels: its loss is this error. From a picture it could only be estimated.
            own = model.norm_pix_loss and model.loss == "mse"
            errors[name].append(each.loss if own else _error(_normalized(model, each.raw[0]), target, hidden))
        errors["copy"].append(_error(_normalized(model, frames[0]), target, hidden))
        errors["mean"].append(_error(torch.zeros_like(target), target, hidden))
        steps.append(made["roll-out"])
        past = made["roll-out"].pasted[0]
    return Rollout(steps, errors, times)


def mean_errors(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """The mean over roll-outs of as many steps."""
    return {
        name: torch.tensor([each.errors[name] for each in rollouts]).mean(0).tolist() for name in rollouts[0].errors
    }


def errors_table(errors: Mapping[str, Sequence[float]], seconds: Sequence[float]) -> str:
    """Markdown: a line for each horizon."""
    lines = ["| after | " + " | ".join(errors) + " |", "|---|" + "---|" * len(errors)]
    for k, gap in enumerate(seconds):
        lines.append(f"| {gap:.2f} s | " + " | ".join(f"{values[k]:.3f}" for values in errors.values()) + " |")
    return "\n".join(lines)


def _normalized(model: PairModel, frame: Tensor) -> Tensor:
    """A frame [3, H, W] in [0, 1] as patches with mean 0 and spread 1, [N, P]."""
    with evaluating(model) as device:
        return normalize_patches(model.patchify(model.normalize(frame[None].to(device))))[0].cpu()


def _hidden(model: PairModel, made: Reconstruction) -> Tensor:
    """Which patches were hidden [N], of a reconstruction of one frame."""
    grey = (made.masked[0] != made.frames[0]).float()
    return model.patchify(grey[None])[0].amax(-1) > 0


def _error(guess: Tensor, target: Tensor, hidden: Tensor) -> float:
    return (guess - target).square().mean(-1)[hidden].mean().item()
