"""One training step, a function without state: forward, backward, clip, update.

`train` and `train_one_epoch` both call it, and so do the tests that record losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ml.devices import precision
from ml.loading import Batch, seeds_of
from ml.optimisation import clip_gradients, update
from ml.ranks import Ranks, sharing, unwrapped


@dataclass(frozen=True)
class StepResult:
    """What a step came to. On a GPU the numbers are still on their way: reading one of them waits for the device."""

    pairs: int
    """of this rank"""
    numbers: Tensor
    arrived: torch.cuda.Event | None

    @cached_property
    def _read(self) -> list[float]:
        if self.arrived:
            self.arrived.synchronize()
        return self.numbers.tolist()

    @property
    def loss(self) -> float:
        """The mean over the pairs of all ranks."""
        return self._read[0]

    @property
    def grad_norm(self) -> float:
        """Before clipping."""
        return self._read[1]

    @property
    def own_loss(self) -> float:
        """The mean over the pairs of this rank."""
        return self._read[2]


def training_step(
    module: nn.Module,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    ranks: Ranks | None = None,
    clip_grad: float = 0.0,
) -> StepResult:
    """Update the weights once, with the gradient of the mean loss over the pairs of all batches and of all ranks.

    module: a model, or what `wrap` made of it, on `device`. clip_grad: the largest norm of the gradients; 0: any. Where
    the loss or the norm is NaN or infinite on any rank, every rank leaves its weights and its optimiser as they are.
    """
    optimizer.zero_grad(set_to_none=True)
    samples = sum(len(batch["video"]) for batch in batches)
    own, pairs, model = torch.zeros((), device=device), 0, unwrapped(module)
    for k, batch in enumerate(batches):
        video = batch["video"].to(device, non_blocking=True)
        with sharing(module, k == len(batches) - 1):
            noise = model.draw_noise(video, seeds_of(batch, device))  # here: a compiled model has no part that draws
            with precision(device):
                loss, _, mask = module(video, noise=noise)
            loss = loss * (len(video) / samples)
            loss.backward()
        own += loss.detach()
        pairs += len(mask)
    norm = clip_gradients(module, clip_grad)
    mean = ranks.mean(own.clone()) if ranks else own
    update(optimizer, norm + 0 * mean)  # NaN if either is not finite, so every rank skips the step
    return _result(pairs, torch.stack([mean, norm.to(device), own]))


def _result(pairs: int, numbers: Tensor) -> StepResult:
    if numbers.device.type != "cuda":
        return StepResult(pairs, numbers, None)
    host = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return StepResult(pairs, host, arrived)
