"""Which patches are hidden: a function of noise, and noise as a function of seeds.

A kind of mask is a function in `MASKINGS`; to add one, write it and give it a name there and in `ml.config.MaskKind`.

Legend: B batch, N patches (of a clip: T·S, T steps in time with S places each), K kept (visible) patches.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import InputError

Mask = tuple[Tensor, Tensor, Tensor]
"""ids_keep [B, K]; mask [B, N], float, 1 = hidden; ids_restore [B, N], the inverse permutation:
`torch.cat([kept, hidden])` gathered with it is in image order again."""


def visible_count(N: int, mask_ratio: float) -> int:
    """How many of N patches stay visible: ⌊N·(1 − ratio)⌋, as the public MAE counts, and at least one.

    196 patches at 50, 75, 90, 95 % leave 98, 49, 19, 9. The only place in the project where a ratio becomes a count;
    the 1e-6 keeps 100·(1 − 0.9) from being 9.
    """
    if not 0 <= mask_ratio < 1:
        raise InputError(f"a mask ratio of {mask_ratio} is not in [0, 1); write 0.95 for 95 %")
    return max(1, math.floor(N * (1 - mask_ratio) + 1e-6))


def random_masking(noise: Tensor, mask_ratio: float, steps: int = 1) -> Mask:
    """Hide the patches with the largest noise [B, N], of any sortable kind (MAE §3, "Masking"); of a clip anywhere in
    space and time."""
    return _keep_smallest(noise, visible_count(noise.shape[1], mask_ratio))


def tube_masking(noise: Tensor, mask_ratio: float, steps: int) -> Mask:
    """The same places at every step; only the noise [B, :S] is read, so they do not depend on the clip's length."""
    S = noise.shape[1] // steps
    order = _ranks(noise[:, :S])[:, None] * steps + torch.arange(steps, device=noise.device)[:, None]  # [B, T, S]
    return _keep_smallest(order.flatten(1), visible_count(S, mask_ratio) * steps)


def frame_masking(noise: Tensor, mask_ratio: float, steps: int) -> Mask:
    """Whole steps, drawn at random; only the noise [B, :T] is read, so they do not depend on the clip's size."""
    return _whole_steps(_ranks(noise[:, :steps]), noise, mask_ratio)


def prospective_masking(noise: Tensor, mask_ratio: float, steps: int) -> Mask:
    """The future: the first steps are seen, all later ones are hidden. Nothing is drawn."""
    return _whole_steps(torch.arange(steps, device=noise.device).expand(len(noise), -1), noise, mask_ratio)


def retrospective_masking(noise: Tensor, mask_ratio: float, steps: int) -> Mask:
    """The past: the last steps are seen, all earlier ones are hidden. Nothing is drawn."""
    return _whole_steps(torch.arange(steps, device=noise.device).flip(0).expand(len(noise), -1), noise, mask_ratio)


MASKINGS: dict[str, Callable[[Tensor, float, int], Mask]] = {  # the first three: Feichtenhofer et al. 2022, §3
    "agnostic": random_masking,
    "tube": tube_masking,
    "frame": frame_masking,
    "prospective": prospective_masking,
    "retrospective": retrospective_masking,
}


def clip_masking(noise: Tensor, mask_ratio: float, steps: int, kind: str = "agnostic") -> Mask:
    """Hide tubelets of a clip by one of `MASKINGS`: noise [B, N] for N = T·S tubelets, T = `steps`, time first.

    Whatever is hidden as a whole (places, steps) is counted by `visible_count`, so at least one stays visible: 8 steps
    at 90 % keep one, which hides 87.5 %.
    """
    if kind not in MASKINGS:
        raise InputError(f"mask kind {kind!r} is unknown; there are {', '.join(MASKINGS)}")
    if noise.shape[1] % steps:
        raise InputError(f"{noise.shape[1]} tubelets do not divide into {steps} steps in time")
    return MASKINGS[kind](noise, mask_ratio, steps)


def check_some_hidden(N: int, mask_ratio: float, visible: int | None = None) -> None:
    """An InputError where all N patches stay visible (counted, unless it is given): the loss would be 0 / 0."""
    if (visible_count(N, mask_ratio) if visible is None else visible) == N:
        raise InputError(
            f"at a mask ratio of {mask_ratio} all {N} patches stay visible, and nothing is left to predict: raise "
            "it, or take another kind of mask"
        )


def _whole_steps(order: Tensor, noise: Tensor, mask_ratio: float) -> Mask:
    """Keep the steps that come first in an order [B, T]."""
    T, S = order.shape[1], noise.shape[1] // order.shape[1]
    keys = order[..., None] * S + torch.arange(S, device=noise.device)  # [B, T, S]
    return _keep_smallest(keys.flatten(1), visible_count(T, mask_ratio) * S)


def _keep_smallest(keys: Tensor, K: int) -> Mask:
    """Keep the K places with the smallest keys [B, N], smallest first."""
    ids_shuffle = torch.argsort(keys, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= K).float()
    return ids_shuffle[:, :K], mask, ids_restore


def _ranks(noise: Tensor) -> Tensor:
    """The place of each value [B, n] in its row's order: a permutation of 0 … n − 1."""
    return torch.argsort(torch.argsort(noise, dim=1, stable=True), dim=1)


def fill_from_visible(values: Tensor, mask: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Values [B, N, 1] of the places of a grid (T, h, w), of which the hidden ones get a mean over the visible ones.

    Weights fall with the distance in steps, rows and columns as a Gaussian's do, so that the nearest ones count.
    """
    axes = [torch.arange(n, device=mask.device, dtype=torch.float) for n in grid]
    places = torch.cartesian_prod(*axes)  # [N, 3]
    near = -0.5 * torch.cdist(places, places).square()
    weights = near.masked_fill(mask[:, None] == 1, -torch.inf).softmax(dim=-1)  # [B, N, N]
    return torch.where(mask[..., None] == 0, values, weights @ values)


def nearest_in_time(mask: Tensor, T: int) -> Tensor:
    """For each tubelet [B, N] the number of the visible one at its place whose step is nearest, of two the earlier.

    Where none is visible the number means nothing.
    """
    hidden = mask.unflatten(1, (T, -1))  # [B, T, h·w]
    steps = torch.arange(T, device=mask.device)
    away = (steps[:, None] - steps).abs()[None, :, :, None] + T * hidden[:, None]  # [B, T, T to copy from, h·w]
    places = torch.arange(hidden.shape[2], device=mask.device)
    return (away.argmin(2) * hidden.shape[2] + places).flatten(1)


@torch.compiler.disable  # inductor's C++ code (torch 2.15) computes wrong int64 products on overflow
def mask_noise(seeds: Tensor, N: int) -> Tensor:
    """Noise [B, N] (int64) that is a pure function of each sample's seed [B] (int64): SplitMix64 (Steele et al. 2014).

    The same sample gets the same mask on every device, in every batch and on every rank, and a resume needs no
    generator's state for it.
    """
    gamma = _signed(0x9E3779B97F4A7C15)
    x = _mix(seeds[:, None] * gamma + gamma)  # neighbouring seeds part here
    return _mix(x + gamma * torch.arange(1, N + 1, device=seeds.device)) & (2**63 - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; the algorithm wants zeros


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
