"""Chosen frames are those of a plain decode of the whole file, bit for bit."""

import ctypes
import gc
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from dataset_loader import video_index
from dataset_loader.decoding import decode_all, decode_frames, read_index
from dataset_loader.preparing.encoding import write_video
from dataset_loader.video_index import VideoIndex
from tests.dataset_loader.cutting import copy_cut
from tests.slowly import slowly

VARIABLE = np.cumsum(np.random.default_rng(7).uniform(0.01, 0.15, 120))
X264 = "libx264"


def plain_decode(path: Path, keep: set[int]) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The frames numbered `keep`, and the times of all, as PyAV gives them without any of our code."""
    images, times = {}, []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for number, frame in enumerate(container.decode(video=0)):
            times.append(float(frame.pts * frame.time_base))
            if number in keep:
                images[number] = frame.to_ndarray(format="rgb24")
    return images, np.array(times)


def assert_exact(path: Path, draws: int = 12, seed: int = 0, watched=None) -> None:
    """One to six frames at a time, in any order and repeated, are equal to those of the plain decode.

    watched: and the file is opened once for each, not a second time to be decoded from its start.
    """
    generator = np.random.default_rng(seed)
    count = len(read_index(path).times)
    chosen = [generator.integers(count, size=generator.integers(1, 7)) for _ in range(draws)]
    chosen += [np.array([0, count - 1, 0])]
    images, times = plain_decode(path, {int(number) for numbers in chosen for number in numbers})
    np.testing.assert_allclose(read_index(path).times, times, atol=1e-9)
    for numbers in chosen:
        before = len(watched.opened) if watched else 0
        frames, at = decode_frames(path, numbers)
        # a transport stream may have to be read from its start, though not decoded, where a seek lands behind the place
        assert watched is None or len(watched.opened) <= before + (2 if path.suffix == ".ts" else 1)
        np.testing.assert_array_equal(at, read_index(path).times[numbers])
        np.testing.assert_array_equal(frames, np.stack([images[number] for number in numbers]))


class Watched:
    """A container that counts its packets, and may raise an IndexError behind one of them, as PyAV's does."""

    def __init__(self, container, packets, broken_at=None):
        self.container, self.packets, self.broken_at = container, packets, broken_at

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, stream):
        for packet in self.container.demux(stream):
            self.packets.append(packet.pts)
            yield packet
            if len(self.packets) == self.broken_at:
                raise IndexError("list index out of range")


@pytest.fixture
def watched(monkeypatch):
    """The files that are opened, and the packets that are read from them, while the test runs."""
    opened, packets, open_ = [], [], av.open

    def watch(name, *arguments, **settings):
        if not str(name).startswith("file:"):  # not by our code
            return open_(name, *arguments, **settings)
        opened.append(name)
        return Watched(open_(name, *arguments, **settings), packets, watch.broken_at)

    watch.opened, watch.packets, watch.broken_at = opened, packets, None
    monkeypatch.setattr(av, "open", watch)
    return watch


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine", *slowly("carphone_distorted", "bigbuckbunny")])
def test_built_in_clips(builtin, name, watched):
    assert_exact(builtin[name], draws=6, watched=watched)


def test_clips_of_others(shared_clips, watched):
    for path in shared_clips:
        assert_exact(path, draws=4, watched=watched)


@pytest.mark.parametrize(
    ("suffix", "codec", "settings"),
    [
        (".mp4", X264, {"gop": 1}),
        (".mp4", X264, {"gop": 12, "b_frames": 0}),
        (".mp4", X264, {"gop": 12, "b_frames": 3}),
        (".mov", X264, {"gop": 250}),
        (".mkv", X264, {"gop": 250, "b_frames": 3}),
        (".ts", X264, {"gop": 12}),
        (".mp4", X264, {"options": {"x264-params": "open-gop=1:bframes=5:b-adapt=0:b-pyramid=normal"}}),
        (".mkv", X264, {"options": {"x264-params": "interlaced=1"}}),
        (".mp4", "libx265", {"options": {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1:bframes=4"}}),
        (".webm", "libvpx-vp9", {"options": {"deadline": "realtime", "cpu-used": "8"}}),
        (".mp4", "mpeg4", {}),
        (".avi", "mpeg4", {}),
        (".ts", "mpeg2video", {}),
        (".avi", "mjpeg", {"pixel_format": "yuvj420p", "b_frames": 0}),
    ],
)
@pytest.mark.parametrize("rate", ["variable", *slowly(Fraction(30000, 1001))])
def test_codecs_and_containers(tmp_path, carphone, suffix, codec, settings, rate, watched):
    if rate == "variable" and (suffix == ".avi" or codec == "mpeg2video"):
        rate = Fraction(30000, 1001)  # they know no other
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = tmp_path / f"clip{suffix}"
    times = VARIABLE if rate == "variable" else np.arange(120) / float(rate)
    write_video(path, carphone, times if rate == "variable" else float(rate), codec=codec, **settings)
    assert_exact(path, watched=watched)
    resolution = 5e-4 if suffix in (".mkv", ".webm") else 1e-5
    index = read_index(path)
    np.testing.assert_allclose(index.times - index.times[0], times - times[0], atol=2 * resolution + 1e-9)


@pytest.mark.parametrize("fps", [6, 10, 24, 25, 50, 60])
def test_frame_rates(tmp_path, moving_frames, fps, watched):
    write_video(tmp_path / "clip.mp4", moving_frames[:40], fps)
    np.testing.assert_allclose(read_index(tmp_path / "clip.mp4").times, np.arange(40) / fps, atol=1e-9)
    assert_exact(tmp_path / "clip.mp4", draws=3, watched=watched)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_cut_behind_a_keyframe(tmp_path, carphone, suffix, watched):
    """An mp4 hides what precedes the cut with an edit list; the others show it. Frames are those of the source."""
    write_video(tmp_path / "whole.mp4", carphone, 30, gop=12)
    copy_cut(tmp_path / "whole.mp4", tmp_path / f"cut{suffix}", 40 / 30, 1.5)
    assert_exact(tmp_path / f"cut{suffix}", watched=watched)
    first = 40 if suffix == ".mp4" else 36
    frames, _ = decode_frames(tmp_path / f"cut{suffix}", [0, 20])
    np.testing.assert_array_equal(frames, decode_frames(tmp_path / "whole.mp4", [first, first + 20])[0])


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_cut_that_starts_between_keyframes(tmp_path, carphone, suffix, watched):
    """What precedes the first keyframe cannot be decoded, and is not offered."""
    write_video(tmp_path / "whole.mp4", carphone, 30, gop=12)
    copy_cut(tmp_path / "whole.mp4", tmp_path / f"cut{suffix}", 40 / 30, 1.5, at_keyframe=False)
    assert_exact(tmp_path / f"cut{suffix}", watched=watched)
    frames, _ = decode_frames(tmp_path / f"cut{suffix}", [0])
    np.testing.assert_array_equal(frames, decode_frames(tmp_path / "whole.mp4", [48])[0])


def test_cut_in_an_open_group(tmp_path, carphone, watched):
    """The first frames to be shown refer to what was cut off: they are not offered, the others are the source's."""
    options = {"x264-params": "open-gop=1:bframes=4:b-adapt=0"}
    write_video(tmp_path / "whole.ts", carphone, 30, gop=12, b_frames=4, options=options)
    whole = read_index(tmp_path / "whole.ts")
    keyframe = whole.keyframes[3]
    first = int(np.flatnonzero(whole.positions == keyframe)[0])
    assert whole.positions[first - 1] > keyframe  # shown before the keyframe, but behind it in the file
    copy_cut(tmp_path / "whole.ts", tmp_path / "cut.ts", whole.times[first] - whole.times[0], 1)
    count = len(read_index(tmp_path / "cut.ts").times)
    assert 20 < count < 40
    frames, _ = decode_frames(tmp_path / "cut.ts", range(count - 3))
    np.testing.assert_array_equal(frames, decode_frames(tmp_path / "whole.ts", range(first, first + count - 3))[0])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_seek_spares_what_is_not_needed(tmp_path, carphone, watched, suffix):
    """Two frames of a file with a keyframe every 12: at most 12 packets each are read, and a few to find the place."""
    path = tmp_path / f"clip{suffix}"
    write_video(path, carphone, 30, gop=12)
    read_index(path)
    watched.opened.clear()
    watched.packets.clear()
    decode_frames(path, [23, 118])
    assert 4 <= len(watched.packets) <= (48 if suffix == ".ts" else 30)
    assert len(watched.opened) == 1


def test_runs_by_brute_force():
    """Each packet is decoded from a keyframe that governs it, none is lost, and no run could be split further."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        count = int(generator.integers(3, 30))
        packets = np.argsort(np.argsort(np.arange(count) + generator.uniform(0, 4, count)))  # a mild reordering
        packets[0] = -1
        keyframes = np.union1d([0], generator.choice(count, size=count // 4))
        index = VideoIndex(np.arange(count) * 1.0, packets, np.argsort(packets), keyframes)
        positions = np.unique(generator.integers(count, size=5)).tolist()

        def governing(position, packets=packets, keyframes=keyframes):
            return max(k for k in keyframes if k <= position and packets[k] <= packets[position])

        runs = index.runs(positions)
        assert [position for _, run in runs for position in run] == positions
        for start, run in runs:
            assert start in keyframes
            assert start <= min(governing(position) for position in run)
        for (_, earlier), (start, _) in pairwise(runs):
            assert start > earlier[-1] + 1


class Heap(ctypes.Structure):
    """What glibc's `mallinfo2` returns: ten numbers, of which the eighth is the bytes in use."""

    _fields_ = [(f"number{place}", ctypes.c_size_t) for place in range(1, 11)]


@pytest.mark.slow
def test_nothing_is_left_on_the_heap(videos):
    """PyAV's own demuxer loses 150 bytes each time it is left before the end of a file, unless it is closed."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("only glibc counts the bytes in use")
    libc.mallinfo2.restype = Heap

    def in_use_after(decodes):
        for _ in range(decodes):
            decode_frames(videos / "b_30.mp4", [2, 5])
        gc.collect()
        return libc.mallinfo2().number8

    in_use = [in_use_after(20) for _ in range(5)]
    assert np.diff(in_use).min() < 20 * 75  # caches still fill now and then, but not every time


# Files that the fast path cannot serve


def test_raw_stream_has_no_times(tmp_path, carphone):
    with av.open(tmp_path / "clip.h264", "w", format="h264") as container:
        stream = container.add_stream(X264, rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for image in carphone[:40]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    index = read_index(tmp_path / "clip.h264")
    assert index.sequential
    assert len(index.times) == 40
    frames, times = decode_frames(tmp_path / "clip.h264", [30, 7])
    np.testing.assert_array_equal(frames, decode_all(tmp_path / "clip.h264")[0][[30, 7]])
    np.testing.assert_array_equal(times, index.times[[30, 7]])
    assert np.abs(frames.astype(int) - carphone[[30, 7]]).mean() < 6


def test_h264_in_avi_keeps_its_order(tmp_path, carphone):
    """AVI states no presentation times: with B-frames, taking them from the packets would shuffle the frames."""
    write_video(tmp_path / "clip.avi", carphone, 25, b_frames=3)
    frames, times = decode_frames(tmp_path / "clip.avi", np.arange(30, 60))
    for number, frame in zip(range(30, 60), frames, strict=True):
        errors = [np.abs(frame.astype(int) - image).mean() for image in carphone[28:62]]
        assert int(np.argmin(errors)) + 28 == number
    np.testing.assert_allclose(np.diff(times), 1 / 25)


def test_gradual_refresh_is_exact_though_slow(tmp_path, carphone):
    """A stream without a single intra frame after the first: what it calls keyframes are none yet."""
    write_video(tmp_path / "clip.ts", carphone, 30, options={"x264-params": "intra-refresh=1"})
    assert_exact(tmp_path / "clip.ts", draws=4)


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video", "libx265"])
def test_false_keyframes_are_noticed(tmp_path, carphone, codec):
    """An mp4 without its table of keyframes calls every packet one, which FFmpeg believes for these codecs."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    write_video(tmp_path / "clip.mp4", carphone[:60], 30, gop=30, codec=codec)
    content = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(content.replace(b"stss", b"free"))
    assert read_index(tmp_path / "clip.mp4").sequential
    assert_exact(tmp_path / "clip.mp4", draws=6)


def test_damage_in_the_middle_gives_the_nearest_frames(tmp_path, carphone):
    path = tmp_path / "clip.mp4"
    write_video(path, carphone, 30, gop=12, codec="libx264")
    index = read_index(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    everything, at = decode_all(path)
    assert len(at) < len(index.times)
    numbers = np.arange(0, 120, 7)
    for number in numbers:
        frames, times = decode_frames(path, [number])
        nearest = int(np.argmin(np.abs(at - index.times[number])))
        assert times[0] == at[nearest]
        np.testing.assert_array_equal(frames[0], everything[nearest])


def test_a_transport_stream_that_breaks_off(tmp_path, carphone):
    path = tmp_path / "clip.ts"
    write_video(path, carphone, 30)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    count = len(read_index(path).times)
    assert 50 < count < 120
    frames, _ = decode_frames(path, [0, count // 2])
    assert np.abs(frames.astype(int) - carphone[[0, count // 2]]).mean() < 6


def test_a_stream_that_appears_in_the_middle(videos, watched):
    """PyAV's demuxer raises IndexError at a packet of a stream that it did not know of when it opened the file."""
    watched.broken_at = 20
    assert len(read_index(shutil.copy(videos / "b_30.mp4", videos.parent / "appears.mp4")).times) == 90


# The cache of indices


def test_a_changed_file_is_read_again(tmp_path, moving_frames):
    write_video(tmp_path / "clip.mp4", moving_frames, 30)
    assert len(read_index(tmp_path / "clip.mp4").times) == 90
    write_video(tmp_path / "clip.mp4", moving_frames[:50], 30)
    assert len(read_index(tmp_path / "clip.mp4").times) == 50


def test_a_known_file_is_not_scanned_again(videos, watched):
    read_index(videos / "b_30.mp4")
    watched.packets.clear()
    assert len(read_index(videos / "b_30.mp4").times) == 90
    assert watched.packets == []


def test_the_cache_stays_small(monkeypatch):
    monkeypatch.setattr(video_index, "CACHED_FRAMES", 200)
    cache, nothing = video_index.Cache(), np.zeros(0, np.int64)
    for name in ("a", "b", "a", "c"):
        if cache.get((name, 1, 1)) is None:
            cache.put((name, 1, 1), VideoIndex(np.arange(90.0), nothing, nothing, nothing))
    assert [cache.get((name, 1, 1)) is not None for name in "abc"] == [True, False, True]
    cache.put(("long", 1, 1), VideoIndex(np.arange(500.0), nothing, nothing, nothing))
    assert [cache.get((name, 1, 1)) is not None for name in ("a", "c", "long")] == [False, False, True]
