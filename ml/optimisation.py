"""AdamW with MAE's grouping of parameters, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def make_optimizer(model: nn.Module, lr: float, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW, β = (0.9, 0.95), decay on matrices and on the class and mask tokens, none on vectors (MAE, table 8).

    The public code decides by the number of dimensions: biases and norms have one and are not decayed.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for name, p in trained if p.ndim <= 1]
    others = [p for name, p in trained if p.ndim > 1]
    groups = [dict(params=others, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def lr_scale(step: int, warmup_steps: int, steps: int) -> float:
    """What update `step` (from 0) multiplies the peak learning rate with: a line up from 0, half a cosine down.

    The first update has 0, update `warmup_steps` has 1, and `steps`, which is never reached, would have 0 again.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def make_scheduler(optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int) -> LambdaLR:
    """`lr_scale` for torch: call `step()` once after each update; then it is already right for the next one."""
    return LambdaLR(optimizer, lambda step: lr_scale(step, warmup_steps, steps))
