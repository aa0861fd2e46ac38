"""Following single points by matching: a query's feature against every patch of every frame, each query on its own.

Legend: T frames, N queries, h w patch grid, D width.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evaluation.follow import encode_frames
from evaluation.videos import Frame

WINDOW = 2  # cells around the best one that a place is read from
TEMPERATURE = 0.05  # of the softmax within the window
BACK = (
    0.09  # of the frame's side: a point whose way back ends further off is called occluded (tried on synthetic video)
)


@torch.no_grad()
def follow_points(
    frames: Iterable[Frame],
    queries: NDArray[np.float64],
    encode: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    *,
    batch: int = 1,
) -> Iterator[NDArray[np.float64]]:
    """RGB frames and queries [N, 3] (frame, y, x; both in 0 … 1) → of each frame [N, 3]: x, y in 0 … 1 and occluded.

    Frames are resized to `size` (height, width) and encoded once; their features are kept, in 16 bits.
    """
    encoded = encode_frames(frames, encode, size, batch)
    features = [F.normalize(each.float(), dim=-1).half() for each in encoded]
    places = torch.from_numpy(queries[:, [2, 1]]).float().to(features[0].device)  # [N, 2] x, y
    starts = queries[:, 0].astype(int)
    rows = {int(start): torch.from_numpy(np.flatnonzero(starts == start)) for start in np.unique(starts)}
    wanted = torch.empty(len(queries), features[0].shape[-1], device=places.device)
    for start, chosen in rows.items():
        wanted[chosen] = _sample(features[start].float(), places[chosen])
    for index, frame_features in enumerate(features):
        here = frame_features.float()
        found = _best(wanted, here)
        back = torch.empty_like(found)
        seen = _sample(here, found)
        for start, chosen in rows.items():
            back[chosen] = _best(seen[chosen], features[start].float())
        occluded = (back - places).norm(dim=1) > BACK
        given = torch.from_numpy(starts == index).to(places.device)
        found, occluded = torch.where(given[:, None], places, found), occluded & ~given
        yield torch.cat([found, occluded[:, None].float()], dim=1).double().cpu().numpy()


def _sample(features: Tensor, places: Tensor) -> Tensor:
    """Normalised features [h, w, D] between the cells at places [N, 2] (x, y in 0 … 1) → [N, D], normalised."""
    grid = (2 * places - 1)[None, None]
    values = F.grid_sample(features.permute(2, 0, 1)[None], grid, align_corners=False, padding_mode="border")
    return F.normalize(values[0, :, 0].T, dim=1)


def _best(wanted: Tensor, features: Tensor) -> Tensor:
    """Features [N, D] and those of a frame [h, w, D] → where they are most alike, [N, 2] (x, y in 0 … 1).

    The mean of the centres of the cells within the window around the best one, weighted by a softmax of their cosines.
    """
    h, w, _ = features.shape
    cosines = wanted @ features.flatten(0, 1).T  # [N, h·w]
    best = cosines.argmax(dim=1)
    y, x = torch.arange(h, device=best.device), torch.arange(w, device=best.device)
    near = ((y - (best // w)[:, None]).abs() <= WINDOW)[:, :, None] & ((x - (best % w)[:, None]).abs() <= WINDOW)[
        :, None
    ]
    weights = (cosines.unflatten(1, (h, w)) / TEMPERATURE).masked_fill(~near, -torch.inf).flatten(1).softmax(dim=1)
    weights = weights.unflatten(1, (h, w))
    return torch.stack([weights.sum(1) @ ((x + 0.5) / w), weights.sum(2) @ ((y + 0.5) / h)], dim=1)
