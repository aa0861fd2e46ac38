"""Which patches of f2 are hidden in training: at random, or some of them where they teach most.

A strategy is a function of (noise, step, scores of patches) that returns new noise; the largest are hidden. Whatever
it is, the rest of the mask is the random one, which follows from the samples' seeds: so masks are the same after a
resume and on every rank. In evaluation all masks are random, so that losses compare.

Legend: B pairs (each future of a past is one), N patches.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.errors import InputError
from mae.masking import visible_count
from mae.patches import normalize_patches, squared_error
from mae.pretraining import PretrainingModel
from ml.extensions.heads import PatchHead, decoder_features, relative_loss, variance_loss

SHARE = 0.5  # of the hidden patches that are chosen by their scores when training ends
AVERAGING = (0.999, 0.9999)  # of the teacher's weights at the beginning, and after an eighth of the training


class Step(NamedTuple):
    """Where a training is, and what it hides."""

    progress: float
    """share of the training that is done, from 0 to 1"""
    hidden: int
    """patches of a frame that are hidden"""

    @property
    def chosen(self) -> int:
        """How many of them the scores choose: a share that rises in a line (HPM, Wang et al. 2023, §3.3)."""
        return int(self.hidden * SHARE * self.progress)


def at_random(noise: Tensor, step: Step, scores: Tensor) -> Tensor:
    """As it is."""
    return noise


def largest_first(noise: Tensor, step: Step, scores: Tensor) -> Tensor:
    """Noise and scores [B, N] → noise that hides the chosen number with the largest scores, and of the rest the same
    ones as before."""
    order = noise.argsort(dim=1, stable=True).argsort(dim=1)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, : step.chosen]
    return order.scatter_add(1, best, torch.full_like(best, noise.shape[1]))


def smallest_first(noise: Tensor, step: Step, scores: Tensor) -> Tensor:
    """As `largest_first`, of the negative scores: its control."""
    return largest_first(noise, step, -scores)


Lesson = Callable[[Tensor, Tensor, Tensor], Tensor]  # scores, errors, mask [B, N] → what a head learns by


class Strategy(NamedTuple):
    """lesson: of a head whose scores are asked; without one the scores are the errors of copying f1."""

    choose: Callable[[Tensor, Step, Tensor], Tensor]
    lesson: Lesson | None = None


# To add a strategy, write its function and give it a name here and in `ml.config.MaskStrategy`.
STRATEGIES = {
    "random": Strategy(at_random),
    "hard": Strategy(largest_first, relative_loss),
    "uncertain": Strategy(largest_first, variance_loss),
    "motion": Strategy(largest_first),
    "still": Strategy(smallest_first),
}


class Hiding(nn.Module):
    """The strategy of a model of pairs, with what it needs: a head, and a teacher that scores f2 before it is hidden.

    The teacher is the model itself and its head with averaged weights, which sees f2 whole, as HPM's does.
    """

    def __init__(self, name: str, model: PretrainingModel) -> None:
        super().__init__()
        if name not in STRATEGIES:
            raise InputError(f"mask strategy {name!r} is unknown; there are {', '.join(STRATEGIES)}")
        self.name, self.strategy, self.progress = name, STRATEGIES[name], 0.0
        if self.strategy.lesson:
            teacher = copy.deepcopy(model)
            teacher.mask_ratio = 0.0
            width: int = teacher.decoder.pred.in_features  # type: ignore[assignment,union-attr]
            self.head = PatchHead(width)
            self.teacher = nn.ModuleDict({"model": teacher, "head": copy.deepcopy(self.head)}).requires_grad_(False)

    @torch.no_grad()
    def before_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Average the teacher's weights with the model's, and note that `step` of so many steps are done."""
        self.progress = step / steps
        if not self.strategy.lesson or not step:
            return
        low, high = AVERAGING
        decay = min(low + (high - low) * min(1.0, 8 * self.progress), (1 + step) / (10 + step))
        now = {f"model.{key}": value for key, value in model.state_dict().items()} | self.head.state_dict(
            prefix="head."
        )
        if any(hasattr(value, "device_mesh") for value in now.values()):
            raise InputError(f"the mask strategy {self.name} keeps a whole teacher: use --strategy ddp with it")
        for key, value in self.teacher.state_dict().items():
            value.lerp_(now[key], 1 - decay)

    def noise(self, model: PretrainingModel, video: Tensor, noise: Tensor) -> Tensor:
        """The noise [B, N] that decides the masks of a training batch, from the random one."""
        step = Step(self.progress, noise.shape[1] - visible_count(noise.shape[1], model.mask_ratio))
        if not step.chosen:
            return noise
        return self.strategy.choose(noise, step, self.scores(model, model.normalize(video)))

    @torch.no_grad()
    def scores(self, model: PretrainingModel, frames: Tensor) -> Tensor:
        """Of each patch of f2 [B, N]: the teacher's guess, or the error of copying f1."""
        if not self.strategy.lesson:
            past = normalize_patches(model.patches(frames[:, :1].expand_as(frames)))
            return squared_error(past, normalize_patches(model.patches(frames)))
        teacher: Any = self.teacher["model"]
        with decoder_features(teacher) as features:
            teacher.predict(frames, torch.zeros(model.patches(frames).shape[:2], device=frames.device))
        return self.teacher["head"](features[0])[..., 0]

    def lesson(self, features: Tensor, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """A zero whose gradient teaches the head: the loss that is reported stays the model's own."""
        assert self.strategy.lesson is not None
        error = squared_error(prediction.detach().float(), target)
        loss = self.strategy.lesson(self.head(features)[..., 0], error, mask)
        return loss - loss.detach()
