"""Frame pairs and clips from videos: decoding, sampling in time, cropping, batching.

Knows nothing of models: what leaves here are uint8 frames `[B, F, 3, H, W]` with their paths and times.
"""

from dataset_loader.builtin import builtin_clips
from dataset_loader.dataset import (
    EpochSampler,
    PairDataset,
    PairLoader,
    get_kinetics_dataset,
    make_loader,
    unnormalize,
    unnormalize_for_plot,
)
from dataset_loader.decoding import DecodeError, Video, decode_all, decode_frames, read_index
from dataset_loader.disjoint import check_disjoint
from dataset_loader.files import find_videos, hold_out
from dataset_loader.packed import write_shard
from dataset_loader.random_temporal_subsample import RandomClip, RandomTemporalSubsample
from dataset_loader.sources import open_source
from dataset_loader.transforms import Augmentation
from dataset_loader.video_frame_dataset import VideoFrameDataset

__all__ = [
    "Augmentation",
    "DecodeError",
    "EpochSampler",
    "PairDataset",
    "PairLoader",
    "RandomClip",
    "RandomTemporalSubsample",
    "Video",
    "VideoFrameDataset",
    "builtin_clips",
    "check_disjoint",
    "decode_all",
    "decode_frames",
    "find_videos",
    "get_kinetics_dataset",
    "hold_out",
    "make_loader",
    "open_source",
    "read_index",
    "unnormalize",
    "unnormalize_for_plot",
    "write_shard",
]
