"""A packed shard gives back what was put in; what is not a complete shard is refused, never read as pixels."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from dataset_loader import Video, get_kinetics_dataset
from dataset_loader.decoding import DecodeError
from dataset_loader.images import decode_image, encode_jpeg
from dataset_loader.packed import Shard, write_shard


@pytest.fixture
def shard(tmp_path, moving_frames):
    path = tmp_path / "train-00001.tar"
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

    write_shard(tmp_path / "all.tar", contents(), quality=100)
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
    write_shard(tmp_path / "x.tar", [("x", stamped(moving_frames, 0, 9, 1))])
    first = (tmp_path / "x.tar").read_bytes()
    write_shard(tmp_path / "x.tar", [("x", stamped(moving_frames, 0, 9, 1))])
    assert (tmp_path / "x.tar").read_bytes() == first != content


def test_a_video_that_breaks_off_is_left_out(tmp_path, moving_frames):
    def broken():
        yield moving_frames[0], 0.0
        raise DecodeError("bad", "is broken")

    def backwards():
        yield moving_frames[0], 1.0
        yield moving_frames[1], 1.0

    good = stamped(moving_frames, 0, 4, 30)
    path = tmp_path / "x.tar"
    bad = write_shard(path, [("first", good), ("bad", broken()), ("none", []), ("still", backwards()), ("last", good)])
    assert set(bad) == {"bad", "none", "still"}
    assert bad["bad"] == "is broken"
    without = tmp_path / "without.tar"
    write_shard(without, [("first", good), ("last", good)])
    assert path.read_bytes() == without.read_bytes()


def test_an_interruption_leaves_nothing_under_the_name(tmp_path, moving_frames):
    def interrupted():
        yield "a", [(moving_frames[0], 0.0)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "x.tar", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_names_must_differ(tmp_path, moving_frames):
    frames = [(moving_frames[0], 0.0)]
    for names in (["a", "a"], [""], ["a\0"]):
        with pytest.raises(InputError, match="occurs twice"):
            write_shard(tmp_path / "x.tar", [(name, frames) for name in names])
    with pytest.raises(InputError, match=r"must end in \.tar"):
        write_shard(tmp_path / "x.jpegs", [])


def test_what_is_no_complete_shard_is_refused(shard, tmp_path):
    content, index = shard.read_bytes(), shard.with_suffix(".npz").read_bytes()
    write_shard(tmp_path / "other" / "train-00001.tar", [("x", [(np.zeros((8, 8, 3), np.uint8), 0.0)])])
    other = (tmp_path / "other" / "train-00001.npz").read_bytes()
    for tar, beside in (
        *((wrong, index) for wrong in (content[:-1], content[: len(content) // 2], b"", b"text", content + b"more")),
        *((content, wrong) for wrong in (index[:-1], index[: len(index) // 2], b"", b"text", other)),
        (content, index.replace(b"starts.npy", b"stopps.npy")),
    ):
        shard.write_bytes(tar)
        shard.with_suffix(".npz").write_bytes(beside)
        with pytest.raises(
            InputError, match=r"train-00001.tar is not a complete packed shard .* index .*train-00001.npz"
        ):
            Shard(shard)
    shard.with_suffix(".npz").unlink()
    with pytest.raises(InputError, match="No such file"):
        Shard(shard)


def test_a_shard_without_its_index_is_missed_where_others_have_theirs(shard, tmp_path):
    """A tar file alone is somebody's; beside shards it is one that was not copied whole."""
    other = shutil.copy(shard, tmp_path / "train-00002.tar")
    with pytest.raises(InputError, match="train-00002.tar is not a complete packed shard"):
        get_kinetics_dataset(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match="holds no video"):
        get_kinetics_dataset(tmp_path)
    assert Path(other).exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
def test_other_tools_read_it(shard, moving_frames):
    """Python's tarfile, the command `tar` and, where it is installed, webdataset."""
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        pictures = [decode_image(tar.extractfile(name).read()) for name in (names[0], names[27])]
    assert len(names) == 53 and names[0] == "a/000000.jpg" and names[27] == "folder/β ü/000007.jpg"
    for picture, number in zip(pictures, (0, 27), strict=True):
        np.testing.assert_array_equal(picture, decode_image(encode_jpeg(moving_frames[number])))
    listed = subprocess.run(["tar", "-tf", shard], capture_output=True, check=True)
    assert listed.stderr == b"" and listed.stdout.count(b"\n") == 53
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples[:2]] == ["a/000000", "a/000001"] and len(samples) == 53
    assert np.abs(samples[27]["jpg"].astype(int) - pictures[1]).max() <= 40


def test_damaged_frames_are_reported(shard):
    opened = Shard(shard)
    content = bytearray(shard.read_bytes())
    with opened.open(0) as clip:
        clip.frames([0])
        content[512:712] = bytes(200)
        shard.write_bytes(content)
        with pytest.raises(DecodeError, match=r"train-00001\.tar:a: frame 0 cannot be decoded"):
            clip.frames([0])
        clip.frames([19])
    shard.write_bytes(content[:300])
    with pytest.raises(DecodeError, match="become shorter"), opened.open(0) as clip:
        clip.frames([0])
    shard.unlink()
    with pytest.raises(DecodeError, match="cannot be opened"):
        opened.open(0)


def test_an_empty_shard_is_one(tmp_path):
    write_shard(tmp_path / "x.tar", [])
    assert len(Shard(tmp_path / "x.tar")) == 0
    with pytest.raises(InputError, match="x.tar holds no video"):
        get_kinetics_dataset(tmp_path)
