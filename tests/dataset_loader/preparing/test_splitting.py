"""Every video has its side, and no video and no content is on both."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import InputError
from dataset_loader import check_disjoint, open_source
from dataset_loader.preparing.manifest import Row, default_path, read_manifest, write_manifest
from dataset_loader.preparing.splitting import check_no_overlap, duplicates, split, split_data, video_id


def rows_of(names, **values):
    return [Row(name, bytes=9, hash=f"{k:032x}", status="ok", seconds=10.0, **values) for k, name in enumerate(names)]


def test_split_is_stable_by_the_id_of_the_video():
    names = [f"class {k % 7}/id-{k:04}_{k % 50:06}_{k % 50 + 10:06}.mp4" for k in range(2000)]
    rows = split(rows_of(names))
    sides = {row.path: row.split for row in rows}
    assert set(sides.values()) == {"train", "test"} and 150 < list(sides.values()).count("test") < 250
    assert all(sides[row.path] == row.split for row in split(rows_of(names[::3])))
    moved = [Row("elsewhere/" + Path(r.path).stem + ".mkv", hash=r.hash, status="ok", split="x") for r in rows]
    assert [row.split for row in split(moved)] == [row.split for row in rows]
    held = [r.path for r in split(rows_of(names), 0.3) if r.split == "test"]
    assert {name for name, side in sides.items() if side == "test"} < set(held)


def test_cuts_of_one_video_stay_together():
    assert video_id("a/b_c_000010_000020.mp4") == video_id("z/b_c_000030_000040.webm") == "b_c"
    assert video_id("droid_001.mp4") == "droid_001" and video_id("x/_000010_000020.mp4") == "_000010_000020"
    names = [f"id{k}_{cut:06}_{cut + 10:06}.mp4" for k in range(200) for cut in (0, 10, 20)]
    sides: dict[str, set[str]] = {}
    for row in split(rows_of(names), 0.5):
        sides.setdefault(video_id(row.path), set()).add(row.split)
    assert all(len(side) == 1 for side in sides.values()) and {"train"} in sides.values() and {"test"} in sides.values()


def test_what_is_not_ok_is_on_no_side():
    rows = [
        replace(row, status="short" if k % 2 else "ok") for k, row in enumerate(rows_of(f"{k}.mp4" for k in "abcdef"))
    ]
    assert [row.split != "" for row in split(rows)] == [True, False] * 3


def test_overlap_is_refused():
    names = [f"{k}.mp4" for k in range(40)]
    sides = {row.path: row.split for row in split(rows_of(names), 0.3)}
    held = next(n for n in names if sides[n] == "test")
    used = next(n for n in names if sides[n] == "train")
    same = [replace(row, hash="f" * 32) if row.path in (held, used) else row for row in rows_of(names)]
    with pytest.raises(InputError, match="same content"):
        split(same, 0.3)
    left = {row.path: row.split for row in split(same, 0.3, leave_out_duplicates=True)}
    assert {left[held], left[used]} in ({"", "train"}, {"", "test"})
    assert all(left[n] == sides[n] for n in names if n not in (held, used))
    assert [[row.path for row in group] for group in duplicates(same)] == [sorted([held, used])]
    with pytest.raises(InputError, match="same id"):
        check_no_overlap(rows_of(["a_000000_000010.mp4"]), [Row("x/a_000010_000020.mp4", hash="e")])
    check_no_overlap(rows_of(["a.mp4"]), [Row("b.mp4", hash="e")])


def test_two_folders_become_two_sides(tmp_path, capsys, monkeypatch):
    for name, ids in {"train": ("a", "b"), "test": ("c",)}.items():
        for k in ids:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{k}.mp4").write_text(k)
        rows = [Row(f"{k}.mp4", bytes=1, hash=k * 32, status="ok") for k in ids]
        write_manifest(default_path(tmp_path / name), rows)
    monkeypatch.chdir(tmp_path)
    split_data("train", test="test", lists="lists")
    assert [row.split for row in read_manifest(tmp_path / "train.manifest.csv")] == ["train", "train"]
    assert [row.split for row in read_manifest(tmp_path / "test.manifest.csv")] == ["test"]
    assert (tmp_path / "lists" / "test.txt").read_text() == "../test/c.mp4\n"
    monkeypatch.chdir("lists")
    for where in ("train.txt", tmp_path / "lists" / "train.txt"):  # the lines are relative to the list
        found = open_source(where)
        assert [os.path.realpath(name) for name in found.names] == [
            str(tmp_path / "train" / k) for k in ("a.mp4", "b.mp4")
        ]
    check_disjoint("train.txt", "test.txt")
    (tmp_path / "lists" / "both.txt").write_text("../train/b.mp4\r\n\n../test/c.mp4")
    with pytest.raises(InputError, match=r"b\.mp4 are one file"):
        check_disjoint("train.txt", "both.txt")
    (tmp_path / "lists" / "gone.txt").write_text("../train/a.mp4\nno such.mp4\n")
    with pytest.raises(InputError, match=r"no such\.mp4 does not exist"):
        open_source("gone.txt")
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "m.csv", read_manifest(tmp_path / "train.manifest.csv"))
    with pytest.raises(InputError, match="no list can be written"):
        split_data("m.csv", lists="other")
    assert "train: 2 videos" in capsys.readouterr().out
    inner = tmp_path / "train" / "inner"
    inner.mkdir()
    (inner / "d.mp4").touch()
    write_manifest(default_path(inner), [Row("d.mp4", hash="d", status="ok")])
    with pytest.raises(InputError, match="lies in"):
        split_data(tmp_path / "train", test=inner)
    write_manifest(default_path(tmp_path / "test"), [Row("x.mp4", bytes=1, hash="a" * 32, status="ok")])
    before = (tmp_path / "train.manifest.csv").read_bytes()
    with pytest.raises(InputError, match="same content"):
        split_data(tmp_path / "train", test=tmp_path / "test")
    assert (tmp_path / "train.manifest.csv").read_bytes() == before
