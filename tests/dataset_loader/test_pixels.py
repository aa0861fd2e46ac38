"""Turned frames, every pixel format, palettes and pixels that are no squares are shown as FFmpeg shows them."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dataset_loader.decoding import Video, decode_all, decode_frames, read_index
from dataset_loader.preparing.encoding import write_video
from tests.dataset_loader.odd_videos import turn

X264 = "libx264"


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
                                    (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)])  # fmt: skip
def test_all_eight_orientations(tmp_path, carphone, matrix):
    """A point (x, y) of the picture is shown at (ax + cy, bx + dy), y downwards: as FFmpeg turns it by itself."""
    path = tmp_path / "phone.mp4"
    write_video(path, carphone[:20], 30)
    stored, _ = decode_all(path)
    turn(path, matrix)
    os.utime(path, ns=(1, 1))  # the same size, perhaps within the clock's tick
    a, b, c, d = matrix
    y, x = np.mgrid[: stored.shape[1], : stored.shape[2]]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    expected = np.zeros((20, down.max() + 1, right.max() + 1, 3), np.uint8)
    expected[:, down, right] = stored
    np.testing.assert_array_equal(decode_all(path)[0], expected)
    np.testing.assert_array_equal(decode_frames(path, [11, 3])[0], expected[[11, 3]])


# Every pixel format, and whatever is drawn together


RAW = (
    "gray gray16le gray10le monob monow rgb24 bgr24 rgb48be rgba bgr0 rgb555le rgb8 yuv410p yuv411p yuv420p "
    "yuv422p10le yuv440p yuva420p yuyv422 nv12 gbrp gbrpf32le ya8 pal8"
)
FORMATS = [
    *(("nut", "rawvideo", name) for name in RAW.split()),
    *(("avi", "rawvideo", name) for name in ("pal8", "bgr24", "yuv420p", "gray")),
    *(("matroska", "ffv1", name) for name in ("gray", "gray16le", "yuv444p16le", "bgr0", "yuva420p")),
    *(
        ("mov", codec, name)
        for codec, name in (("png", "pal8"), ("png", "rgb48be"), ("qtrle", "rgb24"), ("qtrle", "gray"))
    ),
    *(("avi", codec, name) for codec, name in (("huffyuv", "yuv422p"), ("msvideo1", "rgb555le"), ("cinepak", "rgb24"))),
    *(("gif", "gif", name) for name in ("pal8", "rgb8")),
    *(("apng", "apng", "rgb24"), ("flv", "flv1", "yuv420p"), ("asf", "wmv2", "yuv420p")),
]


@given(st.sampled_from(FORMATS), st.integers(0, 7), st.integers(0, 3))
@example(("avi", "rawvideo", "pal8"), 0, 0)
@settings(max_examples=len(FORMATS) * 2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_access_is_sequential_decoding(tmp_path, carphone, kind, orientation, seed):
    """For every pixel format and every orientation; palettes and what a frame takes over from others are not lost."""
    container, codec, pixel_format = kind
    path = tmp_path / f"{codec}_{pixel_format}.{container}"
    if codec not in av.codecs_available:
        return
    with av.open(path, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.gop_size = 5
        for number, image in enumerate(carphone[seed : seed + 14, 40:88, 40:104]):
            pixels, layout = (palette(image), "pal8") if pixel_format == "pal8" else (image.copy(), "rgb24")
            frame = av.VideoFrame.from_ndarray(pixels, format=layout)
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    if container == "mov":
        x, y = 1 - (orientation & 1) * 2, 1 - (orientation & 2)
        turn(path, (x, 0, 0, y) if orientation < 4 else (0, x, y, 0))
    os.utime(path, ns=(orientation, seed))
    everything, times = decode_all(path)
    assert len(everything) == len(times) == len(read_index(path).times) == 14
    assert everything.std() > 20  # not black
    numbers = np.random.default_rng(seed).integers(14, size=6)
    for chosen in ([numbers[0]], numbers, [13], [7, 2]):
        frames, at = decode_frames(path, chosen)
        np.testing.assert_array_equal(frames, everything[chosen])
        np.testing.assert_array_equal(at, times[chosen])


def palette(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image in 216 colours: indices [H, W], colours [256, 4], alpha first."""
    indices = (image // 43).astype(np.uint8) @ np.array([36, 6, 1], np.uint8)
    colours = np.stack(np.unravel_index(np.arange(256) % 216, (6, 6, 6)), axis=1) * 43 + 20
    return indices, np.insert(colours, 0, 255, axis=1).astype(np.uint8)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, -1, 1, 0)])
def test_pixels_that_are_no_squares(tmp_path, carphone, matrix):
    """Their aspect as shown: of a frame that is turned by 90 degrees the inverse."""
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream(X264, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(carphone[0], format="rgb24")))
        container.mux(stream.encode(None))
    turn(tmp_path / "clip.mp4", matrix)
    with Video(tmp_path / "clip.mp4") as video:
        assert video.pixel_aspect() == (2 if matrix[0] else 0.5)
