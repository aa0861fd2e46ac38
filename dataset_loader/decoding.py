"""Chosen frames of a video file, equal to what a decode of the whole file gives, at a fraction of its cost.

`Video` reads the packets of a file once without decoding them (`VideoIndex`). To decode chosen frames it starts at the
keyframe that governs the first of them, passes the decoder every packet up to the last, lets it drop what no other
frame refers to, and seeks again only where a keyframe lies between two chosen frames. Frame counts, durations and rates
in the headers are never trusted. Files that this cannot serve (presentation times that are missing, occur twice or go
back, palettes, frames that do not come out) are decoded from their start instead: slower, never different.

Legend: N frames of a file, n chosen frames, H W pixels as they are shown, upright.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.packet import PktSideDataT
from av.video.reformatter import VideoReformatter

from common.errors import InputError
from dataset_loader.times import mend, resets
from dataset_loader.video_index import VideoIndex, cache

# Codecs in which a frame that is not marked as a reference is never needed for another frame. Not HEVC: there the mark
# only holds within a temporal layer. Not VP9: a dropped frame may still carry the entropy model of the next.
DROPPABLE = {"h264", "mpeg4", "mpeg2video", "mpeg1video"}
# What a packet may carry for itself and all packets that follow, and what a seek would therefore lose.
CARRIED: tuple[PktSideDataT, ...] = ("palette", "new_extradata", "param_change")
# Titles need not be UTF-8; from PyAV 19 on that is so without being asked.
OPEN: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
NO_FRAME = "has no frame that can be decoded"


class DecodeError(InputError):
    """A file from which the wanted frames cannot be had: `path`, and a one-line `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Lost(Exception):
    """The packets of the file did not come as its index says."""


class Video:
    """An opened video file: `index`, and `frames` of it. Use it as a context manager.

    Raises DecodeError for whatever is not a regular file with at least one decodable frame of video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._reformatter = VideoReformatter()
        key = _identity(self.path)
        self._open()
        try:
            self.index = cache.get(key) or cache.put(key, self._read_index())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def times(self) -> np.ndarray:
        """float64 [N], seconds; see `VideoIndex`."""
        return self.index.times

    def frames(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode the frames with these numbers (into `index.times`; any order, repetitions allowed).

        Returns uint8 RGB [n, H, W, 3], turned as the file says it is to be shown, and float64 [n] their times in
        seconds. For a frame that cannot be decoded the one nearest in time stands in, and its time with it.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= len(self.index.times):
            raise IndexError(f"{self.path}: frames {numbers.tolist()} asked of {len(self.index.times)}")
        chosen, inverse = np.unique(numbers, return_inverse=True)
        times = self.index.times[chosen]
        if self.index.sequential:
            decoded = self._decode_by_number(chosen)
        else:
            try:
                decoded = self._decode_in_runs(chosen)
            except _Lost:
                decoded, times = self._decode_nearest(times)
        return self._stack([self.to_rgb(frame) for frame in decoded])[inverse], times[inverse]

    def each_frame(self) -> Iterator[tuple[np.ndarray, float]]:
        """Decode the file from its start to its end, one frame (uint8 RGB [H, W, 3], time in seconds) at a time."""
        for number, frame in enumerate(self._decode_sequentially()):
            if self.index.sequential:
                yield self.to_rgb(frame), float(self.index.times[number])
            elif frame.pts is not None:
                yield self.to_rgb(frame), frame.pts * _tick(self._stream)

    def packets_from(self, keyframe: int) -> Iterator[tuple[int, av.Packet]]:
        """Numbered packets from a keyframe on: by a seek if that lands at or before it, else from the file's start."""
        row = int(np.searchsorted(self.index.keyframes, keyframe))
        for aim in self.index.keyframes[row::-1][:2]:  # transport streams land behind the aim: try the one before it
            try:
                self._container.seek(int(self.index.packets[aim]), stream=self._stream)
                return self._land(keyframe)
            except (av.FFmpegError, _Lost):
                continue
        self._reopen()
        return self._land(keyframe)

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], turned and mirrored as the frame's display matrix says."""
        try:
            # Threads would cost ten times what they save here.
            image = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            transposed, down, right = _orientation(frame)
            return (image.swapaxes(0, 1) if transposed else image)[::down, ::right]
        except (av.FFmpegError, ValueError) as error:
            raise DecodeError(self.path, f"has pixels that cannot be turned into RGB ({_sentence(error)})") from error

    def pixel_aspect(self) -> float:
        """The width of a pixel over its height, as shown, upright; 1 if the file does not say."""
        aspect = float(self._stream.sample_aspect_ratio or 1)
        frame = next(self._decode_sequentially(), None)
        return 1 / aspect if frame is not None and _orientation(frame)[0] else aspect

    def _stack(self, images: Sequence[np.ndarray]) -> np.ndarray:
        sizes = sorted({image.shape[:2] for image in images})
        if len(sizes) > 1:
            raise DecodeError(self.path, f"its frames change size, from {sizes[0]} to {sizes[-1]} pixels")
        return np.stack(images)

    def _open(self) -> None:
        try:
            self._container = av.open(f"file:{self.path}", **OPEN)  # `file:` takes any name literally
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DecodeError(self.path, f"cannot be opened as a video ({_sentence(error)})") from error
        stream = self._container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            self._container.close()
            raise DecodeError(self.path, "has no video stream that can be decoded")
        self._stream = stream
        self._decoder = stream.codec_context
        self._decoder.thread_type = "NONE"  # threads delay frames, and deadlock with FFmpeg's log level

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _packets(self) -> Iterator[av.Packet]:
        """The packets that follow in the file; a file that breaks off ends there."""
        while True:
            try:
                # Closed by hand: PyAV's wheels do not clean up after a generator that is dropped before its end
                # (Cython cannot, under Python's stable interface), and 150 bytes a time would be lost for good.
                with closing(self._container.demux(self._stream)) as demuxed:
                    yield from (packet for packet in demuxed if packet.size)
                return
            except IndexError:  # PyAV's, at a packet of a stream that the file did not announce: go on behind it
                continue
            except (av.FFmpegError, OSError):
                return

    def _read_index(self) -> VideoIndex:
        if self._container.format.name == "avi" and self._decoder.name in ("h264", "hevc"):
            return self._read_index_by_decoding()  # AVI states no times, and FFmpeg's guess ignores the reordering
        stamps, decoding, keyframes, shown = [], [], [], []
        for position, packet in enumerate(self._packets()):
            if packet.pts is None or self._decoder.pix_fmt == "pal8" or any(map(packet.has_sidedata, CARRIED)):
                return self._read_index_by_decoding()
            stamps.append(packet.pts)
            if packet.dts is not None:
                decoding.append(packet.dts)
            if packet.is_keyframe:
                keyframes.append(position)
            if not packet.is_discard:
                shown.append(position)
        packets = np.array(stamps, dtype=np.int64)
        goes_back = (np.diff(decoding) < 0).any() or (np.diff(packets[keyframes]) < 0).any()
        if not keyframes or goes_back or len(np.unique(packets)) < len(packets):
            return self._read_index_by_decoding()
        positions = np.array(shown, dtype=np.int64)
        first = keyframes[0]  # what precedes the first keyframe, in the file or on the screen, cannot be decoded
        positions = positions[(positions >= first) & (packets[positions] >= packets[first])]
        positions = positions[np.argsort(packets[positions])]
        if len(positions) == 0:
            raise DecodeError(self.path, "shows no frame that follows a keyframe")
        times = packets[positions] * _tick(self._stream)
        return VideoIndex(times, packets, positions, np.array(keyframes, dtype=np.int64))

    def _read_index_by_decoding(self) -> VideoIndex:
        stamps = [frame.pts for frame in self._decode_sequentially()]
        if not stamps:
            raise DecodeError(self.path, NO_FRAME)
        if len(stamps) > 1 and stamps[0] is not None and set(stamps) == {stamps[0]}:
            raise DecodeError(self.path, f"shows all of its {len(stamps)} frames at one time")
        tick = _tick(self._stream)
        spacing = 1 / float(self._stream.guessed_rate or 25)  # 25: what FFmpeg assumes of a raw stream
        times = mend([None if stamp is None else stamp * tick for stamp in stamps], spacing)
        if len(resets(times)) > len(times) / 4:  # these are no times, but the order of decoding
            times = np.arange(len(times)) * spacing
        nothing = np.zeros(0, dtype=np.int64)
        return VideoIndex(times, nothing, nothing, nothing)

    def _decode_sequentially(self) -> Iterator[av.VideoFrame]:
        """Every frame that the decoder gives from the start of the file on; damaged packets are passed over."""
        self._reopen()
        for packet in chain(self._packets(), [None]):
            try:
                yield from self._decoder.decode(packet)
            except av.FFmpegError:
                continue

    def _decode_by_number(self, chosen: np.ndarray) -> list[av.VideoFrame]:
        """The frames with these ascending numbers of a sequential decode."""
        wanted = set(chosen.tolist())
        upto = islice(self._decode_sequentially(), int(chosen[-1]) + 1)
        frames = [frame for number, frame in enumerate(upto) if number in wanted]
        if len(frames) < len(chosen):
            raise DecodeError(self.path, "gives fewer frames than when it was first read")
        return frames

    def _decode_nearest(self, times: np.ndarray) -> tuple[list[av.VideoFrame], np.ndarray]:
        """For each time the frame of a sequential decode that is nearest to it, and its time."""
        distances = np.full(len(times), np.inf)
        nearest: list[av.VideoFrame | None] = [None] * len(times)
        found = np.zeros(len(times))
        for frame in self._decode_sequentially():
            if frame.pts is None:
                continue
            time = frame.pts * _tick(self._stream)
            for row in np.flatnonzero(np.abs(times - time) < distances):
                distances[row], nearest[row], found[row] = abs(times[row] - time), frame, time
        frames = [frame for frame in nearest if frame is not None]
        if len(frames) < len(times):
            raise DecodeError(self.path, NO_FRAME)
        return frames, found

    def _decode_in_runs(self, chosen: np.ndarray) -> list[av.VideoFrame]:
        """The frames with these ascending numbers, each run of them from its keyframe on. Raises _Lost."""
        positions = self.index.positions[chosen]
        stamps = self.index.packets[positions].tolist()
        frames: dict[int | None, av.VideoFrame | None] = dict.fromkeys(stamps)
        for keyframe, run in self.index.runs(np.sort(positions).tolist()):
            for frame in self._decode_run(keyframe, run):
                if frame.pts == self.index.packets[keyframe] and not frame.key_frame:
                    raise _Lost  # some files call every packet a keyframe
                if frame.pts in frames:
                    frames[frame.pts] = frame
        found = [frame for frame in frames.values() if frame is not None]
        if len(found) < len(stamps):
            raise _Lost
        return found

    def _decode_run(self, keyframe: int, positions: list[int]) -> Iterator[av.VideoFrame]:
        """Decode from a keyframe to the last of `positions`; frames between them may be missing from what comes out."""
        wanted = {keyframe, *positions}
        droppable = self._decoder.name in DROPPABLE
        try:
            for position, packet in self.packets_from(keyframe):
                if packet.pts != self.index.packets[position]:
                    raise _Lost
                self._decoder.skip_frame = "NONREF" if droppable and position not in wanted else "DEFAULT"
                yield from self._decoder.decode(packet)
                if position == positions[-1]:
                    break
            yield from self._decoder.decode(None)  # out comes what the decoder holds back for its order of showing
        except av.FFmpegError as error:
            raise _Lost from error

    def _land(self, position: int) -> Iterator[tuple[int, av.Packet]]:
        """Numbered packets from `position` on, by reading ahead; raises _Lost if the file has been read beyond it."""
        packets = self._packets()
        first = next(packets, None)
        if first is None or first.pts is None:
            raise _Lost
        found = np.flatnonzero(self.index.packets == first.pts)
        if len(found) == 0 or found[0] > position:
            raise _Lost
        numbered = enumerate(chain([first], packets), int(found[0]))
        return dropwhile(lambda item: item[0] < position, numbered)


def read_index(path: str | Path) -> VideoIndex:
    """Read the packets of a video file without decoding them. Raises DecodeError."""
    with Video(path) as video:
        return video.index


def decode_frames(path: str | Path, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decode chosen frames of a file: uint8 RGB [n, H, W, 3] and their times in seconds [n]; see `Video.frames`."""
    with Video(path) as video:
        return video.frames(numbers)


def decode_all(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Decode a whole file from its start: uint8 RGB [N, H, W, 3] and times in seconds [N]. For short files."""
    with Video(path) as video:
        decoded = list(video.each_frame())
        if not decoded:
            raise DecodeError(path, NO_FRAME)
        return video._stack([image for image, _ in decoded]), np.array([time for _, time in decoded])


def _identity(path: str) -> tuple[str, int, int]:
    """(path, bytes, time of change): what tells whether a known index still holds."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DecodeError(path, f"cannot be read ({_sentence(error)})") from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for a writer for ever
        raise DecodeError(path, "is not a regular file")
    if found.st_size == 0:
        raise DecodeError(path, "is empty")
    return path, found.st_size, found.st_mtime_ns


def _orientation(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """How a frame is to be shown: rows and columns swapped or not, and then the step (1 or -1) down and to the right.

    The display matrix (a b u, c d v, x y w) shows a point (x, y) at (ax + cy, bx + dy), y downwards (ISO 14496-12,
    8.3.2): one of eight orientations, or the nearest of them.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, 1, 1
    a, b, _, c, d = np.frombuffer(cast(bytes, matrix), np.int32)[:5].tolist()
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    down, right = (b, c) if transposed else (d, a)
    return transposed, -1 if down < 0 else 1, -1 if right < 0 else 1


def _tick(stream: av.VideoStream) -> float:
    """Seconds in one unit of the stream's presentation stamps."""
    return float(stream.time_base or 1)


def _sentence(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
