"""Training and test are kept apart, in whatever form their videos are stored."""

import os
from collections.abc import Iterable
from pathlib import Path

from common.errors import InputError
from dataset_loader.files import video_id
from dataset_loader.sources import PackedShards, Source, VideoFiles, open_source


def check_disjoint(train: str | Path, test: str | Path) -> None:
    """Raise InputError if one of two places lies in the other, or a video is in both.

    Each is what `open_source` takes. Where both are video files, the same file counts, also by way of a link; otherwise
    the same `video_id` of a file, a folder of pictures, a clip in a ledger or a video in a shard.
    """
    places = [Path(train).resolve(), Path(test).resolve()]
    for inner, outer in (places, places[::-1]):
        if inner.is_relative_to(outer):
            raise InputError(f"{inner} lies in {outer}: training would see the test videos; give separate folders")
    sources = [open_source(place) for place in (train, test)]
    if all(isinstance(source, VideoFiles) for source in sources):
        seen = {_inode(path): path for path in sources[0].names}
        for path in sources[1].names:
            if _inode(path) in seen:
                raise InputError(f"{path} and {seen[_inode(path)]} are one file: training would see a test video")
        return
    known, held = ({video_id(name): name for name in _names(source)} for source in sources)
    if both := sorted(known.keys() & held.keys()):
        raise InputError(
            f"{held[both[0]]} in {test} and {known[both[0]]} in {train} are of one video, {both[0]!r}: training would "
            f"see a test video ({len(both)} such videos); prepare them from videos that are apart"
        )


def _names(source: Source) -> Iterable[str]:
    if isinstance(source, PackedShards):
        return (name for shard in source.shards for name in shard.each_name())
    return source.names


def _inode(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
