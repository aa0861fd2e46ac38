"""Following labels through a video: frames in, masks or joints out, with any feature function and any protocol.

Legend: H W pixels, h w patch grid, D width, J joints.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice, tee
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InputError
from evaluation.labels import (
    joints_to_patches,
    mask_to_patches,
    patches_to_joints,
    patches_to_maps,
    resize_labels,
    winners,
)
from evaluation.propagation import Affinity, propagate
from evaluation.protocols import Protocol
from evaluation.threads import ahead
from evaluation.videos import Frame, Joints, Label, Mask

Encode = Callable[[Tensor], Tensor]  # images uint8 [B, 3, H, W] → features [B, h, w, D], on any device
Size = tuple[int, int]
AHEAD = 2  # batches that are read while one is followed: all that is in memory are these


def follow_mask(
    frames: Iterable[Frame],
    first: Mask,
    encode: Encode,
    protocol: Protocol,
    *,
    patch_size: int = 16,
    batch: int = 1,
    oracle: Mapping[int, Mask] | None = None,
    later: Mapping[int, Mask] | None = None,
    void: int | None = None,
    affinity: Affinity | None = None,
) -> Iterator[Mask]:
    """RGB frames [H, W, 3] and the first one's mask [H', W'] → the masks [H', W'] of the others in order.

    A thread reads `AHEAD` batches ahead, and each frame is encoded once. `oracle`: true masks by frame, which a control
    puts into the context (`evaluation.controls`). void: a label that is not followed. affinity: in place of cosines.

    later: masks of objects that start in later frames. Those that start together are followed together, from their
    first frame on; where two such groups claim a pixel, the larger soft label wins.
    """
    video = _Encoded(frames, encode, protocol, patch_size, batch)
    shape = (first.shape[0], first.shape[1])
    starts = {0: first, **(later or {})}
    groups = []
    for (start, mask), stream in zip(sorted(starts.items()), tee(video.features, len(starts)), strict=True):
        values = np.unique(mask)
        values = values if void is None else values[values != void]

        def to_patches(mask: Mask, values: Mask = values) -> Tensor:
            return mask_to_patches(mask, video.grid, video.size, protocol, values)[0]

        known = {index - start: label for index, label in oracle.items()} if oracle is not None else None
        stream = islice(stream, start, None)
        groups.append((start, values, _follow(video, stream, mask, to_patches, protocol, known, affinity)))
    if len(groups) == 1:
        _, values, softs = groups[0]
        for winner in _on_host(winners(soft, video.size, protocol) for soft in softs):
            yield resize_labels(values[winner], shape)
        return
    for index in count(1):
        found = [(values, next(softs, None)) for start, values, softs in groups if start < index]
        found = [(values, soft) for values, soft in found if soft is not None]
        if not found:
            return
        mask = _merged(found, video.size, shape, protocol)
        given = starts.get(index)
        yield mask if given is None else np.where(given > 0, given, mask)


def _on_host(tensors: Iterable[Tensor]) -> Iterator[NDArray[Any]]:
    """The tensors as arrays, in order; while a GPU makes and copies one, it is already given the work of the next."""
    coming: deque[tuple[Tensor, Any]] = deque()
    for tensor in tensors:
        copied = tensor.to("cpu", non_blocking=tensor.is_cuda)
        coming.append((copied, torch.cuda.current_stream().record_event() if tensor.is_cuda else None))
        if not tensor.is_cuda or len(coming) > 1:
            yield _arrived(*coming.popleft())
    for pair in coming:
        yield _arrived(*pair)


def _arrived(copied: Tensor, event: Any) -> NDArray[Any]:
    if event is not None:
        event.synchronize()
    return copied.numpy()


def _merged(found: Sequence[tuple[Mask, Any]], size: Size, shape: Size, protocol: Protocol) -> Mask:
    """Soft labels of several groups → one mask: of the objects that win in their groups, the largest soft label."""
    best, labels = torch.zeros(size), np.zeros(size, dtype=np.uint8)
    for values, soft in found:
        strength, winner = patches_to_maps(soft, size, protocol).cpu().max(dim=0)
        named = values[winner.numpy()]
        better = ((strength > best) & torch.from_numpy(named > 0)).numpy()
        best[better], labels[better] = strength[better], named[better]
    return resize_labels(labels, shape)


def follow_joints(
    frames: Iterable[Frame],
    first: Joints,
    encode: Encode,
    protocol: Protocol,
    *,
    patch_size: int = 16,
    batch: int = 1,
    oracle: Mapping[int, Joints] | None = None,
    affinity: Affinity | None = None,
) -> Iterator[Joints]:
    """RGB frames [H, W, 3] and the first one's joints [J, 2] (x, y in pixels) → the joints of the others in order.

    Joints that are not known at first (NaN), or lost on the way, are −1, −1. `oracle`, affinity: as of `follow_mask`.
    """
    video = _Encoded(frames, encode, protocol, patch_size, batch)

    def to_patches(joints: Joints) -> Tensor:
        return joints_to_patches(joints, video.frame_size, video.grid)

    for heat in _follow(video, video.features, first, to_patches, protocol, oracle, affinity):
        yield patches_to_joints(heat, video.frame_size)


class _Encoded:
    """The frames of a video as features [h, w, D], computed as they are asked for, and its sizes.

    frame_size: of the frames as they come; size: what they are resized to; grid: (h, w).
    """

    def __init__(
        self, frames: Iterable[Frame], encode: Encode, protocol: Protocol, patch_size: int, batch: int
    ) -> None:
        stream = iter(frames)
        opening = next(stream, None)
        if opening is None:
            raise InputError("a video without frames: expected at least one")
        self.frame_size: Size = (opening.shape[0], opening.shape[1])
        self.size = protocol.input_size(*self.frame_size, patch_size)
        features = encode_frames(chain([opening], stream), encode, self.size, batch)
        self.first = next(features)
        self.grid: Size = (self.first.shape[0], self.first.shape[1])
        self.features = chain([self.first], features)


@torch.no_grad()
def encode_frames(frames: Iterable[Frame], encode: Encode, size: Size, batch: int = 1) -> Iterator[Tensor]:
    """RGB frames [H, W, 3], brought to a size (height, width) → the features [h, w, D] of each, computed as they are
    asked for, while a thread reads and resizes `AHEAD` batches more. Raises InputError for a frame of another size than
    the first."""
    for images in ahead(_batches(frames, size, batch), AHEAD):
        yield from encode(images)


def _batches(frames: Iterable[Frame], size: Size, batch: int) -> Iterator[Tensor]:
    """Images uint8 [B, 3, H, W] at a size, in pinned memory where there is a GPU to copy them to."""
    stream, first = iter(frames), None
    while chunk := list(islice(stream, batch)):
        first = first or chunk[0].shape[:2]
        for frame in chunk:
            if frame.shape[:2] != first:
                sizes = ["×".join(map(str, shape)) for shape in (frame.shape[:2], first)]
                raise InputError(f"a frame of {sizes[0]} follows one of {sizes[1]}: all must be alike")
        images = torch.from_numpy(np.stack([resize_frame(frame, size) for frame in chunk]))
        yield (images.pin_memory() if torch.cuda.is_initialized() else images).permute(0, 3, 1, 2)


def _follow(
    video: _Encoded,
    features: Iterable[Tensor],
    first: Label,
    to_patches: Callable[[Label], Tensor],
    protocol: Protocol,
    oracle: Mapping[int, Label] | None,
    affinity: Affinity | None,
) -> Iterator[Tensor]:
    """The soft labels [h, w, M] of all frames but the first."""

    def true_labels(index: int) -> Tensor | None:
        label = (oracle or {}).get(index)
        return None if label is None else to_patches(label)

    known = true_labels if oracle is not None else None
    labels = to_patches(first).to(video.first.device)
    return propagate(features, labels, protocol, oracle=known, affinity=affinity)


def resize_frame(frame: Frame, size: Size) -> Frame:
    """A frame [H, W, 3] at another size (height, width): bilinear without antialiasing, as all the protocols do it."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"a frame is {frame.dtype} of shape {frame.shape}; expected RGB, uint8 [height, width, 3]")
    return np.asarray(cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
