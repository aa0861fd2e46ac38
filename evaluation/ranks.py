"""Several processes share the videos of a run: who follows which, and how they meet in the folder of the results."""

import os
import time
from collections.abc import Callable, Mapping, Sequence

from common.errors import InputError
from evaluation.benchmark import Record
from evaluation.videos import Video

PATIENCE = 600.0  # seconds without a new record after which the other processes count as gone; 10 × the slowest video


def place() -> tuple[int, int]:
    """This process among those that torchrun started: (rank, world size)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def divide(videos: Sequence[Video], parts: int) -> list[list[Video]]:
    """Shares of about the same number of frames, alike in every process: the longest first, to the smallest share."""
    shares: list[list[Video]] = [[] for _ in range(parts)]
    frames = [0] * parts
    for video in sorted(videos, key=lambda video: (-len(video), video.name)):
        smallest = frames.index(min(frames))
        shares[smallest].append(video)
        frames[smallest] += len(video)
    order = {video.name: place for place, video in enumerate(videos)}
    return [sorted(share, key=lambda video: order[video.name]) for share in shares]


def wait_for_all(
    videos: Sequence[Video],
    record: Callable[[Video], Record | None],
    known: Mapping[str, Record],
    report: Callable[[str], None],
) -> dict[str, Record]:
    """The records of all videos, once every process has left its own.

    torchrun stops all processes when one fails. Where it does not watch, an InputError ends the wait after `PATIENCE`.
    """
    found, watched = dict(known), "TORCHELASTIC_RUN_ID" in os.environ
    told, last = False, time.monotonic()
    while True:
        new = {video.name: each for video in videos if video.name not in found and (each := record(video))}
        found |= new
        missing = [video.name for video in videos if video.name not in found]
        if not missing:
            return found
        now = time.monotonic()
        last = now if new else last
        if not told and now - last > 20:
            told = True
            report(f"waiting for {len(missing)} of {len(videos)} videos that other processes follow")
        slowest = max((each["seconds"] for each in found.values()), default=0.0)
        if not watched and now - last > max(PATIENCE, 10 * slowest):
            raise InputError(
                f"no other process has finished a video for {now - last:.0f} s, and {len(missing)} are missing, as is "
                f"{missing[0]}: unset RANK and WORLD_SIZE if there is no other process, and repeat the command to go on"
            )
        time.sleep(0.2)
