"""AdamW with MAE's grouping of parameters, the learning rate as a pure function of the step, and averaged weights."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.errors import InputError
from ml.ranks import like, whole


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float = 0.05, *, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW, β = (0.9, 0.95), decay on matrices and on the class and mask tokens, none on vectors (MAE, table 8).

    The public code decides by the number of dimensions: biases and norms have one and are not decayed. layer_decay:
    each layer of the encoder learns with this times the rate of the one above it (BEiT's rule, MAE table 9); a group's
    factor is kept as `lr_factor`. The first two groups are those of the full rate: matrices, then vectors.
    """
    depth = 1 + max((_layer(name) or 0 for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, False): [], (1.0, True): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = _layer(name)
            factor = 1.0 if layer is None else layer_decay ** (depth - layer)
            groups.setdefault((factor, parameter.ndim <= 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            dict(params=params, weight_decay=0.0 if vectors else weight_decay, lr=lr * factor, lr_factor=factor)
            for (factor, vectors), params in groups.items()
            if params
        ],
        lr=lr,
        betas=(0.9, 0.95),
        fused=True,
    )


def lr_scale(step: int, warmup_steps: int, steps: int) -> float:
    """What update `step` (from 0) multiplies the peak learning rate with: a line up from 0, half a cosine down.

    The first update has 0, update `warmup_steps` has 1, and `steps`, which is never reached, would have 0 again.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def make_scheduler(optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int) -> LambdaLR:
    """`lr_scale` for torch: call `step()` once after each update; then it is already right for the next one."""
    return LambdaLR(optimizer, lambda step: lr_scale(step, warmup_steps, steps))


def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """The norm of all gradients together (a scalar), which are shortened to `most` if that is above 0."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most > 0:
        clip_grads_with_norm_(parameters, most, norm)
    return whole(norm)


def update(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """One step of the optimiser, which does nothing where the gradients' norm is not finite.

    The fused AdamW decides that on the device, so a GPU is not waited for.
    """
    skip = (~norm.isfinite()).float()
    if not all(group.get("fused") for group in optimizer.param_groups):
        if not skip.item():
            optimizer.step()
        return
    like_this = optimizer.param_groups[0]["params"][0]
    optimizer.found_inf = like(skip, like_this, whole=True)  # type: ignore[attr-defined]  # as torch's GradScaler does
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What the optimiser remembers, by the parameters' names and whole: independent of groups and of processes."""
    named = {id(p): name for name, p in model.named_parameters()}
    return {
        named[id(p)]: {key: whole(value).detach() for key, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
        if p in optimizer.state
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Put back what `optimizer_state` gave; an InputError where the parameters are others."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if state and state.keys() != trained.keys():
        raise InputError(
            f"the optimiser's state is of {len(state)} parameters, the model trains {len(trained)}: "
            "it belongs to another model"
        )
    for name, values in state.items():
        parameter = trained[name]
        optimizer.state[parameter] = {
            key: like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
            for key, value in values.items()
        }


class Averaged:
    """Exponentially averaged weights beside the trained ones (EMA); `decay` 0 keeps none and does nothing."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"ema is {decay}; expected 0 (off) or a decay below 1, such as 0.999")
        self.decay = decay
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self._weights = [p.detach().clone() for p in self._trained.values()]
        self._step: Any = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """average ← decay · average + (1 − decay) · weights"""
        if self._weights:
            self._step(self._weights, [p.detach() for p in self._trained.values()], None)

    def state(self) -> dict[str, Tensor]:
        """The averages by name, whole."""
        return {name: whole(value) for name, value in zip(self._trained, self._weights, strict=True)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        if state.keys() != self._trained.keys():
            raise InputError(f"averaged weights of {len(state)} parameters, {len(self._trained)} are wanted")
        for value, (name, parameter) in zip(self._weights, self._trained.items(), strict=True):
            value.copy_(like(state[name], parameter))

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights (where there are any)."""
        trained = [p.detach().clone() for p in self._trained.values()] if self._weights else []
        for parameter, value in zip(self._trained.values(), self._weights, strict=True):
            parameter.copy_(value)
        try:
            yield
        finally:
            for parameter, value in zip(self._trained.values(), trained, strict=True):
                parameter.copy_(value)


def _layer(name: str) -> int | None:
    """Which layer of the encoder a parameter belongs to: 0 for the embedding, then the blocks; None above them."""
    name = name.removeprefix("encoder.")
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("patch_embed.", "cls_token", "pos_embed")) else None
