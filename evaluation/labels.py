"""Labels of pictures to soft labels of patches and back: masks, and joints as heat.

Integer labels are only ever resized to the nearest pixel (the one under a pixel's centre).
Legend: h w patch grid, H W pixels, M labels, J joints.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evaluation.protocols import Protocol

JOINT_SIGMA = 0.5  # cells; JHMDB's public script
JOINT_CELLS = 5  # best cells that a joint is read from


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels [H, W] at another size (height, width), each pixel the nearest one."""
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def mask_to_patches(
    mask: NDArray[np.uint8],
    grid: tuple[int, int],
    input_size: tuple[int, int],
    protocol: Protocol,
    values: NDArray[np.uint8] | None = None,
) -> tuple[Tensor, NDArray[np.uint8]]:
    """A mask [H, W] → soft labels [h, w, M] of the patch grid, and which label each of the M is.

    M are the labels that occur, the background among them where it does, unless `values` names them; a pixel with none
    of these then counts for nothing.
    """
    values = np.unique(mask) if values is None else values
    small = resize_labels(mask, grid if protocol.reduce == "nearest" else input_size)
    each = torch.from_numpy(small == values[:, None, None]).float()  # [M, H, W]
    if protocol.reduce == "bilinear":
        each = F.interpolate(each[None], grid, mode="bilinear", align_corners=False)[0]
    return each.permute(1, 2, 0).contiguous(), values


def patches_to_mask(
    soft: Tensor, values: NDArray[np.uint8], input_size: tuple[int, int], size: tuple[int, int], protocol: Protocol
) -> NDArray[np.uint8]:
    """Soft labels [h, w, M] → the mask at the annotation's size (height, width): upsample, largest wins, nearest."""
    return resize_labels(values[winners(soft, input_size, protocol).cpu().numpy()], size)


def winners(soft: Tensor, input_size: tuple[int, int], protocol: Protocol) -> Tensor:
    """Soft labels [h, w, M] → which of the M is largest, the first of equals: [H, W] uint8 at the input size."""
    maps = patches_to_maps(soft, input_size, protocol)
    return maps.max(dim=0).indices.to(torch.uint8)  # on a CPU argmax takes 15 times as long


def patches_to_maps(soft: Tensor, input_size: tuple[int, int], protocol: Protocol) -> Tensor:
    """Soft labels [h, w, M] → [M, H, W] at the input size, of which the largest wins."""
    channels = soft.permute(2, 0, 1)[None]
    if protocol.enlarge == "nearest":
        maps = F.interpolate(channels, input_size, mode="nearest-exact")[0]
    else:
        maps = F.interpolate(channels, input_size, mode="bilinear", align_corners=False)[0]
    return stretch(maps) if protocol.min_max else maps


def stretch(maps: Tensor) -> Tensor:
    """Each map of [M, H, W] to [0, 1], as DINO's script does it.

    There a map without contrast becomes 0/0, which wins everywhere, unless it is 0 throughout: ∞ here does the same.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    stretched = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.where(high > low, stretched, torch.where(high > 0, torch.inf, maps))


def joints_to_patches(joints: NDArray[np.float64], size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Joints [J, 2] (x, y in a frame of size H×W; NaN: not known) → heat [h, w, 1 + J], the background first.

    A Gaussian of half a cell around the nearest cell, cut to 4×4 cells; the background is 1 where no joint has any
    heat (JHMDB's public script; a joint whose cells all lie outside of the frame has none).
    """
    h, w = grid
    heat = np.zeros((h, w, 1 + len(joints)), dtype=np.float32)
    for index, (x, y) in enumerate(joints, start=1):
        if np.isfinite([x, y]).all():
            rows, columns = _bell(y * h / size[0], h), _bell(x * w / size[1], w)
            heat[:, :, index] = rows[:, None] * columns
    heat[:, :, 0] = heat.sum(axis=2) == 0
    return torch.from_numpy(heat)


def patches_to_joints(soft: Tensor, size: tuple[int, int], cells: int = JOINT_CELLS) -> NDArray[np.float64]:
    """Heat [h, w, 1 + J] → joints [J, 2] (x, y in a frame of size H×W): the best cells' mean, weighted by their heat.

    Cells count by their corner, without a shift by half a cell (JHMDB's public script). Without any heat: −1, −1.
    """
    h, w, _ = soft.shape
    heat = soft[:, :, 1:].flatten(0, 1)  # [N, J]
    values, places = heat.topk(min(cells, len(heat)), dim=0)
    total = values.sum(dim=0)
    weights = values / total.clamp(min=torch.finfo(values.dtype).tiny)
    joints = torch.stack(
        [(places % w * weights).sum(0) * (size[1] / w), (places // w * weights).sum(0) * (size[0] / h)]
    )
    return torch.where(total > 0, joints, -1).T.double().cpu().numpy()


def _bell(centre: float, cells: int) -> NDArray[np.float64]:
    """One axis of a joint's heat, [cells]. The borders are rounded towards 0 as in the public script, so that a joint
    in the first cells is drawn where that script draws it.
    """
    first, end = int(centre - 3 * JOINT_SIGMA), int(centre + 3 * JOINT_SIGMA + 1)
    bell = np.zeros(cells)
    for cell in range(max(first, 0), min(end, cells)):
        bell[cell] = np.exp(-((cell - first - 2) ** 2) / (2 * JOINT_SIGMA**2))
    return bell
