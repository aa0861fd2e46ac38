"""Data sets from a bad server, to a disk that fills up, by a program that is killed: always the same tree."""

import json
import os
import random
import re
import shutil
import tarfile
import time
from itertools import chain, pairwise, repeat

import pytest
import requests

from common.errors import InputError
from dataset_loader.preparing import download
from dataset_loader.preparing.download import MARKER, download_kinetics, download_list, spread
from dataset_loader.preparing.jobs import take_shard
from dataset_loader.processes import forking_context
from tests.dataset_loader.preparing.small_kinetics import (
    BUSY,
    DROP,
    HALF,
    PART,
    QUICK,
    WEB,
    kinetics,
    kinetics_site,
    part,
)
from tests.dataset_loader.preparing.test_archives import contents, noise, tar, tree
from tests.server import PAGE, Answer, Site, running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """All of the small Kinetics as it lands on the disk when nothing goes wrong."""
    out = tmp_path_factory.mktemp("undisturbed")
    with running(kinetics_site()) as site:
        kinetics(site, out)
    return tree(out)


def test_parts_become_folders_with_a_marker(site, undisturbed):
    expected = {"train", "val", "annotations"}
    for split, count in (("train", 6), ("val", 2)):
        expected |= {f"annotations/{split}.csv", f"annotations/k400_{split}_path.txt"}
        for k in range(count):
            folder = f"{split}/part_{k}"
            expected |= {folder, f"{folder}/{MARKER}"} | {f"{folder}/{name}" for name, _ in part(split, k)}
            for name, data in part(split, k):
                assert undisturbed[f"{folder}/{name}"] == (oct(0o100644), data)
            assert json.loads(undisturbed[f"{folder}/{MARKER}"][1]) == {
                "source": f"https://s3.amazonaws.com/kinetics/400/{folder}.tar.gz",
                "bytes": len(site.files[f"/{folder}.tar.gz"]),
                "files": 6,
            }
    assert undisturbed.keys() == expected


def test_a_subset_grows_without_waste(site, tmp_path, capsys):
    kinetics(site, tmp_path, videos=1)
    assert sorted(os.listdir(tmp_path / "train")) == sorted(os.listdir(tmp_path / "val")) == ["part_0"]
    assert "train: 1 of 6 parts, about 993 videos" in capsys.readouterr().out
    site.log.clear()
    kinetics(site, tmp_path, videos=4 * 993)
    assert sorted(os.listdir(tmp_path / "train")) == ["part_0", "part_1", "part_3"]
    assert sorted(site.gets()) == ["/train/part_1.tar.gz", "/train/part_3.tar.gz"]
    for options, words in [({"videos": 0}, "0 videos were asked"), ({"splits": ()}, "no split"), ({"jobs": 0}, "jobs")]:
        with pytest.raises(InputError, match=words):
            kinetics(site, tmp_path, **options)


def test_spread():
    assert spread(20, 4) == [0, 5, 10, 15] and spread(1, 1) == [0] and spread(3, 9) == [0, 1, 2]
    for count in (20, 39, 242):
        sets = [set(spread(count, wanted)) for wanted in range(1, count + 1)]
        assert all(len(chosen) == k for k, chosen in enumerate(sets, 1)) and sets[-1] == set(range(count))
        assert all(fewer < more for fewer, more in pairwise(sets))
        for chosen in sets[3:]:
            places = sorted(chosen)
            gaps = [b - a for a, b in zip(places, [*places[1:], places[0] + count], strict=True)]
            assert max(gaps) <= 2 * count / len(chosen) + 1


def test_several_at_once_and_a_display_for_all(site, undisturbed, tmp_path, capsys):
    site.pause = 0.01
    kinetics(site, tmp_path, jobs=3)
    assert site.most == 3
    out = capsys.readouterr().out
    assert re.search(r"10 of 10 complete: 100%.*\d\d:\d\d<00:00, .*B/s", out), out
    site.log.clear()
    kinetics(site, tmp_path)  # what is complete is not fetched again
    assert site.gets() == [] and tree(tmp_path) == undisturbed
    assert "10 of 10 complete" in capsys.readouterr().out


# Servers that misbehave


@pytest.mark.parametrize(
    "answers",
    [[DROP] * 5, [HALF] * 3, [DROP, HALF], [WEB], [Answer(PAGE)], [Answer(status=429)], [BUSY, BUSY, DROP], "wrong"],
    ids=range(8),
)
def test_a_bad_server_makes_no_difference(site, undisturbed, tmp_path, answers):
    site.heads = answers != [DROP, HALF]  # without sizes, too
    for path, content in site.files.items():
        if path.endswith(".gz"):
            site.will(path, [DROP, Answer(noise("wrong", len(content))), HALF] if answers == "wrong" else answers)
    kinetics(site, tmp_path / "out")
    assert tree(tmp_path / "out") == undisturbed


def test_bytes_that_arrived_are_not_fetched_again(site, tmp_path, capsys):
    path = "/train/part_0.tar.gz"
    site.will(path, [DROP] * 2)
    with pytest.raises(InputError, match="part_0"):
        kinetics(site, tmp_path, videos=1, retries=0)
    before = (tmp_path / "train" / ".part_0.unfinished" / "part_0.tar.gz.part").read_bytes()
    assert site.files[path].startswith(before) and len(before) > 10_000
    site.log.clear()
    capsys.readouterr()
    kinetics(site, tmp_path, videos=1)
    assert [headers["Range"] for headers in site.gets(path)] == [f"bytes={len(before)}-"]
    assert (tmp_path / "train" / "part_0" / MARKER).exists()
    assert re.search(r"1 of 4 complete: +[1-9]\d*%[^\r]*00:00<\?", capsys.readouterr().out)  # what is here is no speed


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("wrong", "is not a good archive"),
        ("climbs", "may lead out of its folder"),
        (WEB, "is answered with a web page"),
        (Answer(PAGE), "instead of"),
        (BUSY, "the server answered 503 Service Unavailable"),
        (Answer(PAGE, 404), "the server answered 404 Not Found"),
    ],
    ids=range(6),
)
def test_what_cannot_be_had_is_named_and_the_rest_is_complete(site, undisturbed, tmp_path, answer, words):
    good = site.files[PART]
    if isinstance(answer, Answer):
        site.will(PART, repeat(answer))
    else:
        site.files[PART] = tar([("../stolen", b"x")]) if answer == "climbs" else noise("wrong", len(good))
    with pytest.raises(InputError) as caught:
        kinetics(site, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("1 of 10 failed, the same command tries them again: ") and "\n" not in message
    assert "part_3" in message and words in message
    assert tree(tmp_path / "out") == {name: value for name, value in undisturbed.items() if "part_3" not in name}
    assert sorted(os.listdir(tmp_path)) == ["out"]
    site.files[PART] = good
    site.answers.clear()
    kinetics(site, tmp_path / "out")
    assert tree(tmp_path / "out") == undisturbed


def test_a_dead_server_is_given_up(tmp_path, monkeypatch, capsys):
    with Site() as closed:
        pass
    asked = []
    head = requests.head
    monkeypatch.setattr(requests, "head", lambda *words, **options: asked.append(1) or head(*words, **options))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(InputError, match=r"k400_train_path.txt could not be fetched from 127.0.0.1"):
        download_kinetics(tmp_path / "out", 1, base_url=closed.url)
    (tmp_path / "list.txt").write_text("".join(f"{closed.url}/{k}.mp4\n" for k in range(400)))
    with pytest.raises(InputError, match=r"400 of 400 failed.*0.mp4 could not be fetched.*and 395 more$"):
        download_list(tmp_path / "list.txt", tmp_path / "out", **QUICK)
    assert len(asked) < 20 and capsys.readouterr().out.count("tried again in the end") == 20


def test_a_mistake_of_ours_is_not_called_one_of_the_server(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "extract", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kinetics(site, tmp_path)


# Disks and people's files


def test_too_small_a_disk_is_refused_before_anything_is_fetched(site, tmp_path, monkeypatch):
    total = sum(len(data) for path, data in site.files.items() if path.endswith((".gz", ".csv")))
    largest = sorted(len(data) for path, data in site.files.items() if path.endswith(".gz"))
    free = [0]
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free[0]))
    for options, beside in ((dict(jobs=2), largest[-2:]), (dict(keep_archives=True), largest)):
        free[0] = total + sum(beside) - 1
        with pytest.raises(InputError, match=r"is too small: the downloads need 0.00 GB, and the disk has 0.00 GB"):
            kinetics(site, tmp_path / "out", **options)
        assert not (tmp_path / "out" / "train").exists()
        free[0] += 1
        kinetics(site, tmp_path / f"enough{len(beside)}", **options)


def test_a_disk_that_fills_up_costs_nothing_that_arrived(site, undisturbed, tmp_path, monkeypatch):
    whole = tarfile.TarFile.extract

    def full(self, member, *args, **options):
        if "train00003" in member.name:
            raise OSError(28, "No space left on device")
        return whole(self, member, *args, **options)

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(InputError, match=r"1 of 10 failed.*part_3.tar.gz cannot be written: .*No space left on device"):
        kinetics(site, tmp_path / "out")
    monkeypatch.undo()
    site.log.clear()
    kinetics(site, tmp_path / "out")
    assert tree(tmp_path / "out") == undisturbed and site.gets() == []


@pytest.mark.parametrize("mine", ["folder", "file", "link", "other marker", "meanwhile", "parent"])
def test_what_the_user_has_there_stays_as_it_is(site, tmp_path, mine, monkeypatch):
    place = tmp_path / "out" / "train" / "part_3"
    if mine == "parent":
        place.parent.parent.mkdir()
        place.parent.write_bytes(b"mine")
    else:
        place.parent.mkdir(parents=True)
    if mine in ("folder", "other marker"):
        place.mkdir()
        (place / (MARKER if mine == "other marker" else "a.mp4")).write_text('{"source": "http://elsewhere/x.tar.gz"}')
    elif mine == "file":
        place.write_bytes(b"mine")
    elif mine == "link":
        place.symlink_to(tmp_path / "nowhere")
    elif mine == "meanwhile":
        site.will(PART, [Answer(amid=lambda: (place.mkdir(), (place / "mine").touch()))])
    with pytest.raises(InputError) as caught:
        kinetics(site, tmp_path / "out")
    assert re.search(
        r"part_3 (is there already, without|was made of http://elsewhere)|part_3 cannot be written|"
        r"out/train is no folder that can be written to \(File exists\)$",
        str(caught.value),
    )
    if mine == "meanwhile":
        assert os.listdir(place) == ["mine"]
    else:
        assert os.path.lexists(place) or mine == "parent"
        assert not any(path.endswith(".gz") for path in site.gets())


def test_kept_archives(site, undisturbed, tmp_path):
    kinetics(site, tmp_path / "out", keep_archives=True)
    archives = {f"{path[1:]}": (oct(0o100644), data) for path, data in site.files.items() if path.endswith(".gz")}
    assert tree(tmp_path / "out") == undisturbed | archives

    place = tmp_path / "out" / "train"
    shutil.rmtree(place / "part_2")
    site.log.clear()
    kinetics(site, tmp_path / "out")
    assert site.gets() == [] and tree(tmp_path / "out") == undisturbed | archives

    shutil.rmtree(place / "part_2")
    bad = noise("bad", len(archives["train/part_2.tar.gz"][1]))
    (place / "part_2.tar.gz").write_bytes(bad)
    with pytest.raises(InputError, match="part_2.tar.gz is there already, but is not good"):
        kinetics(site, tmp_path / "out")
    assert (place / "part_2.tar.gz").read_bytes() == bad


# Shards


def test_shards_are_disjoint_and_complete(site, undisturbed, tmp_path):
    together = {}
    for i in (1, 2, 3):
        kinetics(site, tmp_path / str(i), shard=f"{i}/3")
        own = {name: data for name, data in contents(tmp_path / str(i)).items() if "path.txt" not in name}
        assert own and not own.keys() & together.keys()
        together |= own
    assert together == {n: v for n, (_, v) in undisturbed.items() if v is not None and "path.txt" not in n}
    for i in (3, 1, 2):
        kinetics(site, tmp_path / "one folder", shard=f"{i}/3")
    assert tree(tmp_path / "one folder") == undisturbed


def test_take_shard():
    things = list(range(11))
    for n in (1, 2, 5, 13):
        shards = [take_shard(things, f"{i}/{n}") for i in range(1, n + 1)]
        assert sorted(chain(*shards)) == things and max(map(len, shards)) - min(map(len, shards)) <= 1
    for bad in ("0/3", "4/3", "1/0", "1", "a/b", "1/3/5", "-1/3", ""):
        with pytest.raises(InputError, match=f"the shard is '{bad}'; it must be i/n"):
            take_shard(things, bad)


# Kills


def start(code, **values):
    """A new process that executes `code`, and ends with 1 if that raises."""
    quiet = (
        "import os, sys; sys.stdout = sys.stderr = open(os.devnull, 'w')\n"
        "from dataset_loader.preparing.download import *\n"
    )
    process = forking_context().Process(target=exec, args=(quiet + code, values))
    process.start()
    return process


def finish(process):
    process.join()
    return process.exitcode


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment(kills, site, tmp_path, undisturbed):
    """At most three kills in each folder, and then a run to the end."""
    site.pause = 0.003
    code = f"download_kinetics(out, 'all', base_url={site.url!r}, jobs=2, **{QUICK})"
    assert finish(start("")) == 0  # the first one takes long
    began = time.monotonic()
    assert finish(start(code, out=str(tmp_path / "timed"))) == 0 and tree(tmp_path / "timed") == undisturbed
    duration = time.monotonic() - began
    caught = 0
    while caught < kills:
        out = tmp_path / f"killed{caught}"
        for _ in range(min(3, kills - caught)):
            process = start(code, out=str(out))
            process.join(random.uniform(0, duration))
            process.kill()
            caught += finish(process) != 0
        kinetics(site, out)
        assert tree(out) == undisturbed


DYING = """
steps = 0
def dying(function):
    def call(*args, **options):
        global steps
        if steps == last:
            os._exit(9)
        steps += 1
        return function(*args, **options)
    return call
for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
download_list(file, out, jobs=1, keep_archives=keep)
"""


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_killed_before_every_single_step(site, tmp_path, keep):
    site.files = {"/a.tar": tar([("x/1.mp4", b"one"), ("2.mp4", b"two")], ""), "/b.mp4": noise("b", 5000)}
    (tmp_path / "list.txt").write_text("".join(f"{site.url}{path}\n" for path in site.files))
    download_list(tmp_path / "list.txt", tmp_path / "undisturbed", keep_archives=keep)
    for last in range(100):
        out = tmp_path / str(last)
        code = finish(start(DYING, last=last, file=str(tmp_path / "list.txt"), out=str(out), keep=keep))
        download_list(tmp_path / "list.txt", out, keep_archives=keep)
        assert tree(out) == tree(tmp_path / "undisturbed"), last
        if code == 0:
            break
        assert code == 9
    assert 20 < last < 60


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(site, tmp_path, monkeypatch):
    steps = []

    def note(name, about):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words: (steps.append((name, about(*words))), function(*words)))

    note("fsync", lambda descriptor: os.path.basename(os.readlink(f"/dev/fd/{descriptor}")))
    note("rename", lambda _, target: target.name)
    site.files["/a.tar"] = tar([("x/1.mp4", b"one"), ("2.mp4", b"two")], "")
    (tmp_path / "list.txt").write_text(f"{site.url}/a.tar")
    download_list(tmp_path / "list.txt", tmp_path / "out", jobs=1)
    named = steps.index(("rename", "a"))
    flushed = {name for _, name in steps[:named]}
    assert {"1.mp4", "2.mp4", "x", "files", f".{MARKER}.{os.getpid()}.tmp"} <= flushed
    assert steps[named + 1] == ("fsync", "out")


def test_two_processes_at_once(site, tmp_path, undisturbed):
    site.pause = 0.002
    code = f"download_kinetics(out, 'all', base_url={site.url!r}, **{QUICK})"
    both = [start(code, out=str(tmp_path / "out")) for _ in range(2)]
    assert [finish(process) for process in both] == [0, 0]
    assert tree(tmp_path / "out") == undisturbed
    assert len(site.gets()) == len(set(site.gets()))
