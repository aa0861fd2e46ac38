"""Frame pairs and clips from videos: decoding, sampling in time, cropping, batching.

Knows nothing of models: what leaves here are uint8 frames `[B, F, 3, H, W]` with their paths and times. A name below
is imported when it is first used, so that `dataset_loader.preparing` does not bring torch along.
"""
# ruff: noqa: F401

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataset_loader.builtin import builtin_clips
    from dataset_loader.dataset import PairDataset, get_kinetics_dataset
    from dataset_loader.decoding import DecodeError, Video, decode_all, decode_frames, read_index
    from dataset_loader.disjoint import check_disjoint
    from dataset_loader.files import find_videos, hold_out
    from dataset_loader.loader import EpochSampler, PairLoader, make_loader
    from dataset_loader.packed import write_shard
    from dataset_loader.random_temporal_subsample import RandomClip, RandomTemporalSubsample
    from dataset_loader.sources import open_source
    from dataset_loader.transforms import Augmentation, unnormalize, unnormalize_for_plot
    from dataset_loader.video_frame_dataset import VideoFrameDataset

_HOMES = {
    "Augmentation": "transforms",
    "DecodeError": "decoding",
    "EpochSampler": "loader",
    "PairDataset": "dataset",
    "PairLoader": "loader",
    "RandomClip": "random_temporal_subsample",
    "RandomTemporalSubsample": "random_temporal_subsample",
    "Video": "decoding",
    "VideoFrameDataset": "video_frame_dataset",
    "builtin_clips": "builtin",
    "check_disjoint": "disjoint",
    "decode_all": "decoding",
    "decode_frames": "decoding",
    "find_videos": "files",
    "get_kinetics_dataset": "dataset",
    "hold_out": "files",
    "make_loader": "loader",
    "open_source": "sources",
    "read_index": "decoding",
    "unnormalize": "transforms",
    "unnormalize_for_plot": "transforms",
    "write_shard": "packed",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
