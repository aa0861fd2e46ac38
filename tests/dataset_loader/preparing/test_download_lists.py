"""Downloads of lists of URLs and of data sets that are one archive; the command."""

import json

import pytest
import tyro

from cli import data_download
from common.errors import InputError
from dataset_loader.preparing import download
from dataset_loader.preparing.download import MARKER, download_archive, download_list
from tests.dataset_loader.preparing.small_kinetics import BUSY, DROP, HALF, QUICK, kinetics
from tests.dataset_loader.preparing.test_archives import contents, noise, tar, tree, zipped
from tests.server import PAGE


def test_a_list_of_urls(site, tmp_path):
    videos = {"/a.mp4": noise("a", 9000), "/b%20c.webm": noise("b", 20), "/other/a.mp4": noise("other", 30)}
    site.files |= videos | {"/more.zip": zipped([("x/1.mp4", b"one"), ("x/2.mp4", b"two")])}
    site.files["/more.tgz"] = tar([("third/3.mp4", b"three"), ("4.mp4", b"four")])
    site.will("/a.mp4", [DROP, BUSY, HALF])
    lines = ["# mine", "", f"{site.url}/a.mp4?secret=1", f"{site.url}/a.mp4?secret=1", f"  {site.url}/b%20c.webm#t=5  "]
    lines += [
        f"{site.url}/other/a.mp4 second a.mp4",
        f"{site.url}/more.zip?secret=1",
        f"{site.url}/more.tgz  third.tgz",
    ]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(lines))
    out = tmp_path / "out"
    download_list(tmp_path / "list.txt", out, **QUICK)
    found = contents(out)
    markers = {name: json.loads(found.pop(name))["source"] for name in (f"more/{MARKER}", f"third/{MARKER}")}
    assert markers == {f"more/{MARKER}": f"{site.url}/more.zip", f"third/{MARKER}": f"{site.url}/more.tgz"}
    assert found == {
        **{"a.mp4": videos["/a.mp4"], "b c.webm": videos["/b%20c.webm"], "second a.mp4": videos["/other/a.mp4"]},
        **{"more/x/1.mp4": b"one", "more/x/2.mp4": b"two", "third/third/3.mp4": b"three", "third/4.mp4": b"four"},
    }
    site.log.clear()
    download_list(tmp_path / "list.txt", out, **QUICK)
    assert site.gets() == []

    (out / "a.mp4").write_bytes(b"the user's own")
    before = tree(out)
    with pytest.raises(InputError, match=r"a.mp4 is there already, but is not good: it has 14 bytes instead of 9,000"):
        download_list(tmp_path / "list.txt", out, **QUICK)
    (tmp_path / "list.txt").write_text(f"{site.url}/elsewhere/more.zip")
    with pytest.raises(InputError, match=r"more was made of .*/more.zip, not of .*/elsewhere/more.zip; choose another"):
        download_list(tmp_path / "list.txt", out, **QUICK)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("# nothing", "list.txt names no URL"),
        ("http://x/a.mp4\nhttp://y/a.mp4", r"lines 1 and 2 would both become .*a.mp4; add another name"),
        ("http://x/a.tar\n\nhttp://x/a.zip", r"lines 1 and 3 would both become .*a; add another name"),
        ("http://x/b.mp4\nftp://x/a.mp4", r"line 2: 'ftp://x/a.mp4' is no http or https URL"),
        ("http:///a.mp4", "line 1: .* is no http"),
        *[(f"http://x/{name}", "line 1: .* cannot be the name of a file; add a good one") for name in
          ("", "..", "%2e%2e", ".hidden.mp4", "a.mp4 ../a.mp4", "a.mp4 /tmp/a.mp4", "..%5Ca.mp4", "a%0Ab", "a%00.mp4")],
    ],
)  # fmt: skip
def test_bad_lists(tmp_path, lines, words):
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(InputError, match=words):
        download_list(tmp_path / "list.txt", tmp_path / "out")
    with pytest.raises(InputError, match="missing.txt cannot be read"):
        download_list(tmp_path / "missing.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_of_parts_that_is_none(site, tmp_path):
    for bad in (b"", PAGE, b"../../etc/passwd.tar.gz/..", b"http://x/..%2f..%2fa.tar.gz", b"http://x/.tar.gz"):
        site.files["/train/k400_train_path.txt"] = bad
        with pytest.raises(InputError, match="k400_train_path.txt"):
            kinetics(site, tmp_path / "out")
        assert not any((tmp_path / "out" / "annotations").iterdir())


@pytest.mark.parametrize(
    ("name", "archive", "folder", "inside"),
    [
        ("davis", "DAVIS-2017-trainval-480p.zip", "DAVIS", "DAVIS/"),
        ("vip", "VIP.zip", "VIP", "vip/"),
        ("jhmdb", "jhmdb.zip", "jhmdb", ""),
        ("tapvid_davis", "tapvid_davis.zip", "tapvid_davis", "tapvid_davis/"),
        ("kitti_step", "kitti-step.tar.gz", "kitti-step", "kitti-step/"),
    ],
)
def test_data_sets_of_one_archive(site, tmp_path, name, archive, folder, inside):
    files = {f"JPEGImages/480p/bear/{k:05}.jpg": noise(k, 2000) for k in range(5)} | {"val.txt": b"bear\n"}
    inner = [(inside + path, data) for path, data in files.items()]
    site.files[f"/{archive}"] = zipped(inner) if archive.endswith("zip") else tar(inner)
    site.will(f"/{archive}", [DROP, BUSY, HALF])
    download_archive(name, tmp_path, site.url + "/", **QUICK)
    found = contents(tmp_path / folder)
    marker = json.loads(found.pop(MARKER))
    assert found == files and marker["files"] == 6 and marker["source"] == download.ARCHIVES[name]


# The command


def command(*words):
    tyro.cli(data_download.main, args=[str(word) for word in words])


def test_the_command(site, tmp_path):
    for i in (1, 2):
        words = ("--videos", "2000", "--splits", "val", "--shard", f"{i}/2", "--keep-archives", "--jobs", "2")
        command("kinetics", *words, "--out", tmp_path / "val", "--base-url", site.url)
        assert (tmp_path / "val" / "val" / f"part_{2 - i}").exists()
        assert (tmp_path / "val" / "val" / f"part_{i - 1}").exists() == (i == 2)
    names = {name for name in tree(tmp_path / "val") if "mp4" not in name and MARKER not in name}
    expected = {"annotations", "annotations/k400_val_path.txt", "annotations/val.csv", "val"}
    assert names == expected | {f"val/part_{k}{suffix}" for k in (0, 1) for suffix in ("", ".tar.gz")}
    site.files |= {"/DAVIS-2017-trainval-480p.zip": zipped([("DAVIS/a", b"a")]), "/a.mp4": b"a"}
    command("davis", "--out", tmp_path / "davis", "--base-url", site.url)
    (tmp_path / "list.txt").write_text(f"{site.url}/a.mp4")
    command("--list", tmp_path / "list.txt", "--out", tmp_path / "davis" / "list")
    assert {"DAVIS/a", "list/a.mp4"} <= tree(tmp_path / "davis").keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "name kinetics with --videos N"),
        ("kinetics", "name kinetics with --videos N"),
        ("list", "or a file of URLs with --list FILE"),
        ("davis --videos 3", "--videos does not go with davis"),
        ("vip --splits val", "--splits does not go with vip"),
        ("kinetics --videos 3 --list a.txt", "--list does not go with kinetics"),
        ("--list a.txt --base-url http://x", "--base-url does not go with list"),
        ("--list a.txt --shard 3/2", "a.txt cannot be read"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, words, said):
    with pytest.raises(InputError, match=said):
        command(*words.split(), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
