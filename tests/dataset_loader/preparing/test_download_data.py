"""Data sets from a bad server, to a disk that fills up, by a program that is killed: always the same tree."""

import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import tarfile
import time
import zipfile
from collections import Counter
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, pairwise
from multiprocessing import forkserver
from pathlib import Path
from threading import Event, Lock, Thread

import pytest
import requests
import tyro

from cli import data_download
from common.errors import InputError
from common.files import locked
from dataset_loader.preparing import archives, download
from dataset_loader.preparing.archives import SUFFIXES, extract
from dataset_loader.preparing.download import MARKER, download_archive, download_kinetics, download_list, spread
from dataset_loader.preparing.jobs import take_shard

QUICK = dict(retries=3, backoff=0.01)
PAGE = b"<!DOCTYPE html><html><body>Service unavailable</body></html>"


# What is served


def noise(name, size):
    return random.Random(name).randbytes(size)


def tar(members, suffix="gz"):
    """An archive of (name, bytes) or whole `TarInfo`s."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{suffix}") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def part(split, k):
    """The videos of one part."""
    return [(f"{split}{k:05}{v:02}_000000_000010.mp4", noise(f"{split}{k}{v}", 3000 + 700 * v)) for v in range(6)]


class Site(ThreadingHTTPServer):
    """A small Kinetics on loopback. `faults` holds, for each path, what goes wrong with its next requests."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.faults, self.log, self.pause = {}, {}, [], 0.0
        self.lock, self.now, self.most = Lock(), 0, 0  # downloads at one time
        for split, count in (("train", 6), ("val", 2)):
            names = [f"part_{k}.tar.gz" for k in range(count)]
            for k, name in enumerate(names):
                self.files[f"/{split}/{name}"] = tar(part(split, k))
            listing = "".join(f"https://s3.amazonaws.com/kinetics/400/{split}/{name}\n" for name in names)
            self.files[f"/{split}/k400_{split}_path.txt"] = listing.encode()
            self.files[f"/annotations/{split}.csv"] = f"label,youtube_id\n{split},x\n".encode()

    def handle_error(self, *_):
        """Clients that were killed are no errors."""

    def gets(self):
        return [path for method, path in self.log if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        site, path = self.server, self.path.partition("?")[0]
        site.log.append((self.command, path))
        faults = site.faults.get(path, [])
        fault = (faults.pop(0) if self.command == "GET" else None) if faults else None
        if "no HEAD" in site.faults and self.command == "HEAD":
            fault = 405
        body = site.files.get(path)
        if body is None:
            fault = 404
        if isinstance(fault, int):
            return self.answer(fault, b"Sorry", {"Retry-After": "0"})
        if fault == "page":
            return self.answer(200, PAGE, {"Content-Type": "text/html"})
        if fault == "page as a file":
            body = PAGE
        if fault == "wrong":
            body = noise("wrong", len(body))
        if fault == "cut off":  # consistently: the server itself has no more
            body = body[: len(body) // 2]
        headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "Content-Type": "application/octet-stream"}
        if (span := self.headers.get("Range")) and fault != "no range" and self.headers["If-Range"] == headers["ETag"]:
            start = int(re.fullmatch(r"bytes=(\d+)-", span)[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, body[start:], headers, fault)
        return self.answer(200, body, headers, fault)

    def answer(self, status, body, headers, fault=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("drop", "no range"):
            body = body[: len(body) // 2]
            self.close_connection = True
        site = self.server
        with site.lock:
            site.now += 1
            site.most = max(site.most, site.now)
        try:
            for start in range(0, len(body), 2048):
                time.sleep(site.pause)
                if start + 2048 >= len(body):
                    with site.lock:
                        site.now -= 1
                self.wfile.write(body[start : start + 2048])
        except ConnectionError:  # the other end was killed
            self.close_connection = True


@contextmanager
def running(site):
    with site:
        Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield site
        site.shutdown()


@pytest.fixture
def site():
    with running(Site()) as site:
        yield site


def kinetics(site, out, videos="all", **options):
    download_kinetics(out, videos, base_url=site.url, **QUICK | options)


def tree(folder):
    """Everything below a folder: the mode of each folder and file, where a link leads, and all bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (oct(path.lstat().st_mode), content)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """All of the small Kinetics as it lands on the disk when nothing goes wrong."""
    out = tmp_path_factory.mktemp("undisturbed")
    with running(Site()) as site:
        kinetics(site, out)
    return tree(out)


# The undisturbed run


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


def test_what_is_complete_is_not_fetched_again(site, undisturbed, tmp_path, capsys):
    kinetics(site, tmp_path)
    site.log.clear()
    kinetics(site, tmp_path)
    assert site.gets() == [] and tree(tmp_path) == undisturbed
    assert "10 of 10 complete" in capsys.readouterr().out


def test_a_subset_grows_without_waste(site, tmp_path, capsys):
    kinetics(site, tmp_path, videos=1)
    assert sorted(os.listdir(tmp_path / "train")) == sorted(os.listdir(tmp_path / "val")) == ["part_0"]
    assert "train: 1 of 6 parts, about 993 videos" in capsys.readouterr().out
    site.log.clear()
    kinetics(site, tmp_path, videos=4 * 993)
    assert sorted(os.listdir(tmp_path / "train")) == ["part_0", "part_1", "part_3"]
    assert sorted(site.gets()) == ["/train/part_1.tar.gz", "/train/part_3.tar.gz"]
    with pytest.raises(InputError, match="0 videos were asked for"):
        kinetics(site, tmp_path, videos=0)
    with pytest.raises(InputError, match="no split was named"):
        kinetics(site, tmp_path, splits=())


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


def test_several_at_once_and_a_display_for_all(site, tmp_path, capsys):
    site.pause = 0.01
    kinetics(site, tmp_path, jobs=3)
    assert site.most == 3
    out = capsys.readouterr().out
    assert re.search(r"10 of 10 complete: 100%.*\d\d:\d\d<00:00, .*B/s", out), out
    with pytest.raises(InputError, match="jobs is 0"):
        kinetics(site, tmp_path, jobs=0)


# Servers that misbehave


@pytest.mark.parametrize(
    "faults",
    [
        *(["drop"], ["drop"] * 5, ["no range"] * 3, ["drop", "no range"], ["cut off"], ["wrong"]),
        *(["page"], ["page as a file"], [429], [503, 503, "drop"], [500]),
        ["drop", 503, "drop", "wrong", "no range", "drop"],
    ],
    ids=str,
)
def test_a_bad_server_makes_no_difference(site, undisturbed, tmp_path, faults):
    checked = (".gz",) if "wrong" in faults else (".gz", ".csv")  # nothing tells a table from any bytes of its size
    for path in site.files:
        if path.endswith(checked):
            site.faults[path] = list(faults)
    kinetics(site, tmp_path / "out")
    assert tree(tmp_path / "out") == undisturbed
    assert not any(site.faults.values())


def test_servers_without_sizes(site, undisturbed, tmp_path):
    site.faults["no HEAD"] = []
    kinetics(site, tmp_path / "out")
    assert tree(tmp_path / "out") == undisturbed


def test_bytes_that_arrived_are_not_fetched_again(site, tmp_path, capsys):
    site.faults["/train/part_0.tar.gz"] = ["drop"] * 20
    with pytest.raises(InputError, match="part_0"):
        kinetics(site, tmp_path, videos=1, retries=0)
    before = (tmp_path / "train" / ".part_0.unfinished" / "part_0.tar.gz.part").read_bytes()
    assert site.files["/train/part_0.tar.gz"].startswith(before) and len(before) > 10_000
    site.faults.clear()
    capsys.readouterr()
    sent = []
    answer = Handler.answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "answer", lambda self, status, *rest: sent.append(status) or answer(self, status, *rest))
        kinetics(site, tmp_path, videos=1)
    assert sent.count(206) == 1 and (tmp_path / "train" / "part_0" / MARKER).exists()
    assert re.search(r"1 of 4 complete: +[1-9]\d*%[^\r]*00:00<\?", capsys.readouterr().out)  # what is here is no speed


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong", "is not a good archive"),
        ("page", "is answered with a web page"),
        ("page as a file", "instead of"),
        ("cut off", "it is another file"),
        (503, "the server answered 503 Service Unavailable"),
        (404, "the server answered 404 Not Found"),
    ],
)
def test_what_cannot_be_had_is_named_and_the_rest_is_complete(site, undisturbed, tmp_path, fault, words, capsys):
    site.faults["/train/part_3.tar.gz"] = [fault] * 100
    with pytest.raises(InputError) as caught:
        kinetics(site, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("1 of 10 failed, the same command tries them again: ") and "\n" not in message
    assert "train/" in message and "part_3" in message and words in message
    without = {name: value for name, value in undisturbed.items() if "part_3" not in name}
    assert tree(tmp_path / "out") == without
    site.faults.clear()
    kinetics(site, tmp_path / "out")
    assert tree(tmp_path / "out") == undisturbed


def test_a_dead_server_is_given_up(tmp_path, monkeypatch, capsys):
    with Site() as closed:
        pass
    asked = []
    head = requests.Session.head
    monkeypatch.setattr(requests.Session, "head", lambda *words, **options: asked.append(1) or head(*words, **options))
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
        with pytest.raises(
            InputError, match=r"is too small: the downloads need 0.00 GB, and the disk has 0.00 GB free"
        ):
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


def test_a_place_that_cannot_be_written_to(site, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"out/train is no folder that can be written to \(File exists\)$"):
        kinetics(site, tmp_path / "out")
    assert not any(path.endswith(".gz") for path in site.gets())


@pytest.mark.parametrize("mine", ["folder", "file", "link", "other marker"])
def test_a_users_folder_in_the_way_stays_as_it_is(site, tmp_path, mine):
    place = tmp_path / "out" / "train" / "part_3"
    place.parent.mkdir(parents=True)
    if mine == "folder":
        place.mkdir()
        (place / "holiday.mp4").write_bytes(b"mine")
    elif mine == "file":
        place.write_bytes(b"mine")
    elif mine == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
        (place / MARKER).write_text('{"source": "http://elsewhere/part_3.tar.gz"}')
    with pytest.raises(InputError, match=r"part_3 (is there already, without|was made of http://elsewhere)"):
        kinetics(site, tmp_path / "out")
    left = tree(tmp_path / "out" / "train")
    assert {name.split("/")[0] for name in left} == {"part_3"} and os.path.lexists(place)
    assert mine != "folder" or left["part_3/holiday.mp4"][1] == b"mine"


def test_a_folder_that_appears_meanwhile_stays_as_it_is(site, tmp_path, monkeypatch):
    place = tmp_path / "out" / "val" / "part_0"

    def appear(*_):
        if not place.exists():
            place.mkdir(parents=True)
            (place / "mine").touch()
        return {}

    monkeypatch.setattr(download, "_sizes", appear)
    with pytest.raises(InputError, match="1 of 10 failed.*val/part_0 is there already, without the marker"):
        kinetics(site, tmp_path / "out")
    assert os.listdir(place) == ["mine"] and sorted(os.listdir(place.parent)) == ["part_0", "part_1"]


def test_kept_archives(site, undisturbed, tmp_path):
    kinetics(site, tmp_path / "out", keep_archives=True)
    archives = {f"{path[1:]}": (oct(0o100644), data) for path, data in site.files.items() if path.endswith(".gz")}
    assert tree(tmp_path / "out") == undisturbed | archives

    shutil.rmtree(tmp_path / "out" / "train" / "part_2")
    site.log.clear()
    kinetics(site, tmp_path / "out")
    assert site.gets() == [] and tree(tmp_path / "out") == undisturbed | archives

    shutil.rmtree(tmp_path / "out" / "train" / "part_2")
    bad = noise("bad", len(archives["train/part_2.tar.gz"][1]))
    (tmp_path / "out" / "train" / "part_2.tar.gz").write_bytes(bad)
    with pytest.raises(InputError, match="part_2.tar.gz is there already, but is not good"):
        kinetics(site, tmp_path / "out")
    assert (tmp_path / "out" / "train" / "part_2.tar.gz").read_bytes() == bad


def test_a_users_archive_is_not_replaced_by_ours(site, tmp_path):
    kinetics(site, tmp_path, videos=1)
    left = tmp_path / "train" / ".part_0.unfinished"  # as after a kill between the last steps
    left.mkdir()
    (left / "part_0.tar.gz").write_bytes(b"ours")
    (tmp_path / "train" / "part_0.tar.gz").write_bytes(b"mine")
    kinetics(site, tmp_path, videos=1, keep_archives=True)
    assert (tmp_path / "train" / "part_0.tar.gz").read_bytes() == b"mine" and not left.exists()


# Shards


def test_shards_are_disjoint_and_complete(site, undisturbed, tmp_path):
    together = {}
    for i in (1, 2, 3):
        kinetics(site, tmp_path / str(i), shard=f"{i}/3")
        own = {name: value for name, value in tree(tmp_path / str(i)).items() if value[1] is not None}
        own = {name: value for name, value in own.items() if "path.txt" not in name}
        assert own and not own.keys() & together.keys()
        together |= own
    assert together == {n: v for n, v in undisturbed.items() if v[1] is not None and "path.txt" not in n}
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

KILLABLE = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _start_importing_early():
    KILLABLE.set_forkserver_preload(["dataset_loader.preparing.download", "requests", "tqdm"])
    forkserver.ensure_running()


def start(code, **values):
    """A new process that executes `code`, and ends with 1 if that raises."""
    quiet = (
        "import os, sys; sys.stdout = sys.stderr = open(os.devnull, 'w')\n"
        "from dataset_loader.preparing.download import *\n"
    )
    process = KILLABLE.Process(target=exec, args=(quiet + code, values))
    process.start()
    return process


def finish(process):
    process.join()
    code = process.exitcode
    process.close()
    return code


def kill_at_random_moments(site, tmp_path, undisturbed, kills, chance):
    """Three kills in each folder, and then a run to the end; what had been reached when they came."""
    reached = Counter()
    site.pause = 0.003
    code = f"download_kinetics(out, 'all', base_url={site.url!r}, jobs=2, **{QUICK})"
    assert finish(start("")) == 0  # the first one takes long
    began = time.monotonic()
    assert finish(start(code, out=str(tmp_path / "timed"))) == 0 and tree(tmp_path / "timed") == undisturbed
    duration = time.monotonic() - began
    while sum(reached.values()) < kills:
        out = tmp_path / f"killed{sum(reached.values())}"
        for _ in range(min(3, kills - sum(reached.values()))):
            process = start(code, out=str(out))
            process.join(chance.uniform(0, duration))
            process.kill()
            if finish(process) != 0:
                left = tree(out) if out.exists() else {}
                reached["extracting" if any("/files" in n for n in left) else "fetching" if left else "nothing"] += 1
        kinetics(site, out)
        assert tree(out) == undisturbed
        shutil.rmtree(out)
    return reached


def test_killed_three_times(site, tmp_path, undisturbed):
    kill_at_random_moments(site, tmp_path, undisturbed, 3, random.Random())


@pytest.mark.slow
def test_killed_thirty_times(site, tmp_path, undisturbed):
    print(kill_at_random_moments(site, tmp_path, undisturbed, 30, random.Random()))


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


@pytest.mark.parametrize("keep", [True, pytest.param(False, marks=pytest.mark.slow)])
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


def test_the_order_in_which_things_reach_the_disk(site, tmp_path, monkeypatch):
    steps = []

    def note(module, name, about):
        function = getattr(module, name)

        def noting(*args, **options):
            steps.append((name, str(about(*args)).removeprefix(f"{tmp_path}/").replace(str(os.getpid()), "pid")))
            return function(*args, **options)

        monkeypatch.setattr(module, name, noting)

    note(os, "fsync", lambda descriptor: os.readlink(f"/dev/fd/{descriptor}"))
    note(os, "rename", lambda _, target: target)
    note(os, "replace", lambda _, target: target)
    note(shutil, "rmtree", lambda folder: folder)
    site.files["/a.tar"] = tar([("x/1.mp4", b"one"), ("2.mp4", b"two")], "")
    (tmp_path / "list.txt").write_text(f"{site.url}/a.tar")
    download_list(tmp_path / "list.txt", tmp_path / "out", jobs=1)
    work = "out/.a.unfinished"
    assert steps[0] == ("fsync", f"{work}/a.tar.part")
    assert set(steps[1:3]) == {("fsync", f"{work}/files/2.mp4"), ("fsync", f"{work}/files/x/1.mp4")}
    assert steps[3:] == [
        ("fsync", f"{work}/files/x"),
        ("fsync", f"{work}/files"),
        ("replace", f"{work}/a.tar"),
        ("fsync", f"{work}/files/.{MARKER}.pid.tmp"),
        ("replace", f"{work}/files/{MARKER}"),
        ("fsync", f"{work}/files"),
        ("rename", "out/a"),
        ("fsync", "out"),
        ("rmtree", work),
    ]


def test_two_processes_at_once(site, tmp_path, undisturbed):
    site.pause = 0.002
    code = f"download_kinetics(out, 'all', base_url={site.url!r}, **{QUICK})"
    both = [start(code, out=str(tmp_path / "out")) for _ in range(2)]
    assert [finish(process) for process in both] == [0, 0]
    assert tree(tmp_path / "out") == undisturbed
    assert len(site.gets()) == len(set(site.gets()))


def test_only_one_works_in_a_folder(tmp_path):
    folder, waiting, inside, leave = tmp_path / "folder", Event(), Event(), Event()

    def other():
        with locked(folder / "lock", waiting.set):
            inside.set()
            leave.wait(10)

    first, third = ExitStack(), ExitStack()
    first.enter_context(locked(folder / "lock", print))
    thread = Thread(target=other)
    thread.start()
    assert waiting.wait(10)
    shutil.rmtree(folder)  # the first is through, and a third comes before the one that waits
    third.enter_context(locked(folder / "lock", print))
    first.close()
    assert not inside.wait(0.2)
    shutil.rmtree(folder)
    third.close()
    assert inside.wait(10) and (folder / "lock").exists()
    leave.set()
    thread.join()


def test_no_network_at_import():
    for module in (archives, download, data_download):
        assert not re.search(
            r"^(import|from) (requests|urllib3|urllib.request|http|socket)", Path(module.__file__).read_text(), re.M
        )


# Lists and DAVIS


def test_a_list_of_urls(site, tmp_path):
    videos = {"/a.mp4": noise("a", 9000), "/b%20c.webm": noise("b", 20), "/other/a.mp4": noise("other", 30)}
    site.files |= videos | {"/more.zip": zipped([("x/1.mp4", b"one"), ("x/2.mp4", b"two")])}
    site.files["/more.tgz"] = tar([("third/3.mp4", b"three"), ("4.mp4", b"four")])
    site.faults = {"/a.mp4": ["drop", 503, "no range"], "/more.zip": ["drop", "wrong"]}
    lines = ["# mine", "", f"{site.url}/a.mp4?secret=1", f"{site.url}/a.mp4?secret=1", f"  {site.url}/b%20c.webm#t=5  "]
    lines += [
        f"{site.url}/other/a.mp4 second a.mp4",
        f"{site.url}/more.zip?secret=1",
        f"{site.url}/more.tgz  third.tgz",
    ]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(lines))
    out = tmp_path / "out"
    download_list(tmp_path / "list.txt", out, **QUICK)
    contents = {name: value[1] for name, value in tree(out).items() if value[1] is not None}
    markers = {name: json.loads(contents.pop(name))["source"] for name in (f"more/{MARKER}", f"third/{MARKER}")}
    assert markers == {f"more/{MARKER}": f"{site.url}/more.zip", f"third/{MARKER}": f"{site.url}/more.tgz"}
    assert contents == {
        **{"a.mp4": videos["/a.mp4"], "b c.webm": videos["/b%20c.webm"], "second a.mp4": videos["/other/a.mp4"]},
        **{"more/x/1.mp4": b"one", "more/x/2.mp4": b"two", "third/third/3.mp4": b"three", "third/4.mp4": b"four"},
    }
    before = tree(out)
    site.log.clear()
    download_list(tmp_path / "list.txt", out, **QUICK)
    assert tree(out) == before and site.gets() == []

    (out / "a.mp4").write_bytes(b"the user's own")
    before = tree(out)
    with pytest.raises(InputError, match=r"a.mp4 is there already, but is not good: it has 14 bytes instead of 9,000"):
        download_list(tmp_path / "list.txt", out, **QUICK)
    assert tree(out) == before
    (tmp_path / "list.txt").write_text(f"{site.url}/elsewhere/more.zip")
    with pytest.raises(InputError, match=r"more was made of .*/more.zip, not of .*/elsewhere/more.zip; choose another"):
        download_list(tmp_path / "list.txt", out, **QUICK)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "list.txt names no URL"),
        ("# nothing", "names no URL"),
        ("http://x/a.mp4\nhttp://y/a.mp4", r"lines 1 and 2 would both become .*a.mp4; add another name"),
        ("http://x/a.tar\n\nhttp://x/a.zip", r"lines 1 and 3 would both become .*a; add another name"),
        ("http://x/a.tar\nhttp://x/a", r"lines 1 and 2 would both become .*a; add another name"),
        ("ftp://x/a.mp4", r"line 1: 'ftp://x/a.mp4' is no http or https URL"),
        ("http://x/b.mp4\n/elsewhere/a.mp4", r"line 2: '/elsewhere/a.mp4' is no http"),
        ("http:///a.mp4", "line 1: .* is no http"),
        ("http://x/", "line 1: '' cannot be the name of a file; add a good one"),
        ("http://x/..", "line 1: '..' cannot be"),
        ("http://x/%2e%2e", "line 1: '..' cannot be"),
        ("http://x/.hidden.mp4", "line 1: '.hidden.mp4' cannot be"),
        ("http://x/a.mp4 ../a.mp4", "line 1: '../a.mp4' cannot be"),
        ("http://x/a.mp4 /tmp/a.mp4", "line 1: '/tmp/a.mp4' cannot be"),
        ("http://x/..%5Ca.mp4", "line 1: .* cannot be"),
        ("http://x/a%0Ab.mp4", r"line 1: 'a\\nb.mp4' cannot be"),
        ("http://x/a%00.mp4", r"line 1: 'a\\x00.mp4' cannot be"),
    ],
)
def test_bad_lists(tmp_path, lines, words):
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(InputError, match=words):
        download_list(tmp_path / "list.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lists_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="missing.txt cannot be read"):
        download_list(tmp_path / "missing.txt", tmp_path / "out")


def test_davis(site, tmp_path):
    files = [(f"DAVIS/JPEGImages/480p/bear/{k:05}.jpg", noise(k, 2000)) for k in range(5)]
    files += [("DAVIS/ImageSets/2017/val.txt", b"bear\n")]
    site.files["/DAVIS-2017-trainval-480p.zip"] = zipped([("DAVIS/", b""), *files])
    site.faults["/DAVIS-2017-trainval-480p.zip"] = ["drop", 503, "wrong", "no range"]
    download_archive("davis", tmp_path, site.url + "/", **QUICK)
    contents = {name: value[1] for name, value in tree(tmp_path).items() if value[1] is not None}
    assert json.loads(contents.pop(f"DAVIS/{MARKER}"))["files"] == 6
    assert contents == dict(files)


def test_a_list_of_parts_that_is_none(site, tmp_path):
    for bad in (b"", PAGE, b"../../etc/passwd.tar.gz/..", b"http://x/..%2f..%2fa.tar.gz", b"http://x/.tar.gz"):
        site.files["/train/k400_train_path.txt"] = bad
        with pytest.raises(InputError, match="k400_train_path.txt"):
            kinetics(site, tmp_path / "out")
        assert not any((tmp_path / "out" / "annotations").iterdir())


# The command


def command(*words):
    tyro.cli(data_download.main, args=[str(word) for word in words])


def test_the_command(site, tmp_path, undisturbed):
    command("kinetics", "--videos", "all", "--out", tmp_path / "all", "--base-url", site.url, "--jobs", "2")
    assert tree(tmp_path / "all") == undisturbed
    for i in (1, 2):
        words = ("--videos", "2000", "--splits", "val", "--shard", f"{i}/2", "--keep-archives")
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
        ("davis --splits val", "--splits does not go with davis"),
        ("kinetics --videos 3 --list a.txt", "--list does not go with kinetics"),
        ("--list a.txt --base-url http://x", "--base-url does not go with list"),
        ("--list a.txt --shard 3/2", "a.txt cannot be read"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, words, said):
    with pytest.raises(InputError, match=said):
        command(*words.split(), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Archives


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_archive(tmp_path, suffix):
    files = [("a.mp4", noise("a", 70_000)), ("./b/c d.mp4", b"c"), ("b/ü.mp4", b""), ("b/..c", b"d"), ("-e.mp4", b"e")]
    compression = {"z2": "bz2", "xz": "xz", "gz": "gz"}.get(suffix[-2:], "")
    data = zipped(files) if suffix == ".zip" else tar(files, compression)
    (tmp_path / "archive").write_bytes(data)
    extract(tmp_path / "archive", tmp_path / "out", f"a{suffix}")
    found = {name: value[1] for name, value in tree(tmp_path / "out").items() if value[1] is not None}
    assert found == {name.removeprefix("./"): content for name, content in files}


def member(name, kind=tarfile.REGTYPE, link="", mode=0o644, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, size
    return info


OUTSIDE = "OUTSIDE"  # replaced by the absolute path of a folder outside
HOSTILE = {
    "..": ([("../stolen", b"x")], "may lead out"),
    "../ in the middle": ([("a/b/../../../stolen", b"x")], "may lead out"),
    "absolute": ([(f"{OUTSIDE}/stolen", b"x")], "may lead out"),
    "absolute folder": ([member(f"{OUTSIDE}/stolen", tarfile.DIRTYPE)], "may lead out"),
    "backslash": ([("..\\stolen", b"x")], "may lead out"),
    "symlink, then through it": ([member("a", tarfile.SYMTYPE, OUTSIDE), ("a/stolen", b"x")], "a link"),
    "symlink over a file": ([member("a", tarfile.SYMTYPE, f"{OUTSIDE}/mine"), ("a", b"x")], "a link"),
    "symlink upwards": ([member("a", tarfile.SYMTYPE, ".."), ("a/stolen", b"x")], "a link"),
    "symlink inside": ([("a", b"x"), member("b", tarfile.SYMTYPE, "a")], "a link"),
    "hard link": ([member("a", tarfile.LNKTYPE, f"{OUTSIDE}/mine"), ("a", b"x")], "a link"),
    "hard link upwards": ([member("a", tarfile.LNKTYPE, "../outside/mine"), ("a", b"x")], "a link"),
    "fifo": ([member("a.mp4", tarfile.FIFOTYPE)], "a pipe"),
    "device": ([member("a.mp4", tarfile.CHRTYPE)], "a device"),
    "block device": ([member("a.mp4", tarfile.BLKTYPE)], "a device"),
    "unknown kind": ([member("a.mp4", b"?", size=3)], None),
    "file and folder": ([("a", b"x"), ("a/b", b"y")], "is not a good archive"),
    "long name": ([("n" * 300, b"x")], "is not a good archive"),
    "nothing": ([member("a", tarfile.DIRTYPE)], "holds no file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_writes_nothing_anywhere(site, tmp_path, case):
    members, words = HOSTILE[case]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"mine")
    before = tree(tmp_path)
    replaced = []
    for item in members:
        if isinstance(item, tarfile.TarInfo):
            item = item.replace(name=item.name.replace(OUTSIDE, str(outside)), deep=True)
            item.linkname = item.linkname.replace(OUTSIDE, str(outside))
        else:
            item = (item[0].replace(OUTSIDE, str(outside)), item[1])
        replaced.append(item)
    site.files["/good.mp4"] = b"good"
    site.files["/train/part_0.tar.gz"] = tar([("first.mp4", b"1"), *replaced])
    if case == "nothing":
        site.files["/train/part_0.tar.gz"] = tar(replaced)
    (tmp_path / "list.txt").write_text(f"{site.url}/train/part_0.tar.gz\n{site.url}/good.mp4")
    before |= {"out": before["outside"], "out/good.mp4": (oct(0o100644), b"good")}
    if words is None:  # Python reads unknown kinds as files, as POSIX asks for
        words = "a link"
    with pytest.raises(InputError) as caught:
        download_list(tmp_path / "list.txt", tmp_path / "out", **QUICK)
    assert "1 of 2 failed" in str(caught.value) and "part_0" in str(caught.value) and words in str(caught.value)
    (tmp_path / "list.txt").unlink()
    assert tree(tmp_path) == before


def zip_member(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../stolen", b"x", "may lead out"),
        ("/tmp/stolen", b"x", "may lead out"),
        ("a/../../stolen", b"x", "may lead out"),
        ("..\\stolen", b"x", "may lead out"),
        (zip_member("a", 0o120000), b"..", "a link"),
        (zip_member("a", 0o010000), b"", "a pipe"),
        (zip_member("a", 0o020000), b"", "a device"),
    ],
    ids=str,
)
def test_hostile_zips(tmp_path, name, content, words):
    (tmp_path / "a").write_bytes(zipped([("first", b"1"), (name, content)]))
    before = tree(tmp_path)
    with pytest.raises(InputError, match=words):
        extract(tmp_path / "a", tmp_path / "out", "a.zip")
    assert tree(tmp_path) == before


def test_no_special_modes(tmp_path):
    (tmp_path / "a").write_bytes(tar([member("setuid", mode=0o7777), member("unreadable", mode=0)]))
    extract(tmp_path / "a", tmp_path / "out", "a.tar.gz")
    assert (tmp_path / "out" / "setuid").stat().st_mode & 0o7022 == 0
    assert (tmp_path / "out" / "unreadable").stat().st_mode & 0o600 == 0o600


def damaged(tmp_path, data, name):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match=f"^{name} is not a good archive") as caught:
        extract(tmp_path / "a", tmp_path / "out", name)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz", "tar", "zip"])
def test_damage_never_goes_unnoticed(tmp_path, suffix):
    files = [(f"{k}.mp4", noise(k, 300)) for k in range(3)]
    data = zipped(files) if suffix == "zip" else tar(files, {"tar": ""}.get(suffix, suffix[4:]))
    chance = random.Random(0)
    whole = len(data.rstrip(b"\0")) if suffix == "tar" else len(data)  # a tar ends in zeros
    for size in [*chance.sample(range(whole), 40), whole - 1]:
        damaged(tmp_path, data[:size], f"a.{suffix}")
    if suffix in ("tar.gz", "tar.bz2", "tar.xz"):  # a plain tar has checksums for its headers only
        for place in [*chance.sample(range(10, len(data)), 40), *range(len(data) - 4, len(data))]:
            damaged(tmp_path, data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :], f"a.{suffix}")


def test_a_damaged_header_does_not_end_an_archive(tmp_path):
    plain = tar([(f"{k}.mp4", noise(k, 300)) for k in range(3)], "")
    for place in (1024, 1024 + 124, 2048 + 148):  # header, data, header, data, header, data
        changed = plain[:place] + b"?" + plain[place + 1 :]
        damaged(tmp_path, gzip.compress(changed), "a.tar.gz")
    damaged(tmp_path, gzip.compress(plain[:1024]), "a.tar.gz")  # no end mark
    damaged(tmp_path, gzip.compress(plain[:1024] + bytes(1024) + plain[1024:]), "a.tar.gz")  # an end in the middle
    damaged(tmp_path, zipped([("a", noise("a", 99))]).replace(noise("a", 99)[:9], b"ninebytes"), "a.zip")


def test_an_archive_that_unpacks_into_more_than_the_disk_holds(tmp_path):
    bomb = member("a.mp4", size=1 << 50)
    (tmp_path / "a").write_bytes(gzip.compress(bomb.tobuf()))
    with pytest.raises(OSError, match="needs 1,125,899,906,842,624 bytes, and the disk has"):
        extract(tmp_path / "a", tmp_path / "out", "a.tar.gz")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_extracted_into(tmp_path):
    (tmp_path / "a").write_bytes(tar([("a", b"x")]))
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        extract(tmp_path / "a", tmp_path / "out", "a.tar.gz")
    assert (tmp_path / "out").exists()
