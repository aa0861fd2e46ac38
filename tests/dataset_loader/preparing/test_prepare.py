"""Every form of a data set shows the frames of its videos at their times, and is the same after any number of kills."""

import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.main import COMMANDS, main
from common.errors import InputError
from dataset_loader import decode_all, open_source, read_index
from dataset_loader.packed import Shard
from dataset_loader.preparing.encoding import at_rate, write_video
from dataset_loader.preparing.manifest import Row, default_path, write_manifest
from dataset_loader.preparing.prepare import prepare
from dataset_loader.preparing.recipe import Recipe
from dataset_loader.times import runs
from tests.dataset_loader.odd_videos import ODD
from tests.dataset_loader.preparing.kills import kill_at_random_moments

RECIPES = {
    "frames": Recipe("frames", short_side=24),
    "packed": Recipe("packed", short_side=24, videos_per_shard=3),
    "gop": Recipe("gop", short_side=24, gop=4),
}


@pytest.fixture(scope="module")
def pictures():
    """32 smooth frames, no two alike: uint8 [32, 48, 64, 3]."""
    y, x, t = np.ogrid[:48, :64, :32]
    waves = [128 + 90 * np.sin(x / 7 + t / 9 + k) * np.cos(y / 9 - t / 13) for k in range(3)]
    return np.stack(waves, axis=-1).transpose(2, 0, 1, 3).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Six clips of a second, one of them at a variable rate, and one file that is no video."""
    folder = tmp_path_factory.mktemp("prepare") / "clips"
    for number in range(5):
        write_video(folder / f"part{number % 2}" / f"clip {number}.mp4", np.roll(pictures, 5 * number, axis=2), 30)
    steps = np.random.default_rng(0).uniform(0.02, 0.1, 32)
    write_video(folder / "variable.mkv", pictures, 3 + np.cumsum(steps))
    (folder / "text.mp4").write_text("hello")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones and empty folders too."""
    return {str(p.relative_to(folder)): b"" if p.is_dir() else p.read_bytes() for p in folder.rglob("*")}


@pytest.fixture(scope="module", params=sorted(RECIPES))
def prepared(request, folder, tmp_path_factory):
    """(form, folder, what it holds) of an undisturbed run."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    failed = prepare(folder, out, RECIPES[request.param], jobs=2)
    assert failed == {"text.mp4": "cannot be opened as a video (Invalid data found when processing input)"}
    return request.param, out, tree(out)


def clip_of(form, out, name):
    """Frames and times of one prepared video, read by independent means where there are such."""
    if form == "gop":
        return decode_all((out / name).with_suffix(".mp4"))
    if form == "frames":
        images = sorted((out / name).with_suffix("").glob("img_*.jpg"))
        assert [path.name for path in images] == [f"img_{k:05}.jpg" for k in range(1, len(images) + 1)]
        times = [float(line) for line in (images[0].parent / "times.txt").read_text().split()]
        return np.stack([np.asarray(Image.open(path)) for path in images]), np.array(times)
    for shard in map(Shard, sorted(out.glob("*.tar"))):
        if name in list(shard.each_name()):
            with shard.open(list(shard.each_name()).index(name)) as clip:
                return clip.frames(range(len(clip.times)))
    raise AssertionError(f"{name} is in no shard")


def test_frames_and_times_stay(prepared, folder):
    form, out, _ = prepared
    for name in ("part0/clip 2.mp4", "variable.mkv"):
        frames, times = decode_all(folder / name)
        seen, at = clip_of(form, out, name)
        assert seen.shape == (32, 24, 32, 3)
        np.testing.assert_allclose(at, times - times[0], atol=1e-4)
        small = frames.reshape(32, 24, 2, 32, 2, 3).mean((2, 4))
        error = np.abs(small - seen).mean()
        assert error < 8
        assert np.abs(small - np.roll(seen, 1, axis=0)).mean() > error + 2  # in their order


@pytest.mark.parametrize("form", sorted(RECIPES))
def test_odd_videos_become_what_the_loader_takes(form, tmp_path, pictures):
    """Upright, in their colours, and with times between which no pair is drawn across a reset of the clock."""
    for name, make in ODD.items():
        (tmp_path / "v").mkdir(exist_ok=True)
        make(tmp_path / "v" / name, pictures[:30])
    recipe = replace(RECIPES[form], short_side=None, crf=4, quality=98)
    assert prepare(tmp_path / "v", tmp_path / "out", recipe, jobs=2) == {}
    source = open_source(tmp_path / "out")
    assert len(source.names) == len(ODD)
    for number, path in enumerate(source.names):
        original = tmp_path / "v" / next(name for name in ODD if Path(name).stem in path)
        frames, times = decode_all(original)
        with source.open(number) as clip:
            seen, _ = clip.frames(range(len(clip.times)))
            assert seen.shape == frames.shape and np.abs(seen - frames.astype(int)).mean() < 9, path
            assert (np.diff(clip.times) > 0).all()
            assert [last - first for first, last in runs(clip.times)] == [
                last - first for first, last in runs(times)
            ], path


def test_what_is_there_and_what_failed(prepared):
    form, out, files = prepared
    assert files["failed.csv"] == (
        b"path,reason\ntext.mp4,cannot be opened as a video (Invalid data found when processing input)\n"
    )
    assert json.loads(files["prepared.json"])["form"] == form
    top = {name.split("/")[0] for name in files}
    names = {"frames": {"part0", "part1", "variable"}, "gop": {"part0", "part1", "variable.mp4"}}
    shards = {f"{k:05}{suffix}" for k in range(3) for suffix in (".tar", ".npz")}
    assert top == {"failed.csv", "prepared.json"} | names.get(form, shards)
    if form == "gop":
        assert len(read_index(out / "variable.mp4").keyframes) == 8


def test_a_second_run_makes_nothing(prepared, folder, capsys):
    form, out, files = prepared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.suffix in (".jpg", ".mp4", ".tar")}
    prepare(folder, out, RECIPES[form], jobs=1)
    assert tree(out) == files
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_shards_are_disjoint_and_complete(prepared, folder, tmp_path):
    form, _, files = prepared
    made: list[str] = []
    for k in (1, 2):
        before = set(tree(tmp_path / "out")) if k > 1 else set()
        prepare(folder, tmp_path / "out", RECIPES[form], jobs=1, shard=f"{k}/2")
        made += set(tree(tmp_path / "out")) - before
    assert len(made) == len(set(made))
    listed = {name for name in made if name.endswith("-of-2.failed.csv")}
    assert len(listed) == 1
    got = tree(tmp_path / "out")
    assert {name: data for name, data in got.items() if name not in listed} == {
        name: data for name, data in files.items() if name != "failed.csv"
    }


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment(kills, prepared, folder, tmp_path):
    (form, _, undisturbed), out = prepared, tmp_path / "out"

    def run_to_the_end():
        left = tree(out)
        assert all(left[name] == data for name, data in undisturbed.items() if name in left and name != "failed.csv")
        prepare(folder, out, RECIPES[form], jobs=2)
        assert tree(out) == undisturbed
        shutil.rmtree(out)

    code = (
        "from dataset_loader.preparing.prepare import Recipe, prepare\n"
        f"prepare({str(folder)!r}, {str(out)!r}, {RECIPES[form]!r}, jobs=2)"
    )
    progress = lambda: sorted(out.glob(".unfinished.*/*"))  # noqa: E731
    kill_at_random_moments(code, kills, kills, progress=progress, run_to_the_end=run_to_the_end)


def test_what_it_will_take_is_measured_and_printed(folder, tmp_path, capsys, monkeypatch):
    prepare(folder, tmp_path / "out", Recipe("frames", fps=10), jobs=1)
    line = next(line for line in capsys.readouterr().out.splitlines() if "become about" in line)
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.jpg"))
    amount, unit = re.search(r"become about ([\d.]+)([kM]?)B", line).groups()
    assert float(amount) * {"": 1, "k": 1e3, "M": 1e6}[unit] == pytest.approx(size, rel=0.5), line
    assert line.startswith("7 videos of ") and "with 1 process" in line
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("dataset_loader.preparing.prepare.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="too small"):
        prepare(folder, tmp_path / "no room", RECIPES["gop"], jobs=1)
    assert set(tree(tmp_path / "no room")) == {"prepared.json"}


@pytest.mark.parametrize("fps", [7, 30, 45, None])
@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_a_raster_takes_the_nearest_frames(fps, kind):
    gaps = np.random.default_rng(3).uniform(0.005, 0.12, 80) if kind == "uneven" else np.full(80, 1 / 30)
    times = 2.5 + np.cumsum(gaps)
    taken = list(at_rate(((np.array([k]), float(t)) for k, t in enumerate(times)), fps))
    assert all(times[image[0]] == at for image, at in taken)
    if fps is None:
        wanted = list(range(80))
    else:
        raster = times[0] + np.arange(10_000) / fps
        raster = raster[raster <= times[-1] + 1e-9]
        wanted = sorted({int(np.abs(times - at).argmin()) for at in raster})
    got = [int(image[0]) for image, _ in taken]
    assert got == wanted or (got[:-1] == wanted and got[-1] == 79)  # the last one may round the clip off
    if (fps, kind) == (30, "even"):
        assert got == list(range(80))


def test_only_what_the_manifest_calls_ok(folder, tmp_path, pictures, capsys):
    for name in "abc":
        write_video(tmp_path / "v" / f"{name}.mp4", pictures[:10], 30)
    sides = [("a", "ok", "train"), ("b", "short", ""), ("c", "ok", "test")]
    rows = [Row(f"{name}.mp4", status=status, split=side) for name, status, side in sides]
    write_manifest(default_path(tmp_path / "v"), rows)
    recipe = Recipe("frames", fps=5)

    def made(name, **options):
        prepare(tmp_path / "v", tmp_path / name, recipe, jobs=1, **options)
        return {path.name for path in (tmp_path / name).iterdir() if path.is_dir()}

    with pytest.raises(InputError, match="into train and test: choose --split train or --split test, .* --split all"):
        made("mixed")
    assert made("ok", split="all") == {"a", "c"} and "2 of the 3 files" in capsys.readouterr().out
    assert made("train", split="train") == {"a"}
    with pytest.raises(InputError, match="split was train and is now test"):
        made("train", split="test")
    assert made("all", every_file=True) == {"a", "b", "c"}
    write_manifest(default_path(tmp_path / "v"), rows[:2])
    assert made("one side") == {"a"}
    with pytest.raises(InputError, match="has no video that is ok and of the split val"):
        made("val", split="val")
    with pytest.raises(InputError, match="told by a manifest"):
        prepare(folder, tmp_path / "x", recipe, split="train")


def test_nothing_of_the_users_is_touched(folder, tmp_path, pictures):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("mine")
    with pytest.raises(InputError, match="was not made by prepare"):
        prepare(folder, tmp_path / "mine", RECIPES["gop"])
    for out in (folder, folder / "inside", folder.parent):
        with pytest.raises(InputError, match="lie in one another"):
            prepare(folder, out, RECIPES["gop"])
    prepare(folder, tmp_path / "out", Recipe("frames", fps=1), jobs=1)
    with pytest.raises(InputError, match="fps was 1 and is now 2"):
        prepare(folder, tmp_path / "out", Recipe("frames", fps=2))
    assert tree(tmp_path / "mine") == {"note": b"mine"}
    write_video(tmp_path / "v" / "a.mp4", pictures[:2], 30)
    write_video(tmp_path / "v" / "a.mkv", pictures[:2], 30)
    with pytest.raises(InputError, match=r"a\.mkv and a\.mp4 would both become a\.mp4"):
        prepare(tmp_path / "v", tmp_path / "w", RECIPES["gop"])
    (tmp_path / "v" / "a.mkv").unlink()
    write_video(tmp_path / "v" / "a" / "b.mp4", pictures[:2], 30)
    with pytest.raises(InputError, match="would both become a;"):
        prepare(tmp_path / "v", tmp_path / "w", RECIPES["frames"])
    prepare(tmp_path / "v", tmp_path / "w", Recipe("packed"), jobs=1)
    write_video(tmp_path / "v" / "b.mp4", pictures[:2], 30)
    with pytest.raises(InputError, match="begun in another way: videos was"):
        prepare(tmp_path / "v", tmp_path / "w", Recipe("packed"))


@pytest.mark.parametrize("form", sorted(RECIPES))
def test_a_result_of_other_videos_is_not_kept(form, tmp_path, pictures):
    """Another folder with the same names, a video that was written again since, and one that has grown."""
    recipe = replace(RECIPES[form], short_side=256)
    for name in ("v", "w"):
        write_video(tmp_path / name / "a.mp4", pictures[:10], 30)
    prepare(tmp_path / "v", tmp_path / "out", recipe, jobs=1)
    made = tree(tmp_path / "out")
    with open_source(tmp_path / "out").open(0) as clip:
        assert clip.frames([0])[0].shape == (1, 48, 64, 3)  # small videos are not enlarged
    with pytest.raises(InputError, match="begun in another way: source was .*/v and is now .*/w; give another --out"):
        prepare(tmp_path / "w", tmp_path / "out", recipe, jobs=1)
    (tmp_path / "link").symlink_to("v")
    prepare(tmp_path / "link", tmp_path / "out", recipe, jobs=1)
    later = time.time_ns() + 10**9
    os.utime(tmp_path / "v" / "a.mp4", ns=(later, later))
    with pytest.raises(InputError, match=r"a\.mp4 is newer than what was made of it in .*out \(1 such videos\)"):
        prepare(tmp_path / "v", tmp_path / "out", recipe, jobs=1)
    if form == "packed":
        with open(tmp_path / "v" / "a.mp4", "ab") as file:
            file.write(bytes(9))
        os.utime(tmp_path / "v" / "a.mp4", (0, 0))
        with pytest.raises(InputError, match="videos was"):
            prepare(tmp_path / "v", tmp_path / "out", recipe, jobs=1)
    assert tree(tmp_path / "out") == made


@pytest.mark.parametrize(("name", "value"), [("fps", 0), ("short_side", 1), ("quality", 101), ("gop", 0), ("crf", 52)])
def test_recipes_that_cannot_be(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; it must be"):
        Recipe("gop", **{name: value})


# ---- The commands


def test_the_commands(folder, tmp_path, monkeypatch, capsys):
    for name in ("data prepare", "data inspect"):
        monkeypatch.setitem(COMMANDS, name, "")
    out, clips = str(tmp_path / "out"), str(folder)
    short = ["--jobs", "1", "--short-side", "24"]
    assert main(["data", "prepare", "gop", clips, "--out", out, *short]) == 0
    assert main(["data", "inspect", out, "--out", str(tmp_path / "pairs.png"), "--size", "32", "--count", "3"]) == 0
    assert len(np.asarray(Image.open(tmp_path / "pairs.png"))) == 3 * 40 + 8
    capsys.readouterr()
    for words, sentence in [
        (["prepare", "gop", "nowhere", "--out", out], "nowhere is not a folder"),
        (["prepare", "gop", clips, "--out", out, "--quality", "90"], "--quality does not go with gop"),
        (["prepare", "frames", clips, "--out", out], "form was gop and is now frames"),
        (["prepare", "gop", clips, "--out", f"{out}/prepared.json/x"], "cannot be"),
        (["prepare", "gop", clips, "--out", out, "--short-side", "1"], "short_side is 1"),
        (["prepare", "gop", clips, "--out", out, "--jobs", "0"], "jobs is 0"),
        (["prepare", "gop", clips, "--out", out, "--shard", "x"], "the shard is 'x'"),
        (["inspect", out, "--out", str(tmp_path / "pairs.png")], "not overwritten"),
        (["inspect", "nowhere", "--out", "x.png"], "nowhere"),
    ]:
        assert main(["data", *words]) == 2, words
        error = capsys.readouterr().err
        assert sentence in error and len(error.splitlines()) == 1, error
