"""Following labels through a video: frames in, masks or joints out, with any feature function and any protocol.

Legend: H W pixels, h w patch grid, D width, J joints.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice

import cv2
import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from evaluation.labels import joints_to_patches, mask_to_patches, patches_to_joints, patches_to_mask
from evaluation.propagation import propagate
from evaluation.protocols import Protocol
from evaluation.videos import Frame, Joints, Label, Mask

Encode = Callable[[Tensor], Tensor]  # images uint8 [B, 3, H, W] → features [B, h, w, D], on any device
Size = tuple[int, int]


def follow_mask(
    frames: Iterable[Frame],
    first: Mask,
    encode: Encode,
    protocol: Protocol,
    *,
    patch_size: int = 16,
    batch: int = 1,
    oracle: Mapping[int, Mask] | None = None,
) -> Iterator[Mask]:
    """RGB frames [H, W, 3] and the first one's mask [H', W'] → the masks [H', W'] of the others in turn.

    Frames are read one batch ahead at most, and each is encoded once. `oracle`: true masks by frame, which a control
    puts into the context (`evaluation.controls`).
    """
    values = np.unique(first)
    video = _Encoded(frames, encode, protocol, patch_size, batch)

    def to_patches(mask: Mask) -> Tensor:
        return mask_to_patches(mask, video.grid, video.size, protocol, values)[0]

    for soft in _follow(video, first, to_patches, protocol, oracle):
        yield patches_to_mask(soft, values, video.size, (first.shape[0], first.shape[1]), protocol)


def follow_joints(
    frames: Iterable[Frame],
    first: Joints,
    encode: Encode,
    protocol: Protocol,
    *,
    patch_size: int = 16,
    batch: int = 1,
    oracle: Mapping[int, Joints] | None = None,
) -> Iterator[Joints]:
    """RGB frames [H, W, 3] and the first one's joints [J, 2] (x, y in pixels) → the joints of the others in turn.

    Joints that are not known at first (NaN), or lost on the way, are −1, −1. `oracle`: as of `follow_mask`.
    """
    video = _Encoded(frames, encode, protocol, patch_size, batch)

    def to_patches(joints: Joints) -> Tensor:
        return joints_to_patches(joints, video.frame_size, video.grid)

    for heat in _follow(video, first, to_patches, protocol, oracle):
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
        features = self._encode(chain([opening], stream), encode, batch)
        self.first = next(features)
        self.grid: Size = (self.first.shape[0], self.first.shape[1])
        self.features = chain([self.first], features)

    def _encode(self, frames: Iterator[Frame], encode: Encode, batch: int) -> Iterator[Tensor]:
        while chunk := list(islice(frames, batch)):
            for frame in chunk:
                if frame.shape[:2] != self.frame_size:
                    sizes = ["×".join(map(str, size)) for size in (frame.shape[:2], self.frame_size)]
                    raise InputError(f"a frame of {sizes[0]} follows one of {sizes[1]}: all must be alike")
            images = torch.from_numpy(np.stack([resize_frame(frame, self.size) for frame in chunk])).permute(0, 3, 1, 2)
            with torch.no_grad():
                yield from encode(images)


def _follow(
    video: _Encoded,
    first: Label,
    to_patches: Callable[[Label], Tensor],
    protocol: Protocol,
    oracle: Mapping[int, Label] | None,
) -> Iterator[Tensor]:
    """The soft labels [h, w, M] of all frames but the first."""

    def true_labels(index: int) -> Tensor | None:
        label = (oracle or {}).get(index)
        return None if label is None else to_patches(label)

    known = true_labels if oracle is not None else None
    return propagate(video.features, to_patches(first).to(video.first.device), protocol, oracle=known)


def resize_frame(frame: Frame, size: Size) -> Frame:
    """A frame [H, W, 3] at another size (height, width): bilinear without antialiasing, as all the protocols do it."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"a frame is {frame.dtype} of shape {frame.shape}; expected RGB, uint8 [height, width, 3]")
    return np.asarray(cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
