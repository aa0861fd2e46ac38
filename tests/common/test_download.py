"""Downloads from a server on the loopback that misbehaves in every way: the same bytes, or an error and no file."""

import email.utils
import json
import random
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from threading import Event

import pytest
import torch

from common.download import download
from common.errors import InputError
from mae.weights import download_pretrained_model
from tests.server import PAGE, Answer, Site, running

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(len(CONTENT))
PLACE = "/folder/weights.bin"
DATE = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
KEPT = (".part", ".part.json")


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running(Site()) as site:
        site.files[PLACE] = CONTENT
        yield site


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "weights.bin"


def fetch(site, target, **options):
    return download(site.url + PLACE, target, **dict(retries=3, backoff=0.001, progress=False) | options)


def assert_alone(target, content=CONTENT):
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def refused(site, target, left=(), **options):
    """The sentence of a download that fails; `left`: what it leaves, by the ends of the names."""
    with pytest.raises(InputError) as caught:
        fetch(site, target, **options)
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(f"{target.name}{end}" for end in left)
    return str(caught.value)


def ranges(site):
    return [headers.get("Range") for headers in site.gets(PLACE)]


def hang_up():
    raise ConnectionAbortedError


STOP = Answer(stop=50_000)
AT_50_000 = [None, "bytes=50000-"]


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([], [None]),
        ([Answer(announced=-1)], [None]),
        ([Answer(headers={"Content-Encoding": "gzip"})], [None]),  # as data servers say of .tar.gz
        ([STOP, Answer(stop=1), Answer(stop=30_000)], [*AT_50_000, "bytes=50001-", "bytes=80001-"]),
        ([Answer(before=hang_up)], [None, None]),
        ([Answer(status=500), Answer(status=429), Answer(status=408)], [None] * 4),
        ([STOP, Answer(ranges=False)], AT_50_000),
        ([STOP, Answer(most=100_000), Answer(most=100_000)], [*AT_50_000, "bytes=150000-", "bytes=250000-"]),
        ([STOP, Answer(most=100_000, span="bytes 50000-149999/*")], [*AT_50_000, "bytes=150000-"]),
        # continuations that do not fit
        ([STOP, Answer(span="bytes 7-299999/300000")], [*AT_50_000, None]),
        ([STOP, Answer(span="bytes 50000-299999/300001")], [*AT_50_000, None]),
        ([STOP, Answer(span="nonsense")], [*AT_50_000, None]),
        ([STOP, Answer(content=CONTENT + b"more", if_range=False, span="bytes 50000-299999/300000")],
         [*AT_50_000, None]),
        ([Answer(CONTENT[100:], 206, {"Content-Range": "bytes 100-299999/300000"})], [None, None]),
        ([STOP, Answer(b"", 416)], [*AT_50_000, None]),
        # only a sure mark of the version allows to resume
        ([Answer(stop=50_000, headers={})], [None, None]),
        ([Answer(stop=50_000, headers={"ETag": 'W/"weak"'})], [None, None]),
        ([Answer(stop=50_000, headers={"ETag": 'W/"weak"'} | DATE), Answer(headers=DATE)], AT_50_000),
        # the file was another one before
        ([Answer(OTHER, stop=50_000)], AT_50_000),
        ([Answer(OTHER, stop=50_000), Answer(if_range=False)], [*AT_50_000, None]),
    ],
)  # fmt: skip
def test_the_same_bytes_whatever_the_server_does(site, target, answers, asked):
    site.will(PLACE, answers)
    fetch(site, target, expected_size=len(CONTENT))
    assert_alone(target)
    assert ranges(site) == asked
    assert site.gets(PLACE)[0]["Accept-Encoding"] == "identity"


def rotten(path):
    raise InputError("it is rotten")


@pytest.mark.parametrize(
    ("answer", "options", "words", "left"),
    [
        *[(Answer(PAGE, status), {}, f"the server answered {status}", ()) for status in (401, 403, 404, 410)],
        (Answer(PAGE, headers={"Content-Type": "text/html; charset=utf-8"}), {}, "web page", ()),
        (Answer(b"<p>Moved</p>", headers={"Content-Type": "text/html"}), {}, "web page", ()),
        (Answer(PAGE, headers={"Content-Type": "application/octet-stream"}), {}, "it is a web page", ()),
        (Answer(b""), {}, "it has 0 bytes", ()),
        (Answer(announced=len(CONTENT) - 1), {"expected_size": len(CONTENT)}, "has 299,999 bytes instead of", ()),
        (Answer(announced=-1), {"expected_size": 8}, "300,000 bytes instead of 8", ()),
        (Answer(), {"expected_size": 8}, "has 300,000 bytes instead of 8: it is another file", ()),
        (Answer(), {"check": rotten}, "was refused and removed: it is rotten", ()),
        (Answer(announced=len(CONTENT) + 1, ranges=False), {}, "could not be fetched", KEPT),
        (Answer(status=503), {}, "the server answered 503", ()),
        # no endless loop where no progress is made
        (Answer(stop=50_000, ranges=False), {}, "could not be fetched from 127.0.0.1", KEPT),
    ],
)
def test_what_is_no_good_file_is_refused(site, target, answer, options, words, left):
    site.will(PLACE, repeat(answer))
    message = refused(site, target, left, **options)
    assert words in message
    may_pass = answer.status >= 500 or left
    assert len(site.log) == (4 if may_pass else 1)
    if may_pass or answer.status >= 400:
        assert f"fetch {site.url}{PLACE} by hand and put it at {target}" in message


def test_what_arrived_is_kept_for_the_next_call(site, target, capsys):
    site.will(PLACE, [STOP])
    assert "50,000 bytes are kept for the next time" in refused(site, target, KEPT, retries=0)
    fetch(site, target, progress=True)
    assert_alone(target)
    bar = capsys.readouterr().err
    assert "weights.bin: 100%" in bar and "293k/293k" in bar and "B/s" in bar
    assert ranges(site) == AT_50_000


def part_of(target, url, content, **notes):
    """What a killed download has left."""
    target.parent.mkdir(exist_ok=True)
    target.with_name("weights.bin.part").write_bytes(content)
    notes = {"url": url, "validator": None, "total": len(CONTENT)} | notes
    target.with_name("weights.bin.part.json").write_text(json.dumps(notes))


def test_a_whole_part_needs_no_server(site, target):
    """Killed between the last byte and the renaming, or right after it."""
    part_of(target, site.url + PLACE, CONTENT)
    fetch(site, target)
    assert_alone(target)
    target.with_name("weights.bin.part.json").write_text("{}")
    fetch(site, target)
    assert_alone(target)
    assert not site.log


@pytest.mark.parametrize("notes", ["{", "[]", '{"url": "http://elsewhere/weights.bin", "validator": "x", "total": 5}'])
def test_a_part_of_another_url_or_with_unreadable_notes_is_begun_again(site, target, notes):
    part_of(target, "", b"other")
    target.with_name("weights.bin.part.json").write_text(notes)
    fetch(site, target)
    assert_alone(target)


def test_a_stalled_connection_is_given_up_and_resumed(site, target):
    done = Event()
    site.will(PLACE, [Answer(stop=100_000, announced=len(CONTENT), instead=done.wait)])
    begin = time.monotonic()
    fetch(site, target, timeout=(5, 0.2))
    assert time.monotonic() - begin < 4
    done.set()
    assert_alone(target)
    assert ranges(site) == [None, f"bytes={100_000 // 16384 * 16384}-"]  # but for the chunk that was being read


def test_waits_grow_and_obey_the_server_within_bounds(site, target, monkeypatch):
    waits = []
    monkeypatch.setattr("common.download.time.sleep", waits.append)
    soon, past = (email.utils.formatdate(time.time() + seconds, usegmt=True) for seconds in (20, -20))
    hints = [None, None, "7", "3600", soon, past, "whenever"]
    site.will(PLACE, [Answer(PAGE, 503, {"Retry-After": hint} if hint else {}) for hint in hints])
    fetch(site, target, retries=7, backoff=0.5)
    assert_alone(target)
    assert waits[:4] == [0.5, 1.0, 7.0, 60.0] and 15 < waits[4] <= 20 and waits[5:] == [0.0, 32.0]


def test_no_connection_says_what_to_do_by_hand(target, monkeypatch):
    waits = []
    monkeypatch.setattr("common.download.time.sleep", waits.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.bin"
    with pytest.raises(InputError) as caught:
        download(url, target, retries=9, progress=False)
    assert "Connection refused" in str(caught.value) and f"fetch {url} by hand and put it at" in str(caught.value)
    assert len(waits) == 2  # an offline machine is not kept waiting
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("url", ["weights.bin", "ftp://127.0.0.1/weights.bin", "http://"])
def test_what_is_no_url(target, url):
    with pytest.raises(InputError, match="cannot be fetched"):
        download(url, target, progress=False)


def test_a_web_page_may_be_what_is_wanted(site, tmp_path):
    site.will(PLACE, [Answer(PAGE, headers={"Content-Type": "text/html"})])
    assert fetch(site, tmp_path / "page.html").read_bytes() == PAGE


def test_memory_stays_constant(site, target):
    site.files[PLACE] = bytes(48 << 20)
    tracemalloc.start()
    try:
        fetch(site, target)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert target.stat().st_size == 48 << 20


def test_full_disk(site, target, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("common.download.shutil.disk_usage", lambda _: usage)
    assert "needs 300,000 more bytes, and the disk has 1,000 free" in refused(site, target)
    usage = usage._replace(free=250_000)
    part_of(target, site.url + PLACE, CONTENT[:50_000], validator="x")
    site.will(PLACE, [Answer(headers={"ETag": "x"})])
    fetch(site, target)  # what is here already needs no more room
    assert_alone(target)


def test_disk_that_fills_up(site, target):
    script = (
        "import resource, signal, sys\nfrom common.download import download\nfrom common.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    download(*sys.argv[1:], progress=False)\nexcept InputError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, site.url + PLACE, target],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.stdout.startswith(f"{target} cannot be written: ") and not run.stderr
    fetch(site, target)
    assert_alone(target)
    assert ranges(site) == [None, "bytes=100000-"]


# What is there already


def test_a_good_file_is_kept_without_a_request(site, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    target.with_name("weights.bin.part").write_bytes(b"begun by a browser")  # nothing is written, so it does not matter
    checked = []
    assert fetch(site, target, expected_size=4, check=checked.append) == target
    assert target.read_bytes() == b"mine" and len(list(target.parent.iterdir())) == 2
    assert checked == [target] and not site.log


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"mine", {"expected_size": 5}, "it has 4 bytes instead of 5"),
        (b"mine", {"check": rotten}, "it is rotten"),
        (PAGE, {}, "it is a web page"),
        (b"", {}, "it has 0 bytes"),
        (None, {}, "it is no file"),
    ],
)
def test_a_bad_file_is_named_and_stays(site, target, content, options, words):
    target.parent.mkdir()
    target.mkdir() if content is None else target.write_bytes(content)
    message = refused(site, target, [""], **options)
    assert f"{target} is there already" in message and words in message and "move it away" in message
    assert (content is None or target.read_bytes() == content) and not site.log


def test_files_of_others_in_the_way(site, target):
    target.parent.write_bytes(b"mine")
    with pytest.raises(InputError, match="cannot be written"):
        fetch(site, target)
    assert target.parent.read_bytes() == b"mine"
    target.parent.unlink()
    target.parent.mkdir()
    part = target.with_name("weights.bin.part")
    part.write_bytes(b"begun by a browser")
    assert f"{part} is in the way" in refused(site, target, [".part"])
    assert part.read_bytes() == b"begun by a browser" and not site.log
    part.unlink()
    site.will(PLACE, [Answer(amid=lambda: target.write_bytes(b"by hand"))])
    fetch(site, target)
    assert_alone(target, b"by hand")


# Several at once


def test_one_waits_for_the_other(site, target):
    said, waiting = [], Event()
    site.will(PLACE, [Answer(amid=lambda: waiting.wait(10))])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, site, target)
        while not target.with_name("weights.bin.part.json").exists():
            time.sleep(0.001)
        second = pool.submit(fetch, site, target, say=said.append)
        while not said:
            time.sleep(0.001)
        waiting.set()
        assert [first.result(20), second.result(20)] == [target] * 2
    assert_alone(target)
    assert said == ["weights.bin.part is being written by another process: waiting for it"]
    assert len(site.log) == 1


def test_the_next_one_takes_over_from_one_that_fails(site, target):
    begun = Event()
    site.will(PLACE, [Answer(b"", 404, before=lambda: (begun.set(), time.sleep(0.2)))])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch, site, target)
        begun.wait(10)
        fetch(site, target)
        assert isinstance(first.exception(10), InputError)
    assert_alone(target)


def test_many_at_once(site, target):
    site.will(PLACE, [STOP, STOP, Answer(status=503)])
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: fetch(site, target), range(16))) == {target}
    assert_alone(target)
    assert len(site.log) == 4


# Pretrained models


def saved(path):
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("path", "name"), [("mae%20base.pth?download=1#x", "mae base.pth"), ("..%2F..%2Fa.pth", "a.pth")]
)
def test_a_pretrained_model_lies_under_its_name_in_the_folder(site, tmp_path, path, name):
    site.files["/" + path.partition("?")[0]] = saved(tmp_path / "original")
    for _ in range(2):  # the second time nothing is asked
        found = download_pretrained_model(f"{site.url}/{path}", tmp_path / "models", progress=False)
    assert found == tmp_path / "models" / name
    assert_alone(found, (tmp_path / "original").read_bytes())
    assert len(site.log) == 1


def test_a_pretrained_model_must_be_readable(site, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty")
    contents = saved(tmp_path / "original")[:-100], PAGE, CONTENT, (tmp_path / "empty").read_bytes()
    site.will(PLACE, [Answer(content=content) for content in contents])
    for words in ("cut off", "web page", "not a checkpoint", "holds no weights"):
        with pytest.raises(InputError, match=words):
            download_pretrained_model(site.url + PLACE, tmp_path / "models", progress=False)
        assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("path", ["", "/", "/%2e%2e"])
def test_a_pretrained_model_needs_a_name(tmp_path, path):
    with pytest.raises(InputError, match="names no file"):
        download_pretrained_model(f"http://127.0.0.1:1{path}", tmp_path, progress=False)
