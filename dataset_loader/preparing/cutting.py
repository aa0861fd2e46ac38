"""A handful of videos, made small and cut in time: the early part to learn from, the late part to test on."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from dataset_loader.preparing.encoding import FAST_TO_DECODE, frames_of, write_video


def cut_in_time(
    videos: Sequence[str | Path], folder: Path, *, late: float = 0.3, short_side: int = 144, seconds: float = 20.0
) -> tuple[list[Path], list[Path]]:
    """Write `folder/early/NAME.mp4` and `folder/late/NAME.mp4` of each video, and return both lists.

    late: share of the time that is held out, at the end. Of a longer video only the first `seconds` are used. A second
    video of one name becomes NAME-2. Files of an earlier call are replaced. Raises InputError where a part has less
    than two frames.
    """
    names: list[str] = []
    for stem in (Path(video).stem for video in videos):
        others = (f"{stem}-{n}" if n > 1 else stem for n in itertools.count(1))
        names.append(next(name for name in others if name not in names))
    parts: tuple[list[Path], list[Path]] = ([], [])
    for video, name in zip(videos, names, strict=True):
        frames = []
        for image, at in frames_of(video, short_side=short_side):
            if at > seconds:
                break
            frames.append((image, at))
        cut = (1 - late) * frames[-1][1]
        for part, place, chosen in (
            ("early", parts[0], [frame for frame in frames if frame[1] < cut]),
            ("late", parts[1], [frame for frame in frames if frame[1] >= cut]),
        ):
            if len(chosen) < 2:
                raise InputError(f"{video} is too short to be cut: its {part} part would have {len(chosen)} frames")
            path, start = folder / part / f"{name}.mp4", chosen[0][1]
            path.parent.mkdir(parents=True, exist_ok=True)
            images, times = [image for image, _ in chosen], [at - start for _, at in chosen]
            write_video(path, images, times, gop=4, options=FAST_TO_DECODE)
            place.append(path)
    return parts
