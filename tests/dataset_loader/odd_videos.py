"""Healthy videos that public bug reports are about: mirrored, palettes, pauses, joined recordings, doubled stamps."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from dataset_loader.preparing.encoding import write_video


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) of ISO 14496-12, 8.3.2 into the display matrix of an mp4's track header."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of dates, ids and volume
    values = [0] * 9
    values[0], values[1], values[3], values[4], values[8] = (*(value << 16 for value in matrix), 1 << 30)
    content[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(content)


def _turned(*matrix: int) -> Callable[[Path, np.ndarray], None]:
    def make(path: Path, pictures: np.ndarray) -> None:
        write_video(path, pictures, 30)
        turn(path, matrix)  # type: ignore[arg-type]

    return make


def _palette(path: Path, pictures: np.ndarray) -> None:
    """8 bits a pixel and a palette, which stands in front of the first packet only."""
    colours = np.zeros((256, 4), dtype=np.uint8)
    colours[:, 1:] = np.arange(256)[:, None]  # grey, 0…255, opaque below
    colours[:, 0] = 255
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("rawvideo", rate=30)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.time_base = "pal8", Fraction(1, 30)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray((np.ascontiguousarray(picture[..., 1]), colours), format="pal8")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _timed(times: np.ndarray) -> Callable[[Path, np.ndarray], None]:
    return lambda path, pictures: write_video(path, pictures, times[: len(pictures)])


def _joined(path: Path, pictures: np.ndarray) -> None:
    """Two transport streams, each with its own clock, behind one another."""
    half = len(pictures) // 2
    write_video(path, pictures[:half], 30)
    first = path.read_bytes()
    write_video(path, pictures[half:], 30)
    path.write_bytes(first + path.read_bytes())


_STEPS = np.arange(1000) / 30
ODD: dict[str, Callable[[Path, np.ndarray], None]] = {
    "mirrored.mp4": _turned(-1, 0, 0, 1),
    "upside down.mp4": _turned(1, 0, 0, -1),
    "transposed.mp4": _turned(0, 1, 1, 0),
    "palette.avi": _palette,
    "double.mkv": _timed(_STEPS - (np.arange(1000) == 7) / 30),
    "pause.mkv": _timed(_STEPS + 3600.0 * (np.arange(1000) > 14)),
    "joined.ts": _joined,
}
