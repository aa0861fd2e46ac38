"""A page to look into a model: what a patch is like in all frames of a video, and how a painted mask travels.

Features are small enough for a page: of each patch the part along the mean of all (exact), and what is left of it in as
many principal components as it takes, in 8 bits. A cosine is then `along·along + scale·scale·Σ value·value`.

Legend: F frames, h w patch grid, N = h·w patches, D width, K components.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError
from evaluation.features import Source
from evaluation.follow import encode_frames
from evaluation.protocols import Protocol
from evaluation.videos import Frame
from pages.page import LIMIT, data_uri, write_page

VALUES = 5_200_000  # bytes of all 8-bit values, before they become text of 4/3 the size
PICTURES = 1_500_000  # bytes of all frames
LONGEST = 960  # pixels: the long side of frames in the page
COMPONENTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
AGREEMENT = 0.99  # of the best match in another frame, with the full features


@dataclass(frozen=True)
class Packed:
    """Features as the page has them: int8 `values` [F·N, K], float32 `scales` and `along` [F·N].

    variance: share that the components keep of what differs from the mean. agreement: share of (patch, other frame)
    whose best match is that of the full features; lost: how much less alike the others' matches are, at most.
    """

    grid: tuple[int, int]
    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    along: NDArray[np.float32]
    variance: float
    agreement: float
    lost: float

    def features(self) -> Tensor:
        """What the page computes with, as unit vectors [F, h, w, 1 + K]."""
        rest = torch.from_numpy(self.values).float() * torch.from_numpy(self.scales)[:, None]
        return torch.cat([torch.from_numpy(self.along)[:, None], rest], 1).unflatten(0, (-1, *self.grid))

    def __str__(self) -> str:
        worse = "" if self.agreement == 1 else f" (elsewhere the cosine is at most {self.lost:.4f} less)"
        warn = "" if self.agreement >= AGREEMENT else f": less than {AGREEMENT:.0%}"
        return (
            f"{self.values.shape[1]} components of 8 bits keep {self.variance:.1%} of the variance; the best match in "
            f"another frame is that of the full features in {self.agreement:.1%} of cases{worse}{warn}"
        )


def encode(
    frames: Iterable[Frame], source: Source, protocol: Protocol, *, batch: int = 1
) -> tuple[list[Frame], Tensor, tuple[int, int]]:
    """RGB frames [H, W, 3] → the frames, their features [F, h, w, D], and the size that they were encoded at."""
    source.compared_by_cosine("the explorer")
    kept = list(frames)
    if len(kept) < 2:
        raise InputError(f"there {'is' if kept else 'are'} {len(kept)} frame{'' if kept else 's'}; expected at least 2")
    size = protocol.input_size(kept[0].shape[0], kept[0].shape[1], source.patch_size)
    return kept, torch.stack([each.float().cpu() for each in encode_frames(kept, source.encode, size, batch)]), size


def pack(features: Tensor, *, budget: int = VALUES, queries: int = 300) -> Packed:
    """Features [F, h, w, D] in as few components as keep the best matches, as many as the budget (bytes) holds at most.

    queries: patches, evenly spread, whose best match in every frame is looked for to tell how well it agrees.
    """
    frames, h, w, _ = features.shape
    full = F.normalize(features.float(), dim=-1).flatten(0, 2)  # [F·N, D]
    mean = F.normalize(full.mean(0), dim=0)
    along = full @ mean
    rest = full - along[:, None] * mean
    values, vectors = torch.linalg.eigh(rest.T @ rest / len(rest))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    asked = torch.linspace(0, len(full) - 1, min(queries, len(full))).long()
    best = (full[asked] @ full.T).unflatten(1, (frames, -1)).max(2)
    most = min(budget // len(full) // 8 * 8, len(values))
    if most < 1:
        raise InputError(f"{len(full)} patches are too many for a page: ask for fewer frames, or a smaller size")
    choices = [k for k in COMPONENTS if k < most] + [most]
    for k in choices:
        share = (values[:k].sum() / values.sum().clamp(min=1e-12)).item()
        packed = _quantised(along, rest @ (vectors[:, :k] @ _rotation(k)), (h, w), share)
        small = packed.features().flatten(0, 2)
        found = (small[asked] @ small.T).unflatten(1, (frames, -1)).argmax(2)
        own = torch.arange(frames)[None] == (asked // (h * w))[:, None]  # of its own frame a patch is the best match
        kept = (full[asked][:, None] * full.unflatten(0, (frames, -1))[torch.arange(frames)[None], found]).sum(2)
        same = (found == best.indices)[~own].float().mean().item()
        lost = (best.values - kept)[~own].max().clamp(min=0).item()
        packed = Packed(packed.grid, packed.values, packed.scales, packed.along, packed.variance, same, lost)
        if same >= AGREEMENT + 0.005:
            break
    return packed


def _rotation(k: int) -> Tensor:
    """An orthogonal matrix [k, k]: it spreads what few components hold among all, so that 8 bits hold it more exactly.

    Cosines do not change.
    """
    return torch.linalg.qr(torch.randn(k, k, generator=torch.Generator().manual_seed(0)))[0]


def _quantised(along: Tensor, rest: Tensor, grid: tuple[int, int], variance: float) -> Packed:
    """Each patch's components with a scale of their own, and both parts stretched so that it is a unit vector again."""
    scales = rest.abs().amax(1) / 127
    values = (rest / scales.clamp(min=1e-12)[:, None]).round().clamp(-127, 127)
    values = F.pad(values, (0, -values.shape[1] % 8))  # the page takes eight at a time
    length = (along.square() + (values * scales[:, None]).square().sum(1)).sqrt().clamp(min=1e-12)
    return Packed(
        grid, values.to(torch.int8).numpy(), (scales / length).numpy(), (along / length).numpy(), variance, 0.0, 0.0
    )


def write_explorer(
    out: str | Path,
    frames: Sequence[Frame],
    names: Sequence[str],
    packed: Packed,
    size: tuple[int, int],
    protocol: Protocol,
    *,
    title: str,
    source: str,
    predictions: dict[str, Any] | None = None,
) -> int:
    """Write the page and return its size in bytes.

    frames: RGB [H, W, 3], and what to call each, such as its time. size: what they were encoded at, (height, width).
    predictions: what a model that predicts frames makes of pairs of them (`ml.explore_pairs`), if it does.
    """
    shown, pictures = _pictures(frames)
    data = dict(
        title=title, source=source, about=str(packed), protocol=str(protocol), rules=asdict(protocol),
        names=list(names), grid=packed.grid, size=size, shown=shown,
        components=packed.values.shape[1], values=_text(packed.values), scales=_text(packed.scales),
        along=_text(packed.along), frames=pictures, predictions=predictions,
    )  # fmt: skip
    written = write_page(out, "explore", title, data)
    if written > LIMIT:
        raise InputError(f"{out} weighs {written / 2**20:.1f} MB, more than {LIMIT >> 20}: ask for fewer frames")
    return written


def _pictures(frames: Sequence[Frame]) -> tuple[tuple[int, int], list[str]]:
    """Frames as JPEGs, reduced only where they are large, and their size (height, width)."""
    height, width = frames[0].shape[:2]
    factor = min(1.0, LONGEST / max(height, width))
    shown = (round(height * factor), round(width * factor))
    small = [frame if factor == 1 else cv2.resize(frame, shown[::-1], interpolation=cv2.INTER_AREA) for frame in frames]
    for quality in (85, 75, 60, 45, 30):
        files = []
        for frame in small:
            content = BytesIO()
            Image.fromarray(np.ascontiguousarray(frame)).save(content, "JPEG", quality=quality)
            files.append(content.getvalue())
        if sum(map(len, files)) <= PICTURES:
            break
    return shown, [data_uri(file) for file in files]


def _text(array: NDArray[Any]) -> str:
    """Numbers in the byte order of every browser's typed arrays."""
    little = array.astype(array.dtype.newbyteorder("<"))
    return data_uri(little.tobytes(), "").partition(",")[2]
