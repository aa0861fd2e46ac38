"""Fixed positions of patches: sine and cosine over the grid (MAE's, after Vaswani et al. 2017, §3.5)."""

import torch
from torch import Tensor

from common.errors import InputError


def sincos_positions(dim: int, grid: tuple[int, int], class_token: bool = True) -> Tensor:
    """Positions [1, N (+ 1), dim] of a patch grid (h, w); zeros for the class token in front.

    The first half of the dimensions tells the column, the second the row, as in the public weights.
    """
    if dim % 4:
        raise InputError(f"a width of {dim} does not divide by 4, which sine-cosine positions in two directions need")
    h, w = grid
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    positions = torch.cat([_sincos(dim // 2, columns.flatten()), _sincos(dim // 2, rows.flatten())], dim=1)
    if class_token:
        positions = torch.cat([torch.zeros(1, dim), positions])
    return positions.unsqueeze(0)


def _sincos(dim: int, places: Tensor) -> Tensor:
    frequencies = 10_000 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = places.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
