"""Bad files say what they are in one sentence, without hanging."""

import os
import wave

import numpy as np
import pytest

from dataset_loader.decoding import DecodeError, decode_all, decode_frames, read_index
from dataset_loader.preparing.encoding import write_video


def text(path):
    path.write_text("This is not a video. " * 100)


def playlist(path):
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/segment.ts\n#EXT-X-ENDLIST\n")


def sound(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


def headless(path):
    """An mp4 whose table of contents, at its end, was not written."""
    write_video(path, np.zeros((10, 32, 32, 3), np.uint8), 25)
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"moov") - 4])


def bodiless(path):
    """A readable header, and nothing but zeros where the frames should be."""
    write_video(path, np.random.default_rng(0).integers(0, 255, (10, 32, 32, 3), dtype=np.uint8), 25)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.touch(), "is empty"),
        (text, "cannot be opened as a video"),
        (playlist, "cannot be opened as a video"),
        (sound, "has no video stream"),
        (headless, "cannot be opened as a video"),
        (bodiless, "has no frame that can be decoded"),
    ],
)
def test_bad_files_are_named(tmp_path, make, reason):
    path = tmp_path / "clip.mp4"
    make(path)
    for decode in (decode_all, lambda path: decode_frames(path, [0])):
        with pytest.raises(DecodeError, match=reason) as caught:
            decode(path)
        assert caught.value.path == str(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_frames_that_change_size(tmp_path, carphone):
    """Two recordings joined byte by byte, as transport streams may be."""
    write_video(tmp_path / "large.ts", carphone[:20], 30)
    write_video(tmp_path / "small.ts", carphone[:20, :96, :96], 30)
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "large.ts").read_bytes() + (tmp_path / "small.ts").read_bytes())
    count = len(read_index(joined).times)
    for decode in (decode_all, lambda path: decode_frames(path, [0, count - 1])):
        with pytest.raises(DecodeError, match="change size, from .96, 96. to .144, 176."):
            decode(joined)


def test_numbers_out_of_range(videos):
    path = videos / "b_30.mp4"
    for numbers in ([90], [-1], []):
        with pytest.raises(IndexError):
            decode_frames(path, numbers)
