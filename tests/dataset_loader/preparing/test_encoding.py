"""What is written can be read back, at the times it was given, and appears whole or not at all."""

import numpy as np
import pytest

from common.errors import InputError
from dataset_loader import DecodeError, decode_all, read_index
from dataset_loader.preparing.encoding import reencode, write_video
from tests.dataset_loader.cutting import copy_cut


def mean_error(frames: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(frames.astype(int) - others).mean())


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts", ".avi"])
def test_frames_come_back(tmp_path, carphone, suffix):
    write_video(tmp_path / f"clip{suffix}", carphone[:40], 30)
    frames, times = decode_all(tmp_path / f"clip{suffix}")
    assert mean_error(frames, carphone[:40]) < 6
    np.testing.assert_allclose(times - times[0], np.arange(40) / 30, atol=1.1e-3)


@pytest.mark.parametrize("name", ["concat:b.mp4", "http:x.mp4", "clip é?#%d.mp4"])
def test_names_are_taken_literally(tmp_path, carphone, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(name, carphone[:5], 30)
    assert decode_all(name)[0].shape == (5, 144, 176, 3)


def test_gop_counts_frames_between_keyframes(tmp_path, carphone):
    for gop in (1, 12, 250):
        write_video(tmp_path / "clip.mp4", carphone, 30, gop=gop)
        assert len(read_index(tmp_path / "clip.mp4").keyframes) == -(-120 // gop)


def test_the_same_bytes_every_time(tmp_path, carphone):
    for suffix in (".mp4", ".mkv"):
        for name in ("one", "two"):
            write_video(tmp_path / f"{name}{suffix}", carphone[:30], 30)
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_reencode_keeps_times_and_scales(tmp_path, carphone):
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.1, 60)) + 3
    write_video(tmp_path / "source.mkv", carphone[:60], times)
    reencode(tmp_path / "source.mkv", tmp_path / "target.mp4", gop=4, short_side=72)
    frames, at = decode_all(tmp_path / "target.mp4")
    assert frames.shape == (60, 72, 88, 3)
    assert len(read_index(tmp_path / "target.mp4").keyframes) == 15
    np.testing.assert_allclose(at, times - times[0], atol=1.1e-3)
    assert mean_error(frames, carphone[:60, ::2, ::2]) < 15
    reencode(tmp_path / "source.mkv", tmp_path / "same.mp4", gop=12)
    assert mean_error(decode_all(tmp_path / "same.mp4")[0], carphone[:60]) < 6


def test_reencode_makes_odd_sides_even(tmp_path, carphone):
    write_video(tmp_path / "odd.mkv", carphone[:5, :101, :75], 30, codec="ffv1", pixel_format="yuv444p")
    assert decode_all(tmp_path / "odd.mkv")[0].shape == (5, 101, 75, 3)
    reencode(tmp_path / "odd.mkv", tmp_path / "even.mp4", gop=12)
    assert decode_all(tmp_path / "even.mp4")[0].shape == (5, 100, 76, 3)


def test_a_failure_leaves_what_was_there(tmp_path, carphone):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="differ in size"):
        write_video(path, [carphone[0], carphone[1, :96]], 30)
    with pytest.raises(InputError, match="there is no frame"):
        write_video(path, [], 30)
    with pytest.raises(InputError, match="cannot be written"):  # 4:2:0 needs even sides
        write_video(path, carphone[:3, :101, :75], 30)
    text = tmp_path / "text.mp4"
    text.write_text("not a video " * 100)
    for write in (lambda: reencode(text, path, gop=4), lambda: copy_cut(text, path, 0, 1)):
        with pytest.raises(DecodeError, match="text.mp4"):
            write()
    with pytest.raises(InputError, match=r"\.xyz"):
        write_video(tmp_path / "clip.xyz", carphone[:3], 30)
    assert path.read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "text.mp4"]
