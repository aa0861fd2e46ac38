"""Following labels through a video: frames in, masks or joints out, with any feature function and any protocol.

Legend: H W pixels, h w patch grid, D width, J joints.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InputError
from evaluation.labels import joints_to_patches, mask_to_patches, patches_to_joints, patches_to_mask
from evaluation.propagation import propagate
from evaluation.protocols import Protocol

Frame = NDArray[np.uint8]
Encode = Callable[[Tensor], Tensor]  # images uint8 [B, 3, H, W] → features [B, h, w, D], on any device


def follow_mask(
    frames: Iterable[Frame],
    first: NDArray[np.uint8],
    encode: Encode,
    protocol: Protocol,
    *,
    patch_size: int = 16,
    batch: int = 1,
    budget: int | None = None,
    oracle: Mapping[int, NDArray[np.uint8]] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """RGB frames [H, W, 3] and the first one's mask [H', W'] → the masks [H', W'] of the others in turn.

    Frames are read one batch ahead at most, and each is encoded once. `budget`: as of `propagate`. `oracle`: true masks
    by frame, which a control puts into the context (`evaluation.controls`).
    """
    size, features = _features(frames, encode, protocol, patch_size, batch)
    start = next(features)
    grid = (start.shape[0], start.shape[1])
    soft, values = mask_to_patches(first, grid, size, protocol)
    stream = chain([start], features)

    def true_labels(index: int) -> Tensor | None:
        mask = (oracle or {}).get(index)
        return None if mask is None else mask_to_patches(mask, grid, size, protocol, values)[0]

    known = true_labels if oracle is not None else None
    for labels in propagate(stream, soft.to(start.device), protocol, budget=budget, oracle=known):
        yield patches_to_mask(labels, values, size, (first.shape[0], first.shape[1]), protocol)


def follow_joints(
    frames: Iterable[Frame],
    first: NDArray[np.float64],
    encode: Encode,
    protocol: Protocol,
    *,
    patch_size: int = 16,
    batch: int = 1,
    budget: int | None = None,
    oracle: Mapping[int, NDArray[np.float64]] | None = None,
) -> Iterator[NDArray[np.float64]]:
    """RGB frames [H, W, 3] and the first one's joints [J, 2] (x, y in pixels) → the joints of the others in turn.

    Joints that are not known at first (NaN), or lost on the way, are −1, −1. `oracle`: as of `follow_mask`.
    """
    stream = iter(frames)
    opening = next(stream)
    _, features = _features(chain([opening], stream), encode, protocol, patch_size, batch)
    start = next(features)
    frame_size = (opening.shape[0], opening.shape[1])
    grid = (start.shape[0], start.shape[1])
    heat = joints_to_patches(first, frame_size, grid)

    def true_labels(index: int) -> Tensor | None:
        joints = (oracle or {}).get(index)
        return None if joints is None else joints_to_patches(joints, frame_size, grid)

    known = true_labels if oracle is not None else None
    stream_of_features = chain([start], features)
    for labels in propagate(stream_of_features, heat.to(start.device), protocol, budget=budget, oracle=known):
        yield patches_to_joints(labels, frame_size)


def _features(
    frames: Iterable[Frame], encode: Encode, protocol: Protocol, patch_size: int, batch: int
) -> tuple[tuple[int, int], Iterator[Tensor]]:
    """The size that frames are resized to, and each one's features [h, w, D], computed as they are asked for."""
    stream = iter(frames)
    opening = next(stream, None)
    if opening is None:
        raise InputError("a video without frames: expected at least one")
    size = protocol.input_size(opening.shape[0], opening.shape[1], patch_size)

    def encoded() -> Iterator[Tensor]:
        waiting = chain([opening], stream)
        while chunk := list(islice(waiting, batch)):
            for frame in chunk:
                if frame.shape != opening.shape:
                    raise InputError(f"a frame of {_size(frame)} follows one of {_size(opening)}: all must be alike")
            images = torch.from_numpy(np.stack([resize_frame(frame, size) for frame in chunk])).permute(0, 3, 1, 2)
            with torch.no_grad():
                yield from encode(images)

    return size, encoded()


def resize_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """A frame [H, W, 3] at another size (height, width): bilinear without antialiasing, as all the protocols do it."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"a frame is {frame.dtype} of shape {frame.shape}; expected RGB, uint8 [height, width, 3]")
    return np.asarray(cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _size(frame: Frame) -> str:
    return f"{frame.shape[0]}×{frame.shape[1]}"
