"""A packed shard gives back what was put in; what is not a complete shard is refused, never read as pixels."""

import numpy as np
import pytest

from common.errors import InputError
from dataset_loader import Video, get_kinetics_dataset
from dataset_loader.decoding import DecodeError
from dataset_loader.images import decode_image, encode_jpeg
from dataset_loader.packed import MAGIC, Shard, write_shard


@pytest.fixture
def shard(tmp_path, moving_frames):
    path = tmp_path / "train-00001.shard"
    clips = {"a": (0, 20, 30), "folder/β ü": (20, 50, 25), "c": (50, 53, 6)}
    videos = ((name, stamped(moving_frames, *numbers)) for name, numbers in clips.items())
    assert write_shard(path, videos) == {}
    return path


def stamped(frames, first, last, fps):
    return [(frames[number], number / fps) for number in range(first, last)]


def test_what_is_written_is_read(shard, moving_frames):
    opened = Shard(shard)
    assert len(opened) == 3
    assert list(opened.each_name()) == ["a", "folder/β ü", "c"]
    with opened.open(1) as clip:
        assert clip.path == f"{shard}:folder/β ü"
        np.testing.assert_array_equal(clip.times, np.arange(20, 50) / 25)
        frames, times = clip.frames([7, 0, 29, 7])
    np.testing.assert_array_equal(times, np.array([27, 20, 49, 27]) / 25)
    for frame, number in zip(frames, (27, 20, 49, 27), strict=True):
        np.testing.assert_array_equal(frame, decode_image(encode_jpeg(moving_frames[number])))
    with opened.open(2) as clip:
        assert len(clip.times) == 3


def test_jpegs_are_close_to_the_frames(carphone):
    """Colours in their order, not upside down: of a real picture little is lost."""
    image = decode_image(encode_jpeg(carphone[0]))
    assert np.abs(image.astype(int) - carphone[0]).mean() < 3


def test_pairs_from_a_shard_are_those_of_the_videos(videos, tmp_path):
    """The same sampling as from the files; the pixels differ by what JPEG loses of noise, times not at all."""
    paths = sorted(str(path) for path in videos.iterdir())

    def contents():
        for path in paths:
            with Video(path) as video:
                yield path, video.each_frame()

    write_shard(tmp_path / "all.shard", contents(), quality=100)
    plain = get_kinetics_dataset(videos, image_size=32, repeated_sampling=2)
    packed = get_kinetics_dataset(tmp_path, image_size=32, repeated_sampling=2)
    assert len(plain) == len(packed) == 6
    for index in range(6):
        one, other = plain[3, index], packed[3, index]
        assert one["time"].tolist() == other["time"].tolist()
        assert one["seed"].tolist() == other["seed"].tolist()
        assert other["path"].endswith(one["path"])
        difference = (one["video"].float() - other["video"].float()).abs().mean()
        shifted = (one["video"].float() - other["video"].flip(1).float()).abs().mean()
        assert difference < 12 < 25 < shifted


def test_the_same_input_gives_the_same_bytes(shard, tmp_path, moving_frames):
    content = shard.read_bytes()
    write_shard(tmp_path / "x.shard", [("x", stamped(moving_frames, 0, 9, 1))])
    first = (tmp_path / "x.shard").read_bytes()
    write_shard(tmp_path / "x.shard", [("x", stamped(moving_frames, 0, 9, 1))])
    assert (tmp_path / "x.shard").read_bytes() == first != content


def test_a_video_that_breaks_off_is_left_out(tmp_path, moving_frames):
    def broken():
        yield moving_frames[0], 0.0
        raise DecodeError("bad", "is broken")

    def backwards():
        yield moving_frames[0], 1.0
        yield moving_frames[1], 1.0

    good = stamped(moving_frames, 0, 4, 30)
    path = tmp_path / "x.shard"
    bad = write_shard(path, [("first", good), ("bad", broken()), ("none", []), ("still", backwards()), ("last", good)])
    assert set(bad) == {"bad", "none", "still"}
    assert bad["bad"] == "is broken"
    without = tmp_path / "without.shard"
    write_shard(without, [("first", good), ("last", good)])
    assert path.read_bytes() == without.read_bytes()


def test_an_interruption_leaves_nothing_under_the_name(tmp_path, moving_frames):
    def interrupted():
        yield "a", [(moving_frames[0], 0.0)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "x.shard", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_names_must_differ(tmp_path, moving_frames):
    frames = [(moving_frames[0], 0.0)]
    for names in (["a", "a"], [""], ["a\0"]):
        with pytest.raises(InputError, match="occurs twice"):
            write_shard(tmp_path / "x.shard", [(name, frames) for name in names])
    with pytest.raises(InputError, match=r"must end in \.shard"):
        write_shard(tmp_path / "x.jpegs", [])


def test_what_is_no_complete_shard_is_refused(shard):
    content = shard.read_bytes()
    spoiled = [content[:-1], content[: len(content) // 2], b"", b"text", content[:-8] + b"SiamJPG9"]
    footer = len(content) - 40
    for position in (10**12, -1, 3):
        spoiled.append(content[:footer] + np.int64(position).tobytes() + content[footer + 8 :])
    for wrong in spoiled:
        shard.write_bytes(wrong)
        with pytest.raises(InputError, match="train-00001.shard is not a complete packed shard"):
            Shard(shard)
    assert content.endswith(MAGIC)


def test_damaged_frames_are_reported(shard):
    opened = Shard(shard)
    content = bytearray(shard.read_bytes())
    with opened.open(0) as clip:
        clip.frames([0])
        content[:200] = bytes(200)
        shard.write_bytes(content)
        with pytest.raises(DecodeError, match=r"train-00001\.shard:a: frame 0 cannot be decoded"):
            clip.frames([0])
        clip.frames([19])
    shard.write_bytes(content[:300])
    with pytest.raises(DecodeError, match="become shorter"):
        opened.open(0)
    shard.unlink()
    with pytest.raises(DecodeError, match="cannot be opened"):
        opened.open(0)


def test_an_empty_shard_is_one(tmp_path):
    write_shard(tmp_path / "x.shard", [])
    assert len(Shard(tmp_path / "x.shard")) == 0
    with pytest.raises(InputError, match="x.shard holds no video"):
        get_kinetics_dataset(tmp_path)
