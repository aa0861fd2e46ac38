"""Writing videos: from frames, as a re-encode of another file, or as a cut that copies its packets.

A file appears under its name when it is complete. The same input gives the same bytes on every run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
from av.container import OutputContainer

from dataset_loader.decoding import DecodeError, Video
from mae.files import InputError, write_atomically

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".ts": "mpegts"}
# Times are written in this unit: a whole number of it lies between frames at 24, 25, 29.97, 30, 50 and 60 fps, and
# its denominator is one that MPEG-4 part 2 can state.
TICK = Fraction(1, 60000)
NOMINAL_RATE = Fraction(30)  # what an encoder of explicit times bases its decisions on; the times are what counts
# How the codecs are told a quality, and not to add keyframes of their own; {q} is what others call a quantiser.
OPTIONS = {
    "libx264": {"crf": "{crf}", "sc_threshold": "0"},
    "libx265": {"crf": "{crf}", "x265-params": "scenecut=0:log-level=none"},
    "libvpx-vp9": {"crf": "{crf}", "deadline": "good", "cpu-used": "4"},
    "libsvtav1": {"crf": "{crf}"},
    "mpeg4": {"flags": "+qscale", "global_quality": "{lambda}", "sc_threshold": "1000000000"},
    "mpeg2video": {"flags": "+qscale", "global_quality": "{lambda}", "sc_threshold": "1000000000"},
}


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    times_or_fps: Sequence[float] | np.ndarray | float,
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
    if isinstance(times_or_fps, int | float):
        rate = Fraction(times_or_fps).limit_denominator(1001)
        tick = 1 / rate
        stamped: Iterator[tuple[np.ndarray, int]] = ((image, number) for number, image in enumerate(frames))
    else:
        rate, tick = NOMINAL_RATE, TICK
        stamped = ((image, round(time / tick)) for image, time in zip(frames, times_or_fps, strict=True))
    quality = {"crf": crf, "lambda": 118 * (1 + crf // 6)}  # 118: FFmpeg's FF_QP2LAMBDA; crf 18 → quantiser 4
    chosen = {name: value.format(**quality) for name, value in OPTIONS.get(codec, {}).items()} | (options or {})
    _write(path, lambda container: _encode(container, stamped, tick, rate, codec, gop, b_frames, pixel_format, chosen))


def reencode(source: str | Path, target: str | Path, *, gop: int, short_side: int | None = None, crf: int = 18) -> None:
    """Encode a video file again as H.264, upright, with a keyframe every `gop` frames; its times stay, from 0 on.

    short_side: scale to it, in pixels; sides become even, as the pixel format needs. Raises DecodeError, InputError.
    """
    chosen = {name: value.format(crf=crf) for name, value in OPTIONS["libx264"].items()}
    with Video(source) as video:
        start = float(video.index.times[0])
        stamped = ((_scaled(image, short_side), round((time - start) / TICK)) for image, time in video.each_frame())
        _write(
            target,
            lambda container: _encode(container, stamped, TICK, NOMINAL_RATE, "libx264", gop, 2, "yuv420p", chosen),
        )


def copy_cut(
    source: str | Path, target: str | Path, start_seconds: float, seconds: float, *, at_keyframe: bool = True
) -> None:
    """Copy the packets of a stretch of video into another file, without encoding them again.

    start_seconds: from the source's first frame on. The cut begins at the keyframe before it; mp4 then hides what
    precedes the start (an edit list), other containers show it. With `at_keyframe` False it begins at the first packet
    at or after the start, keyframe or not: what a recorder leaves that was switched on in the middle of a broadcast.
    """
    with Video(source) as video:
        begin = float(video.index.times[0]) + start_seconds

    def write(container: OutputContainer) -> None:
        with av.open(f"file:{source}") as original:
            stream = original.streams.video[0]
            copied = container.add_stream_from_template(stream)
            tick = float(stream.time_base or 1)
            original.seek(int(begin / tick), stream=stream)
            for packet in original.demux(stream):
                if packet.dts is None or packet.pts is None:
                    continue
                if packet.dts * tick >= begin + seconds:
                    break
                if at_keyframe or packet.dts * tick >= begin:
                    packet.dts -= round(begin / tick)
                    packet.pts -= round(begin / tick)
                    packet.stream = copied
                    container.mux(packet)

    _write(target, write)


def _encode(
    container: OutputContainer,
    stamped: Iterable[tuple[np.ndarray, int]],
    tick: Fraction,
    rate: Fraction,
    codec: str,
    gop: int,
    b_frames: int,
    pixel_format: str,
    options: dict[str, str],
) -> None:
    """Encode (frame, its time in ticks) one after the other."""
    stream: av.VideoStream | None = None
    for image, stamp in stamped:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if stream is None:
            stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=options))
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


def _scaled(image: np.ndarray, short_side: int | None) -> np.ndarray:
    """An image [H, W, 3] with this short side, or its own, and both sides even."""
    height, width = image.shape[:2]
    factor = 1.0 if short_side is None else short_side / min(height, width)
    height, width = (max(2, 2 * round(side * factor / 2)) for side in (height, width))
    if (height, width) == image.shape[:2]:
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width=width, height=height, interpolation="BICUBIC").to_ndarray()


def _write(path: str | Path, write: Callable[[OutputContainer], None]) -> None:
    """Call `write` on a container of the format that the suffix names; the file appears when it is complete."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path} ends in {suffix or 'nothing'}; video is written to {', '.join(FORMATS)}")

    def write_container(file: BinaryIO) -> None:
        with av.open(file, "w", format=FORMATS[suffix]) as container:
            container.flags |= cast(int, av.container.Flags.bitexact.value)  # no random identifiers
            write(container)

    try:
        write_atomically(path, write_container)
    except (av.FFmpegError, InputError) as error:
        if isinstance(error, DecodeError):
            raise
        raise InputError(f"{path} cannot be written: {error}") from error
