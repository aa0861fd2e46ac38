"""Which patches are hidden: a function of noise, and noise as a function of seeds.

Legend: B batch, N patches (of a clip: T·S, T steps in time with S places each), K kept (visible) patches.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from common.errors import InputError

MaskKind = Literal["agnostic", "tube", "frame", "prospective", "retrospective"]


def visible_count(N: int, mask_ratio: float) -> int:
    """How many of N patches stay visible: ⌊N·(1 − ratio)⌋, as the public MAE counts, and at least one.

    196 patches at 50, 75, 90, 95 % leave 98, 49, 19, 9. The only place in the project where a ratio becomes a count;
    the 1e-6 keeps 100·(1 − 0.9) from being 9.
    """
    if not 0 <= mask_ratio < 1:
        raise InputError(f"a mask ratio of {mask_ratio} is not in [0, 1); write 0.95 for 95 %")
    return max(1, math.floor(N * (1 - mask_ratio) + 1e-6))


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Hide the patches with the largest noise (MAE §3, "Masking").

    noise [B, N] of any sortable kind → ids_keep [B, K]; mask [B, N], float, 1 = hidden; ids_restore [B, N], the inverse
    permutation: `torch.cat([kept, hidden])` gathered with it is in image order again.
    """
    return _keep_smallest(noise, visible_count(noise.shape[1], mask_ratio))


def clip_masking(
    noise: Tensor, mask_ratio: float, steps: int, kind: MaskKind = "agnostic"
) -> tuple[Tensor, Tensor, Tensor]:
    """Hide tubelets of a clip: what `random_masking` returns, for N = T·S tubelets, T = `steps`, time first.

    kind (the first three: Feichtenhofer et al. 2022, §3, "Masking")
        agnostic       tubelets anywhere in space and time, as `random_masking` does
        tube           the same places at every step: S becomes a count, whole places are hidden
        frame          whole steps, drawn at random: T becomes a count
        prospective    the future: the first steps are seen, all later ones are hidden; T becomes a count
        retrospective  the past: the last steps are seen, all earlier ones are hidden; T becomes a count
    A count is `visible_count`'s, so at least one place or step stays visible: 8 steps at 90 % keep one, which hides
    87.5 %. `tube` reads the first S values of the noise and `frame` the first T, and the last two read none, so that
    with `mask_noise` the hidden places do not depend on the clip's length, nor the hidden steps on its size.
    """
    if kind not in get_args(MaskKind):
        raise InputError(f"mask kind {kind!r} is unknown; there are {', '.join(get_args(MaskKind))}")
    B, N = noise.shape
    if N % steps:
        raise InputError(f"{N} tubelets do not divide into {steps} steps in time")
    if kind == "agnostic":
        return random_masking(noise, mask_ratio)
    S = N // steps
    step = torch.arange(steps, device=noise.device).repeat_interleave(S).expand(B, N)
    place = torch.arange(S, device=noise.device).repeat(steps).expand(B, N)
    if kind == "tube":
        ranks = _ranks(noise[:, :S]).repeat(1, steps)
        return _keep_smallest(ranks * steps + step, visible_count(S, mask_ratio) * steps)
    if kind == "frame":
        ranks = _ranks(noise[:, :steps]).repeat_interleave(S, dim=1)
    else:
        ranks = step if kind == "prospective" else steps - 1 - step
    return _keep_smallest(ranks * S + place, visible_count(steps, mask_ratio) * S)


def _keep_smallest(keys: Tensor, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the K places with the smallest keys [B, N], smallest first: ids_keep, mask, ids_restore."""
    ids_shuffle = torch.argsort(keys, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= K).float()
    return ids_shuffle[:, :K], mask, ids_restore


def _ranks(noise: Tensor) -> Tensor:
    """The place of each value [B, n] in its row's order: a permutation of 0 … n − 1."""
    return torch.argsort(torch.argsort(noise, dim=1, stable=True), dim=1)


@torch.compiler.disable  # inductor's C++ gets products of int64 that wrap around wrong (torch 2.15), and so the masks
def mask_noise(seeds: Tensor, N: int) -> Tensor:
    """Noise [B, N] (int64) that is a pure function of each sample's seed [B] (int64): SplitMix64 (Steele et al. 2014).

    The same sample gets the same mask on every device, in every batch and on every rank, and no generator's state has
    to be saved for that.
    """
    gamma = _signed(0x9E3779B97F4A7C15)
    x = _mix(seeds[:, None] * gamma + gamma)  # seeds that are neighbours part here
    return _mix(x + gamma * torch.arange(1, N + 1, device=seeds.device)) & (2**63 - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; the algorithm wants zeros


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
