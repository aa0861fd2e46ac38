"""Writing videos: from frames, or as a re-encode of another file.

A file appears under its name when it is complete. The same input gives the same bytes on every run.
"""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import count, tee
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.container import OutputContainer

from common.errors import InputError
from common.files import write_atomically
from dataset_loader.decoding import DecodeError, Video
from dataset_loader.processes import alive
from dataset_loader.times import ascending

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".ts": "mpegts"}
# Times are written in this unit: a whole number of it lies between frames at 24, 25, 29.97, 30, 50 and 60 fps, and
# its denominator is one that MPEG-4 part 2 can state.
TICK = Fraction(1, 60000)
# Without CABAC and the deblocking filter H.264 decodes 1.6 times as fast, for 8 % more bytes (measured at GOP 4).
FAST_TO_DECODE = {"tune": "fastdecode"}
RESET = 10.0  # seconds that are put in the place of a reset of the clock
NOMINAL_RATE = Fraction(30)  # what an encoder of explicit times bases its decisions on; the times are what counts
# How the codecs are told a quality, and not to add keyframes of their own.
OPTIONS = {
    "libx264": {"crf": "{crf}", "sc_threshold": "0", "mbtree": "0"},  # mbtree: else other bytes on every run
    "libx265": {"crf": "{crf}", "x265-params": "scenecut=0:log-level=none"},
    "libvpx-vp9": {"crf": "{crf}", "deadline": "good", "cpu-used": "4"},
    "libsvtav1": {"crf": "{crf}"},
    "mpeg4": {"flags": "+qscale", "global_quality": "{lambda}", "sc_threshold": "1000000000"},
    "mpeg2video": {"flags": "+qscale", "global_quality": "{lambda}", "sc_threshold": "1000000000"},
}


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    times_or_fps: Iterable[float] | float,
    *,
    codec: str = "libx264",
    gop: int = 12,
    crf: int = 18,
    b_frames: int = 2,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> None:
    """Encode frames (each uint8 RGB [H, W, 3]) into the container that the suffix of `path` names.

    times_or_fps: the time of each frame in seconds, ascending (a variable rate), or a constant rate. gop: frames from
    one keyframe to the next. crf: constant quality, smaller is better. options: further ones of the codec's own.
    Raises InputError for an unknown suffix, no frames, or frames that the codec cannot take.
    """
    rate, tick = NOMINAL_RATE, TICK
    stamps: Iterable[int]
    if isinstance(times_or_fps, int | float | np.number):
        rate = Fraction(float(times_or_fps)).limit_denominator(1001)
        tick, stamps = 1 / rate, count()
    else:
        stamps = (round(time / TICK) for time in times_or_fps)
    quality = {"crf": crf, "lambda": 118 * (1 + crf // 6)}  # 118: FFmpeg's FF_QP2LAMBDA; crf 18 → quantiser 4
    chosen = {name: value.format(**quality) for name, value in OPTIONS.get(codec, {}).items()} | (options or {})

    def write(container: OutputContainer) -> None:
        stream: av.VideoStream | None = None
        for image, stamp in zip(frames, stamps, strict=not isinstance(stamps, count)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if stream is None:
                stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=chosen))
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixel_format
                stream.time_base = stream.codec_context.time_base = tick
                stream.codec_context.gop_size = gop
                stream.codec_context.max_b_frames = b_frames
                stream.codec_context.thread_count = 1
            if (frame.width, frame.height) != (stream.width, stream.height):
                raise InputError("the frames differ in size")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        if stream is None:
            raise InputError("there is no frame")
        container.mux(stream.encode(None))

    write_container(path, write)


def reencode(source: str | Path, target: str | Path, *, gop: int, crf: int = 18, **looks: Any) -> None:
    """Encode a video file again as H.264, upright, with a keyframe every `gop` frames; its times stay, from 0 on.

    looks: `short_side` and `fps` as `frames_of` takes them; sides become even, as the pixel format needs. It is made to
    be decoded often: without the tools of H.264 that cost the decoder most. Raises DecodeError, InputError.
    """
    frames, again = tee(frames_of(source, **looks))  # in step, so that one frame at a time is held
    images, times = (image for image, _ in frames), (at for _, at in again)
    write_video(target, images, times, gop=gop, crf=crf, options=FAST_TO_DECODE)


def frames_of(
    source: str | Path, *, short_side: int | None = None, fps: float | None = None
) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of a video, uint8 RGB [H, W, 3], upright, each with its time in seconds from the first one on.

    short_side: scale to it, in pixels, where the video is larger; sides become even. fps: see `at_rate`. Where the
    clock is reset, the times continue after a pause that no pair is drawn across.
    """
    with Video(source) as video:
        start = float(video.index.times[0])
        frames, again = tee(video.each_frame())  # in step, so that one frame at a time is held
        times = ascending((at for _, at in again), RESET)
        for image, at in at_rate(zip((image for image, _ in frames), times, strict=True), fps):
            alive()
            side = None if short_side is None else min(short_side, *image.shape[:2])
            yield scaled(image, side), at - start


def at_rate(frames: Iterable[tuple[np.ndarray, float]], fps: float | None) -> Iterator[tuple[np.ndarray, float]]:
    """Of (image, time in seconds) those nearest to a raster of `fps` from the first on, each with its own time.

    A frame is given once, also where the raster is finer than the frames. fps None: all of them.
    """
    if fps is None:
        yield from frames
        return
    before: tuple[np.ndarray, float] | None = None
    start = wanted = 0.0
    number, given = 0, None
    for frame in frames:
        if before is None:
            start = wanted = frame[1]
        else:
            while wanted <= frame[1]:
                nearest = before if wanted - before[1] <= frame[1] - wanted else frame
                if nearest[1] != given:
                    given = nearest[1]
                    yield nearest
                number += 1
                wanted = start + number / fps
        before = frame
    if before is not None and before[1] != given and wanted <= before[1] + 0.5 / fps:
        yield before


def scaled(image: np.ndarray, short_side: int | None) -> np.ndarray:
    """An image [H, W, 3] with this short side, or its own, and both sides even."""
    height, width = image.shape[:2]
    factor = 1.0 if short_side is None else short_side / min(height, width)
    height, width = (max(2, 2 * round(side * factor / 2)) for side in (height, width))
    if (height, width) == image.shape[:2]:
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width=width, height=height, interpolation="BICUBIC").to_ndarray()


def write_container(path: str | Path, write: Callable[[OutputContainer], None]) -> None:
    """Call `write` on a container of the format that the suffix names; the file appears when it is complete."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path} ends in {suffix or 'nothing'}; video is written to {', '.join(FORMATS)}")

    def fill(file: BinaryIO) -> None:
        with av.open(file, "w", format=FORMATS[suffix]) as container:
            container.flags |= cast(int, av.container.Flags.bitexact.value)  # no random identifiers
            write(container)

    try:
        write_atomically(path, fill)
    except (av.FFmpegError, InputError) as error:
        if isinstance(error, DecodeError):
            raise
        raise InputError(f"{path} cannot be written: {error}") from error
