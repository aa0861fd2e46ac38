"""What is found below a folder, and that training and test stay apart."""

from pathlib import Path

import pytest

from common.errors import InputError
from dataset_loader import check_disjoint, find_videos, get_kinetics_dataset, hold_out, open_source


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_all_videos_below_a_folder(tmp_path):
    touch(*(tmp_path / name for name in ("b.mp4", "a/c.MKV", "a/d/e.webm", "z.avi", "f.mov", "clip.part.ts")))
    touch(*(tmp_path / name for name in (".hidden.mp4", ".git/g.mp4", "notes.txt", "mp4", "h.mp4.part")))
    touch(*(tmp_path / name for name in ("@eaDir/b.mp4/FILM_M.mp4", "__MACOSX/b.mp4", "$RECYCLE.BIN/b.mp4", "._b.mp4")))
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    outside = tmp_path.parent / f"{tmp_path.name}_elsewhere"
    touch(outside / "linked.mp4")
    (tmp_path / "link").symlink_to(outside)
    found = find_videos(tmp_path)
    assert found == sorted(found)
    names = " ".join(str(Path(path).relative_to(tmp_path)) for path in found)
    assert names == "a/c.MKV a/d/e.webm b.mp4 clip.part.ts f.mov link/linked.mp4 z.avi"


def test_a_list_of_files(tmp_path):
    touch(tmp_path / "b.mp4", tmp_path / "a.anything")
    assert find_videos([tmp_path / "b.mp4", str(tmp_path / "a.anything")]) == [
        str(tmp_path / "a.anything"),
        str(tmp_path / "b.mp4"),
    ]


def test_folders_in_a_list(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "x" / "b.mp4", tmp_path / "x" / "in" / "c.mp4", tmp_path / "x y" / "d.mp4")
    listed = [tmp_path / name for name in ("x y", "x", "a.mp4")]
    assert find_videos(listed) == open_source(listed).names == sorted(map(str, tmp_path.rglob("*.mp4")))
    (tmp_path / "link").symlink_to(tmp_path / "x" / "in")
    for inner in ("x/in", "link", "x/b.mp4", "x/../x"):
        with pytest.raises(InputError, match=f"{inner} lies in .*x: its videos would be there twice"):
            get_kinetics_dataset([*listed, tmp_path / inner])


def test_nothing_found_is_said(tmp_path):
    with pytest.raises(InputError, match="holds no video"):
        find_videos(tmp_path)
    with pytest.raises(InputError, match="missing is not a folder"):
        find_videos(tmp_path / "missing")
    with pytest.raises(InputError, match=r"gone\.mp4 does not exist"):
        find_videos([tmp_path / "gone.mp4"])
    with pytest.raises(InputError, match="list of videos is empty"):
        find_videos([])


def test_hold_out_is_stable():
    paths = [f"videos/clip_{number:04}.mp4" for number in range(2000)]
    train, held_out = hold_out(paths, 0.12)
    assert sorted(train + held_out) == paths
    assert 190 < len(held_out) < 290
    fewer, still = hold_out(paths[::2], 0.12)
    assert set(fewer) <= set(train)
    assert set(still) <= set(held_out)
    assert [Path(path).stem for path in hold_out([f"other/{Path(p).stem}.mkv" for p in paths], 0.12)[1]] == [
        Path(path).stem for path in held_out
    ]
    assert set(held_out) <= set(hold_out(paths, 0.3)[1])
    assert hold_out(paths, 0) == (paths, [])


def test_whole_families_are_held_out():
    paths = [f"{family}_{number}.mp4" for family in ("robot", "street", "sea") for number in range(100)]
    train, held_out = hold_out(paths, 0.1, ["street"])
    assert not any(path.startswith("street") for path in train)
    assert any(path.startswith("sea") for path in held_out)
    assert any(path.startswith("sea") for path in train)
    with pytest.raises(InputError, match="family strete"):
        hold_out(paths, 0.1, ["strete"])
    for share in (-0.1, 1):
        with pytest.raises(InputError, match="share to hold out"):
            hold_out(paths, share)


def test_training_and_test_are_kept_apart(tmp_path):
    touch(tmp_path / "train" / "a.mp4", tmp_path / "test" / "b.mp4", tmp_path / "train" / "deep" / "c.mp4")
    check_disjoint(tmp_path / "train", tmp_path / "test")
    for train, test in (
        ("train", "train/deep"),
        ("train/deep", "train"),
        ("train", "train"),
        ("train/../test", "test"),
    ):
        with pytest.raises(InputError, match="lies in"):
            check_disjoint(tmp_path / train, tmp_path / test)
    (tmp_path / "test" / "other name.mp4").symlink_to(tmp_path / "train" / "a.mp4")
    with pytest.raises(InputError, match="are one file"):
        check_disjoint(tmp_path / "train", tmp_path / "test")


# Lists in text files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a.mp4\nclass b/é.MKV\n", 0),
        ("a.mp4 0\nclass b/é.MKV 12\n", 2),  # VideoMAE
        ("a.mp4,0\r\n\r\nclass b/é.MKV,12\r\n", 2),
        ('path,label\n"a.mp4", 0\n"class b/é.MKV", swimming\n', 2),
        ("a.mp4 300 7\nclass b/é.MKV 25 1\n", 2),
        ("'a.mp4'\t3\r  'class b/é.MKV';5\r", 2),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_lists_with_and_without_labels(tmp_path, capsys, text, labels, encoding, suffix):
    """In every encoding; the labels are left out, and that is said."""
    touch(tmp_path / "a.mp4", tmp_path / "class b" / "é.MKV")
    (tmp_path / f"train{suffix}").write_bytes(text.encode(encoding))
    found = get_kinetics_dataset(tmp_path / f"train{suffix}")
    assert found.paths == [str(tmp_path / "a.mp4"), str(tmp_path / "class b" / "é.MKV")]
    said = capsys.readouterr().out
    assert said.endswith(
        f"2 video files ({labels} labels in {tmp_path}/train{suffix} are left out)\n" if labels else "2 video files\n"
    )


def test_tables_of_kinetics(tmp_path, capsys):
    touch(tmp_path / "dancing" / "abc_def-123_000012_000022.mp4", tmp_path / "xyz.mkv", tmp_path / "other.mp4")
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        '"dancing, ballet",abc_def-123,12,22,train\nrowing,gone,1,11,train\nrowing,xyz,5.0,15.0,train\n'
    )
    found = get_kinetics_dataset(tmp_path / "train.csv")
    assert found.paths == [str(tmp_path / "dancing" / "abc_def-123_000012_000022.mp4"), str(tmp_path / "xyz.mkv")]
    assert f"2 video files (of 3 in {tmp_path}/train.csv, whose labels are left out)" in capsys.readouterr().out
    for text, said in (
        (
            "label,youtube_id,time_start,time_end,split\na,none,1,11,train\n",
            "none of the 1 videos in .*none_000001_000011.mp4",
        ),
        ("label,youtube_id\na,none\n", "line 2 is no row of a Kinetics table"),
        ("xyz.mkv 1\nnothing here\n", "line 2: 'nothing here' names no video"),
        ("xyz.mkv 1\nabsent.mp4 2\n", r"absent\.mp4 does not exist \(1 of the 2 listed"),
    ):
        (tmp_path / "train.csv").write_text(text)
        with pytest.raises(InputError, match=said):
            get_kinetics_dataset(tmp_path / "train.csv")
