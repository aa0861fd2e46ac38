"""Which patches are hidden: a function of noise, and noise as a function of seeds.

Legend: B batch, N patches, K kept (visible) patches.
"""

import math

import torch
from torch import Tensor

from mae.files import InputError


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
    B, N = noise.shape
    K = visible_count(N, mask_ratio)
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= K).float()
    return ids_shuffle[:, :K], mask, ids_restore


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
