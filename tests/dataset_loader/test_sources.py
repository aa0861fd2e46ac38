"""Video files, folders of pictures, packed shards and ledgers give the same samples through one interface."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from dataset_loader import check_disjoint, frame_folders, get_kinetics_dataset, ledger, make_loader
from dataset_loader.decoding import DecodeError
from dataset_loader.files import Names, find_videos
from dataset_loader.frame_folders import FrameClip, find_numbers
from dataset_loader.images import decode_image, encode_jpeg
from dataset_loader.ledger import Ledger
from dataset_loader.packed import write_shard
from dataset_loader.preparing.encoding import write_video
from dataset_loader.sources import FrameFolders, PackedShards, VideoFiles, open_source


def write_folder(folder: Path, frames, template: str = "img_{:05d}.jpg", first: int = 1, times=None) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        path = folder / template.format(number)
        if path.suffix == ".png":
            Image.fromarray(frame).save(path)
        else:
            path.write_bytes(encode_jpeg(frame, 100))
    if times is not None:
        (folder / "times.txt").write_text("".join(f"{time:.9f}\n" for time in times))
    return folder


# Folders of pictures


@pytest.mark.parametrize(
    ("template", "first", "found"),
    [
        ("img_{:05d}.jpg", 1, "img_{:05d}.jpg"),
        ("{:06d}.jpg", 0, "{:06d}.jpg"),
        ("frame-{}.png", 5, "frame-{:01d}.png"),
        ("v2_{{x}}_{:03d}.JPEG", 990, "v2_{{x}}_{:03d}.JPEG"),
    ],
)
def test_any_name_with_a_number(tmp_path, moving_frames, template, first, found):
    folder = write_folder(tmp_path / "clip", moving_frames[:20], template, first)
    (folder / "cover.jpg").write_bytes(b"")
    (folder / "notes_1.txt").write_text("")
    (folder / f".{template.format(1)}").write_text("")
    name, numbers, _ = find_numbers(str(folder))
    assert name == found
    np.testing.assert_array_equal(numbers, np.arange(first, first + 20))
    with FrameClip(str(folder), fps=25) as clip:
        np.testing.assert_allclose(clip.times, np.arange(20) / 25)
        frames, times = clip.frames([11, 3, 11])
    assert times.tolist() == [11 / 25, 3 / 25, 11 / 25]
    for frame, number in zip(frames, (11, 3, 11), strict=True):
        if template.endswith("png"):
            np.testing.assert_array_equal(frame, moving_frames[number])
        else:
            np.testing.assert_array_equal(frame, decode_image(encode_jpeg(moving_frames[number], 100)))


@pytest.mark.parametrize(
    ("names", "times", "said"),
    [
        ([f"{1403636579763555584 + k * 50_000_000}.png" for k in range(6)], 0.05, "named by nanoseconds, 20 a second"),
        ([f"{1403636579763555 + k * 33_333}.png" for k in range(6)], 0.033333, "named by microseconds, 30 a second"),
        ([f"cam_{1403636579763 + k * 40}.jpg" for k in range(6)], 0.04, "named by milliseconds, 25 a second"),
        ([f"{1305031102 + k}.png" for k in range(6)], 1.0, "named by seconds, 1 a second"),
        ([f"{1305031102.175304 + k / 30:.6f}.png" for k in range(60)], 1 / 30, "named by the time, 30 a second"),
        ([f"{1305031102.175304 + k / 30:.6f}.png" for k in range(6)], 1 / 30, "named by the time, 30 a second"),
        ([f"{0.9 + k / 10:.1f}.png" for k in range(6)], 0.1, "named by the time, 10 a second"),
        ([f"cam-2024-02-29_23-59-5{7 + k // 10}.{k % 10}00.png" for k in range(26)], 0.1, "by the time, 10 a second"),
        ([f"IMG_20240501_12{k:02d}05.png" for k in range(6)], 60.0, "named by the time, 0.0167 a second"),
        ([f"20240501123059{k}00.png" for k in range(6)], 0.1, "named by the time, 10 a second"),
        ([f"2024-05-01 12.30.05_{k:03d}.png" for k in range(6)], 0.1, ""),  # taken at that time, and counted
        ([f"shot_v1.{k:04d}.png" for k in range(6)], 0.1, ""),
        ([f"99999999_{k:06d}.png" for k in range(6)], 0.1, ""),  # no day
        ([f"{10**20 + k * 77_777_777}.png" for k in range(6)], 0.1, "order alone, at fps=10"),
        ([f"{k * 33_333_333}.png" for k in range(6)], 0.1, "order alone, at fps=10"),
        ([f"{2023110100001 + k}.png" for k in range(6)], 0.1, ""),  # a day and a counter
        ([f"{5 * k:05d}.jpg" for k in range(6)], 0.5, ""),  # every fifth frame, as in YouTube-VOS
    ],
)
def test_names_that_are_times(tmp_path, moving_frames, monkeypatch, caplog, names, times, said):
    """Clock readings give times; numbers that make no sensible rate give the order; both are said."""
    monkeypatch.setattr(frame_folders, "_told", set())
    for k, name in enumerate(names):
        Image.fromarray(moving_frames[k]).save(tmp_path / name)
        (tmp_path / f"._{name}").write_bytes(b"of macOS")
    (tmp_path / ".DS_Store").write_bytes(b"")
    clip = FrameClip(str(tmp_path), fps=10)
    np.testing.assert_allclose(clip.times, times * np.arange(len(names)), atol=1e-5)
    assert said in caplog.text if said else caplog.text == ""
    frames, _ = clip.frames([3])
    errors = [np.abs(frames[0].astype(int) - moving_frames[k]).mean() for k in range(6)]
    assert np.argmin(errors) == 3


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif"])
def test_grey_pictures_of_16_bit(tmp_path, kind):
    """65535 is white: every value is divided by 257; 8 bit pictures stay as they are."""
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    for number in (1, 2):
        picture = Image.fromarray(grey)
        if kind == "big-endian tif":
            picture = Image.frombytes("I;16B", (32, 32), grey.astype(">u2").tobytes())
        picture.save(tmp_path / f"{number}.{kind[-3:]}")
    frames, _ = FrameClip(str(tmp_path), fps=30).frames([1])
    assert (frames[0] == (grey / 257).round().astype(np.uint8)[:, :, None]).all() and frames.max() == 255


def test_frames_and_flow_in_one_folder(tmp_path, moving_frames):
    """mmaction's rawframes: a template tells the pictures from the flow; without one the choice is named."""
    for prefix in ("img", "flow_x", "flow_y"):
        for k in range(1, 9):
            (tmp_path / "clip").mkdir(exist_ok=True)
            Image.fromarray(moving_frames[k if prefix == "img" else 50]).save(
                tmp_path / "clip" / f"{prefix}_{k:05d}.png"
            )
    with pytest.raises(InputError, match=r"img_\{:05d\}.png; name one by its template \(--template\)"):
        get_kinetics_dataset(tmp_path, image_size=16)[0]
    sample = get_kinetics_dataset(tmp_path, image_size=48, augment=False, template="img_{:05d}.png")[0]
    first = round(float(sample["time"][0]) * 30)
    np.testing.assert_array_equal(sample["video"][0].permute(1, 2, 0), moving_frames[1 + first][:, 8:56])
    with pytest.raises(InputError, match="it must have a place for a frame's number"):
        get_kinetics_dataset(tmp_path, template="img_%05d.png")


def test_a_missing_picture_leaves_its_gap(tmp_path, moving_frames):
    folder = write_folder(tmp_path / "clip", moving_frames[:6])
    (folder / "img_00003.jpg").unlink()
    with FrameClip(str(folder), fps=10) as clip:
        np.testing.assert_allclose(clip.times, [0, 0.1, 0.3, 0.4, 0.5])


def test_times_beside_the_pictures(tmp_path, moving_frames):
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 30))
    write_folder(tmp_path / "clip", moving_frames[:30], times=times)
    sample = get_kinetics_dataset(tmp_path, image_size=16, repeated_sampling=4)[0]
    assert np.isin(sample["time"].numpy().round(6), times.round(6)).all()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "times.txt").write_text("0 1 x"), "not a list of seconds"),
        (lambda f: (f / "times.txt").write_text("0 1"), "2 times for 4 pictures"),
        (lambda f: (f / "times.txt").write_text("0 1 1 2"), "do not increase"),
        (lambda f: (f / "times.txt").write_text("0 1 nan 2"), "do not increase"),
        (lambda f: (f / "flow_00001.jpg").write_bytes(b""), r"flow_\{:05d\}.jpg, img_\{:05d\}.jpg"),
        (lambda f: (f / "img_1.jpg").write_bytes(b""), "the same number"),
        (lambda f: [path.write_bytes(path.read_bytes()[:90]) for path in f.iterdir()], "cannot be decoded"),
        (lambda f: [path.write_bytes(b"") for path in f.iterdir()], "cannot be decoded"),
        (lambda f: [(path.unlink(), os.mkfifo(path)) for path in f.iterdir()], "not a regular file"),
        (lambda f: [path.unlink() for path in f.iterdir()], "holds no pictures"),
        (lambda f: (f / "img_00003.jpg").write_bytes(encode_jpeg(np.zeros((9, 9, 3), np.uint8))), "change size"),
    ],
)
def test_a_bad_folder_is_named(tmp_path, moving_frames, spoil, reason):
    folder = write_folder(tmp_path / "clip", moving_frames[:4])
    spoil(folder)
    with pytest.raises(DecodeError, match=f"clip: .*{reason}"), FrameClip(str(folder), fps=30) as clip:
        clip.frames([0, 1, 2, 3])


def test_it_stands_back_for_others_in_an_epoch(tmp_path, moving_frames):
    for name in "abc":
        write_folder(tmp_path / name, moving_frames[:30])
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"text")
    loader = make_loader(get_kinetics_dataset(tmp_path, image_size=16), 3)
    assert len(list(loader)) == 1
    assert list(loader.bad_files) == [str(tmp_path / "b")]


# What a folder holds


def test_many_folders_are_listed_at_once(tmp_path, monkeypatch):
    """Of a ledger's folders only the first are looked at, before one is opened; what does not fit is said then."""
    for name in ("a", "b", "c"):
        write_folder(tmp_path / name, [np.zeros((8, 8, 3), np.uint8)] * 5)
    (tmp_path / "ledger.csv").write_text("a 1 5 0\nb 1 5 0\nc 1 5 0\nd 1 5 0\nc 3 6 0\n")
    monkeypatch.setattr(ledger, "LOOKED_AT", 2)
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (listed.append(path), listdir(path))[1])
    found = Ledger(tmp_path, tmp_path / "ledger.csv", complete=True)
    assert listed == [str(tmp_path / "a"), str(tmp_path / "b")] and len(found) == 5
    with found.open(2) as clip:
        assert len(clip.times) == 5
    with pytest.raises(DecodeError, match="d: cannot be listed"):
        found.open(3)
    with pytest.raises(DecodeError, match=r"ledger.csv, line 5: frame 6 of .*c is not there, which holds img_00001"):
        found.open(4)


def test_every_form_gives_the_same_samples(tmp_path, moving_frames):
    """The same frames at the same times, stored losslessly or nearly so, in each form."""
    times = np.arange(60) / 30
    write_video(tmp_path / "videos" / "x" / "clip.mkv", moving_frames[:60], 30, codec="ffv1", pixel_format="bgr0")
    write_folder(tmp_path / "timed" / "x" / "clip", moving_frames[:60], "{:03d}.png", times=times)
    write_folder(tmp_path / "untimed" / "clip", moving_frames[:60], "img_{:05d}.png")
    write_folder(tmp_path / "ledger" / "clip", moving_frames[:60], "img_{:05d}.png")
    (tmp_path / "ledger" / "ledger.csv").write_text("clip 1 60 0\n")
    (tmp_path / "packed").mkdir()
    write_shard(tmp_path / "packed" / "0.tar", [("clip", zip(moving_frames, times, strict=False))], quality=100)
    kinds = {}
    samples = {}
    for form in ("videos", "timed", "untimed", "ledger", "packed"):
        dataset = get_kinetics_dataset(tmp_path / form, image_size=32, repeated_sampling=3)
        kinds[form] = type(dataset.source)
        samples[form] = dataset[4, 0]
    assert list(kinds.values()) == [VideoFiles, FrameFolders, FrameFolders, Ledger, PackedShards]
    first = samples["videos"]
    for form, sample in samples.items():
        np.testing.assert_allclose(sample["time"], first["time"], atol=1e-3)
        assert torch.equal(sample["seed"], first["seed"])
        difference = sample["video"].float() - first["video"].float()
        if form == "packed":  # whose JPEGs have the colours at half the resolution: compare the brightness
            brightness = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            assert (difference * brightness).sum(-3).abs().mean() < 2
        else:
            assert not difference.any()


def test_a_video_by_itself_is_a_data_set(tmp_path, moving_frames):
    write_video(tmp_path / "CLIP.MP4", moving_frames[:20], 10.0)
    dataset = get_kinetics_dataset(tmp_path / "CLIP.MP4", image_size=32, visits=2)
    assert len(dataset) == 2 and dataset[0, 0]["path"].endswith("CLIP.MP4")
    assert find_videos(tmp_path / "CLIP.MP4") == find_videos(tmp_path)


def test_what_was_chosen_is_said(tmp_path, moving_frames, capsys):
    write_folder(tmp_path / "clip", moving_frames[:5])
    get_kinetics_dataset(tmp_path, fps=12.5)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "1 folder of pictures" in said
    assert "fps=12.5" in said


def test_the_order_of_preference(tmp_path, moving_frames):
    write_folder(tmp_path / "a" / "clip", moving_frames[:5])
    assert isinstance(open_source(tmp_path), FrameFolders)
    write_video(tmp_path / "a" / "clip.mp4", moving_frames[:5], 30)
    assert open_source(tmp_path).names == [str(tmp_path / "a" / "clip.mp4")]
    (tmp_path / "ledger.txt").write_text("a/clip,1,5,0")
    assert isinstance(open_source(tmp_path), Ledger)
    write_shard(tmp_path / "b.tar", [("x", [(moving_frames[0], 0.0)])])
    assert isinstance(open_source(tmp_path), PackedShards)
    assert isinstance(open_source([tmp_path / "b.tar"]), PackedShards)
    assert isinstance(open_source(tmp_path / "b.tar"), PackedShards)
    assert isinstance(open_source(tmp_path / "ledger.txt"), Ledger)
    with pytest.raises(InputError, match=r"mixes packed shards .*b\.tar"):
        open_source([tmp_path / "b.tar", tmp_path / "a" / "clip.mp4"])
    with pytest.raises(InputError, match="fps is 0"):
        open_source(tmp_path, fps=0)


def test_folders_are_searched_to_their_depths(tmp_path, moving_frames):
    for name in ("one/x", "one/y", "two/deeper/z", ".hidden/w"):
        write_folder(tmp_path / name, moving_frames[:20])
    (tmp_path / "one" / "x" / "and_a_folder").mkdir()
    (tmp_path / "two" / "up").symlink_to(tmp_path)
    found = open_source(tmp_path)
    assert found.names == [str(tmp_path / name) for name in ("one/x", "one/y", "two/deeper/z")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no video: looked below it for"):
        open_source(tmp_path / "empty")
    with pytest.raises(InputError, match="is not a folder"):
        open_source(tmp_path / "absent")


def test_several_shards_are_one_source(tmp_path, moving_frames):
    for shard, names in {"b": ["3"], "a": ["1", "2"], "c": []}.items():
        videos = [(name, [(moving_frames[int(name)], 0.0), (moving_frames[0], float(name))]) for name in names]
        write_shard(tmp_path / f"{shard}.tar", videos)
    source = open_source(tmp_path)
    assert [name.rsplit(":")[-1] for name in source.names] == ["1", "2", "3"]
    for number in range(3):
        with source.open(number) as clip:
            assert clip.times.tolist() == [0.0, number + 1.0]
            assert clip.path == source.names[number]


@pytest.mark.parametrize("train", ["files", "packed", "frames", "ledger"])
@pytest.mark.parametrize("test", ["packed", "frames", "ledger"])
def test_training_and_test_are_kept_apart_in_every_form(tmp_path, moving_frames, train, test):
    def make(form, name, ids):
        top = tmp_path / name
        names = [f"{k}_000010_000020" if name == "test" else k for k in ids]  # cuts of one video are one video
        if form == "packed":
            videos = [(f"class/{k}.mp4", [(moving_frames[0], 0.0)]) for k in names]
            write_shard(top / "0.tar", videos)
        for k in names:
            if form == "files":
                (top / "class").mkdir(parents=True, exist_ok=True)
                (top / "class" / f"{k}.mp4").touch()
            elif form != "packed":
                write_folder(top / "class" / k, moving_frames[:2])
        if form == "ledger":
            (top / "ledger.csv").write_text("".join(f"class/{k},1,2,0\n" for k in names))
        return top

    folder = make(train, "train", ["a.v1", "b"])
    check_disjoint(folder, make(test, "apart", ["a.v2", "c"]))
    with pytest.raises(InputError, match=r"test and .*train are of one video, 'b': .* \(1 such videos\)"):
        check_disjoint(folder, make(test, "test", ["b", "c"]))


def test_lists_of_folders_hold_one_kind(tmp_path, moving_frames):
    for name in "ab":
        write_folder(tmp_path / "frames" / name, moving_frames[:2])
        write_shard(tmp_path / f"packed {name}" / "0.tar", [(name, [(moving_frames[0], 0.0)])])
    assert isinstance(open_source([tmp_path / "frames" / name for name in "ab"]), FrameFolders)
    packed = open_source([tmp_path / f"packed {name}" for name in "ab"])
    assert [name[-1] for name in packed.names] == ["a", "b"]
    with pytest.raises(InputError, match="the list mixes 2 folders of pictures.* 1 packed shard: give one kind"):
        open_source([tmp_path / "frames", tmp_path / "packed a"])


def test_masks_beside_frames_are_left_out(tmp_path, moving_frames, capsys):
    """The layout of DAVIS: the masks are numbered pictures too."""
    for name in ("JPEGImages/480p/bear", "Annotations/480p/bear", "Annotations_unsupervised/480p/bear"):
        suffix = "png" if "Annotations" in name else "jpg"
        write_folder(tmp_path / "DAVIS" / name, moving_frames[:3], f"{{:05d}}.{suffix}")
    found = get_kinetics_dataset(tmp_path)
    assert found.paths == [str(tmp_path / "DAVIS" / "JPEGImages" / "480p" / "bear")]
    said = capsys.readouterr().out
    assert "1 folder of pictures without the masks in" in said and "DAVIS/Annotations," in said
    assert len(open_source(tmp_path / "DAVIS" / "Annotations").names) == 1  # asked for by name


def test_names_are_a_sequence():
    names = Names(["", "a/ü", "b\udcff"])  # also one that is not UTF-8
    assert list(names) == ["", "a/ü", "b\udcff"]
    assert names[-1] == "b\udcff"
    assert names[1:] == ["a/ü", "b\udcff"]
    assert names == Names(names)
    assert names != ["", "a/ü"]
    assert "a/ü" in names
    with pytest.raises(IndexError):
        names[3]
    assert len(Names([])) == 0
