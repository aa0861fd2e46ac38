"""Downloads from a server on the loopback that misbehaves in every way: the same bytes, or an error and no file."""

import email.utils
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

from common.download import download
from common.errors import InputError
from mae.weights import download_pretrained_model

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(len(CONTENT))
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass
class Answer:
    """What the server does with one GET."""

    content: bytes = CONTENT
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    stop: int | None = None  # bytes of the body after which the connection is dropped
    announced: int | None = None  # a Content-Length that is a lie; -1: none, the body is chunked
    ranges: bool = True  # whether Range is honoured,
    if_range: bool = True  # and If-Range with it
    most: int | None = None  # bytes in one answer to a Range
    span: str | None = None  # a Content-Range that is a lie
    before: Callable[[], object] = lambda: None  # called before the answer,
    amid: Callable[[], object] = lambda: None  # in the middle of the body,
    instead: Callable[[], object] = lambda: None  # and where the connection is dropped


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        answer = server.answers.pop(0) if server.answers[1:] else server.answers[0]
        answer.before()
        status, body, headers = answer.status, answer.content, dict(answer.headers)
        asked, mark = self.headers.get("Range"), self.headers.get("If-Range")
        same = not answer.if_range or mark in (headers.get("ETag"), headers.get("Last-Modified"))
        if status == 200 and asked and answer.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, body = 206, body[start:][: answer.most]
            headers["Content-Range"] = answer.span or f"bytes {start}-{start + len(body) - 1}/{len(answer.content)}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.announced == -1:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Content-Length", str(len(body) if answer.announced is None else answer.announced))
        self.end_headers()
        body = memoryview(body)[: answer.stop]
        self.close_connection = answer.stop is not None or answer.announced is not None
        try:
            self.wfile.write(body[: len(body) // 2])
            answer.amid()
            self.wfile.write(body[len(body) // 2 :])
            if answer.stop is not None:
                answer.instead()
        except ConnectionError:  # the client has seen enough
            self.close_connection = True
        server.sent += len(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Gives its `answers` one after the other, the last one for ever, and notes the headers of what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.sent = [Answer()], [], 0
        self.url = f"http://127.0.0.1:{self.server_port}/folder/weights.bin"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "weights.bin"


def fetch(server, target, **options):
    return download(server.url, target, **dict(retries=3, backoff=0.001, progress=False) | options)


def assert_alone(target, content=CONTENT):
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def refused(server, target, left=(), **options):
    """The sentence of a download that fails; `left`: what it leaves, by the ends of the names."""
    with pytest.raises(InputError) as caught:
        fetch(server, target, **options)
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(f"{target.name}{end}" for end in left)
    return str(caught.value)


KEPT = (".part", ".part.json")


def ranges(server):
    return [request.get("Range") for request in server.requests]


# All goes well


def test_whole_file_with_a_bar(server, target, capsys):
    assert fetch(server, target, progress=True) == target
    assert_alone(target)
    bar = capsys.readouterr().err
    assert "weights.bin: 100%" in bar and "293k/293k" in bar and "B/s" in bar


def test_a_size_that_nobody_announces(server, target):
    server.answers = [Answer(announced=-1)]
    fetch(server, target, expected_size=len(CONTENT))
    assert_alone(target)


def test_bytes_are_kept_as_they_are_stored(server, target):
    server.answers = [Answer(headers={"Content-Encoding": "gzip"})]  # as data servers say of .tar.gz
    fetch(server, target)
    assert_alone(target)
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_memory_stays_constant(server, target):
    big = bytes(48 << 20)
    server.answers = [Answer(content=big)]
    tracemalloc.start()
    try:
        fetch(server, target)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert target.stat().st_size == len(big)


def test_the_bytes_are_on_the_disk_before_the_file_has_its_name(server, target, monkeypatch):
    fsync, replace, calls = os.fsync, os.replace, []
    monkeypatch.setattr("common.download.os.fsync", lambda *a: (calls.append("fsync"), fsync(*a)))
    monkeypatch.setattr("common.download.os.replace", lambda *a: (calls.append("replace"), replace(*a)))
    fetch(server, target)
    assert calls == ["fsync", "replace"]


# Broken connections


def test_every_drop_is_resumed_where_it_was(server, target, capsys):
    server.answers = [Answer(stop=50_000), Answer(stop=1), *[Answer(stop=30_000)] * 4, Answer()]
    fetch(server, target, retries=1, progress=True)  # one try without a new byte would be allowed, and none is needed
    assert_alone(target)
    starts = [50_000, 50_001, 80_001, 110_001, 140_001, 170_001]
    assert ranges(server) == [None, *(f"bytes={start}-" for start in starts)]
    assert {request["If-Range"] for request in server.requests[1:]} == {'"one"'}
    assert server.sent == len(CONTENT)
    assert "weights.bin: " in (out := capsys.readouterr().out) and "again in" in out


def test_a_stalled_connection_is_given_up_and_resumed(server, target):
    done = Event()
    server.answers = [Answer(stop=100_000, announced=len(CONTENT), instead=done.wait), Answer()]
    begin = time.monotonic()
    fetch(server, target, timeout=(5, 0.2))
    assert time.monotonic() - begin < 4
    done.set()
    assert_alone(target)
    assert ranges(server) == [None, f"bytes={100_000 // 16384 * 16384}-"]  # but for the chunk that was being read


def test_drop_before_any_answer(server, target):
    def hang_up():
        raise ConnectionAbortedError

    server.handle_error = lambda *_: None
    server.answers = [Answer(before=hang_up), Answer()]
    fetch(server, target)
    assert_alone(target)


def test_a_server_without_ranges_is_asked_for_all_again(server, target):
    server.answers = [Answer(stop=50_000), Answer(ranges=False)]
    fetch(server, target)
    assert_alone(target)


def test_no_endless_loop_where_no_progress_is_made(server, target):
    server.answers = [Answer(stop=50_000, ranges=False)]
    message = refused(server, target, KEPT, retries=3)
    assert "could not be fetched from 127.0.0.1" in message and "50,000 bytes are kept" in message
    assert server.url in message and str(target) in message
    assert len(server.requests) == 1 + 3


def test_what_arrived_is_kept_for_the_next_call(server, target, capsys):
    server.answers = [Answer(stop=50_000), Answer()]
    refused(server, target, KEPT, retries=0)
    fetch(server, target, progress=True)
    assert_alone(target)
    assert "weights.bin: 100%" in capsys.readouterr().err  # what was there counts
    assert ranges(server) == [None, "bytes=50000-"]


def test_a_whole_part_needs_no_server(server, target):
    """Killed between the last byte and the renaming."""
    target.parent.mkdir()
    target.with_name("weights.bin.part").write_bytes(CONTENT)
    version = {"url": server.url, "validator": None, "total": len(CONTENT)}
    target.with_name("weights.bin.part.json").write_text(json.dumps(version))
    fetch(server, target)
    assert_alone(target)
    assert not server.requests


@pytest.mark.parametrize("notes", ["{", "[]", '{"url": "http://elsewhere/weights.bin", "validator": "x", "total": 5}'])
def test_a_part_of_another_url_or_with_unreadable_notes_is_begun_again(server, target, notes):
    target.parent.mkdir()
    target.with_name("weights.bin.part").write_bytes(b"other")
    target.with_name("weights.bin.part.json").write_text(notes)
    fetch(server, target)
    assert_alone(target)


# A file that changes on the server


@pytest.mark.parametrize("if_range", [True, False])
def test_a_changed_file_is_begun_again(server, target, if_range):
    later = Answer(content=OTHER, headers={"ETag": '"two"'}, if_range=if_range)
    server.answers = [Answer(stop=50_000), later]
    fetch(server, target)
    assert_alone(target, OTHER)


def test_a_file_that_changes_each_time_is_given_up(server, target):
    tags = iter(range(1000))

    def change():
        server.answers[0].headers["ETag"] = f'"{next(tags)}"'

    server.answers = [Answer(stop=50_000, before=change)]
    assert "could not be fetched" in refused(server, target, KEPT)


@pytest.mark.parametrize(
    ("headers", "mark"),
    [
        ({}, None),
        ({"ETag": 'W/"weak"'}, None),
        ({"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ({"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
    ],
)
def test_only_a_sure_mark_of_the_version_allows_to_resume(server, target, headers, mark):
    server.answers = [Answer(stop=50_000, headers=headers), Answer(headers=headers)]
    fetch(server, target)
    assert_alone(target)
    assert server.requests[1].get("If-Range") == mark
    assert ranges(server) == [None, mark and "bytes=50000-"]


@pytest.mark.parametrize("span", ["bytes 7-299999/300000", "bytes 50000-299999/300001", "nonsense"])
def test_a_continuation_that_does_not_fit_is_not_taken(server, target, span):
    server.answers = [Answer(stop=50_000), Answer(span=span), Answer()]
    fetch(server, target)
    assert_alone(target)
    assert ranges(server) == [None, "bytes=50000-", None]


def test_a_continuation_of_unknown_size_is_taken(server, target):
    server.answers = [Answer(stop=50_000), Answer(most=100_000, span="bytes 50000-149999/*"), Answer()]
    fetch(server, target)
    assert_alone(target)
    assert ranges(server) == [None, "bytes=50000-", "bytes=150000-"]


def test_a_continuation_may_come_in_slices(server, target):
    server.answers = [Answer(stop=50_000), Answer(most=100_000)]
    fetch(server, target)
    assert_alone(target)
    assert ranges(server) == [None, "bytes=50000-", "bytes=150000-", "bytes=250000-"]


def test_a_continuation_that_is_too_long_is_not_taken(server, target):
    long = Answer(content=CONTENT + b"more", span="bytes 50000-299999/300000")
    server.answers = [Answer(stop=50_000), long, Answer()]
    fetch(server, target)
    assert_alone(target)
    assert ranges(server) == [None, "bytes=50000-", None]


def test_a_continuation_that_was_not_asked_for_is_not_taken(server, target):
    part = Answer(content=CONTENT[100:], status=206, headers={"Content-Range": "bytes 100-299999/300000"})
    server.answers = [part, Answer()]
    fetch(server, target)
    assert_alone(target)


def test_range_not_satisfiable(server, target):
    server.answers = [Answer(stop=50_000), Answer(status=416, content=b""), Answer()]
    fetch(server, target)
    assert_alone(target)
    assert ranges(server) == [None, "bytes=50000-", None]


# Answers that are no file


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_final(server, target, status):
    server.answers = [Answer(content=PAGE, status=status)]
    message = refused(server, target)
    assert (
        f"the server answered {status}" in message and f"fetch {server.url} by hand and put it at {target}" in message
    )
    assert len(server.requests) == 1


def test_waits_grow_and_obey_the_server_within_bounds(server, target, monkeypatch):
    waits = []
    monkeypatch.setattr("common.download.time.sleep", waits.append)
    soon = email.utils.formatdate(time.time() + 20, usegmt=True)
    past = email.utils.formatdate(time.time() - 20, usegmt=True)
    hints = [None, None, "7", "3600", soon, past, "whenever"]
    codes = [500, 503, 429, 503, 502, 408, 504]
    server.answers = [
        Answer(content=PAGE, status=code, headers={"Retry-After": hint} if hint else {})
        for code, hint in zip(codes, hints, strict=True)
    ]
    server.answers.append(Answer())
    fetch(server, target, retries=7, backoff=0.5)
    assert_alone(target)
    assert waits[:4] == [0.5, 1.0, 7.0, 60.0] and 15 < waits[4] <= 20 and waits[5:] == [0.0, 32.0]


def test_an_unavailable_server_is_given_up(server, target):
    server.answers = [Answer(content=b"", status=503)]
    assert "the server answered 503" in refused(server, target, retries=4)
    assert len(server.requests) == 1 + 4


@pytest.mark.parametrize(
    ("content", "kind"),
    [(PAGE, "text/html; charset=utf-8"), (PAGE, "application/octet-stream"), (b"<p>Moved</p>", "text/html")],
)
def test_a_web_page_is_no_file(server, target, content, kind):
    server.answers = [Answer(content=content, headers={"Content-Type": kind})]
    assert "web page" in refused(server, target)
    assert len(server.requests) == 1


def test_a_web_page_may_be_what_is_wanted(server, tmp_path):
    server.answers = [Answer(content=PAGE, headers={"Content-Type": "text/html"})]
    assert fetch(server, tmp_path / "page.html").read_bytes() == PAGE


def test_an_empty_answer_is_no_file(server, target):
    server.answers = [Answer(content=b"")]
    assert "it has 0 bytes" in refused(server, target)


# Sizes and checks


def test_fewer_bytes_than_announced(server, target):
    server.answers = [Answer(announced=len(CONTENT) + 1, ranges=False)]
    assert "could not be fetched" in refused(server, target, KEPT)


def test_more_bytes_than_announced(server, target):
    """No client can see them; the expected size or the check does."""
    server.answers = [Answer(announced=len(CONTENT) - 1)]
    assert "299,999 bytes instead of 300,000" in refused(server, target, expected_size=len(CONTENT))


def test_another_size_is_refused_before_the_body(server, target):
    done = Event()
    server.answers = [Answer(amid=done.wait)]
    message = refused(server, target, expected_size=8, timeout=(5, 0.5), retries=0)
    done.set()
    assert "has 300,000 bytes instead of 8: it is another file" in message


def test_another_size_of_what_was_not_announced(server, target):
    server.answers = [Answer(announced=-1)]
    assert "300,000 bytes instead of 8" in refused(server, target, expected_size=8)


def test_what_the_check_refuses_is_removed(server, target):
    def check(path):
        assert path.read_bytes() == CONTENT and not target.exists()  # asked about the whole file, before its name
        raise InputError("it is rotten")

    assert "was refused and removed: it is rotten" in refused(server, target, check=check)


def test_full_disk(server, target, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("common.download.shutil.disk_usage", lambda _: usage)
    assert "needs 300,000 more bytes, and the disk has 1,000 free" in refused(server, target)
    usage = usage._replace(free=250_000)
    server.answers = [Answer()]
    target.with_name("weights.bin.part").write_bytes(CONTENT[:50_000])
    version = {"url": server.url, "validator": '"one"', "total": len(CONTENT)}
    target.with_name("weights.bin.part.json").write_text(json.dumps(version))
    fetch(server, target)  # what is here already needs no more room
    assert_alone(target)


def test_disk_that_fills_up(server, target):
    script = (
        "import resource, signal, sys\nfrom common.download import download\nfrom common.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    download(*sys.argv[1:], progress=False)\nexcept InputError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, server.url, target],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.stdout.startswith(f"{target} cannot be written: ") and not run.stderr
    fetch(server, target)
    assert_alone(target)
    assert ranges(server) == [None, "bytes=100000-"]


# What is there already


def test_a_good_file_is_kept_without_a_request(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    target.with_name("weights.bin.part").write_bytes(b"begun by a browser")  # nothing is written, so it does not matter
    checked = []
    assert fetch(server, target, expected_size=4, check=checked.append) == target
    assert target.read_bytes() == b"mine" and len(list(target.parent.iterdir())) == 2
    assert checked == [target] and not server.requests


def rotten(path):
    raise InputError("it is rotten")


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"mine", {"expected_size": 5}, "it has 4 bytes instead of 5"),
        (b"mine", {"check": rotten}, "it is rotten"),
        (PAGE, {}, "it is a web page"),
        (b"", {}, "it has 0 bytes"),
    ],
)
def test_a_bad_file_is_named_and_stays(server, target, content, options, words):
    target.parent.mkdir()
    target.write_bytes(content)
    message = refused(server, target, [""], **options)
    assert f"{target} is there already" in message and words in message and "move it away" in message
    assert target.read_bytes() == content and not server.requests


def test_a_folder_in_the_way(server, target):
    target.mkdir(parents=True)
    assert "it is no file" in refused(server, target, [""])


def test_a_file_in_the_way_of_the_folder(server, target):
    target.parent.write_bytes(b"mine")
    with pytest.raises(InputError, match="cannot be written"):
        fetch(server, target)
    assert target.parent.read_bytes() == b"mine"


def test_notes_left_by_a_kill_right_after_the_renaming_go(server, target):
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    target.with_name("weights.bin.part.json").write_text("{}")
    fetch(server, target)
    assert_alone(target)


def test_a_part_of_another_program_is_left_alone(server, target):
    target.parent.mkdir()
    part = target.with_name("weights.bin.part")
    part.write_bytes(b"begun by a browser")
    assert f"{part} is in the way" in refused(server, target, [".part"])
    assert part.read_bytes() == b"begun by a browser" and not server.requests


def test_a_file_that_appears_meanwhile_is_not_overwritten(server, target):
    server.answers = [Answer(amid=lambda: target.write_bytes(b"by hand"))]
    fetch(server, target)
    assert_alone(target, b"by hand")


# Several at once


def test_two_at_once_fetch_once(server, target):
    said, waiting = [], Event()
    server.answers = [Answer(amid=lambda: waiting.wait(10))]

    def second():
        while not target.with_name("weights.bin.part.json").exists():
            time.sleep(0.001)
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(fetch, server, target, say=said.append)
            while not said:
                time.sleep(0.001)
            waiting.set()
            return result.result()

    with ThreadPoolExecutor(2) as pool:
        assert [result.result(20) for result in (pool.submit(fetch, server, target), pool.submit(second))] == [
            target
        ] * 2
    assert_alone(target)
    assert said == ["weights.bin.part is being written by another process: waiting for it"]
    assert len(server.requests) == 1


def test_the_next_one_takes_over_from_one_that_fails(server, target):
    begun = Event()

    def fail_late():
        begun.set()
        time.sleep(0.2)  # long enough for the other to wait for the lock

    server.answers = [Answer(status=404, content=b"", before=fail_late), Answer()]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch, server, target)
        begun.wait(10)
        fetch(server, target)
        assert isinstance(first.exception(10), InputError)
    assert_alone(target)


def test_many_at_once(server, target):
    server.answers = [Answer(stop=50_000), Answer(stop=50_000), Answer(status=503), Answer()]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: fetch(server, target), range(16))) == {target}
    assert_alone(target)
    assert len(server.requests) == 4


# No server


def test_no_connection_says_what_to_do_by_hand(target, monkeypatch):
    waits = []
    monkeypatch.setattr("common.download.time.sleep", waits.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.bin"
    with pytest.raises(InputError) as caught:
        download(url, target, retries=9, progress=False)
    message = str(caught.value)
    assert "Connection refused" in message and f"fetch {url} by hand and put it at {target}" in message
    assert len(waits) == 2  # an offline machine is not kept waiting
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("url", ["weights.bin", "ftp://127.0.0.1/weights.bin", "http://"])
def test_what_is_no_url(target, url):
    with pytest.raises(InputError, match="cannot be fetched"):
        download(url, target, progress=False)


# Pretrained models


def saved(path):
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    return path.read_bytes()


def test_pretrained_model_lies_under_its_name_in_the_folder(server, tmp_path):
    server.answers = [Answer(content=saved(tmp_path / "original"))]
    url = server.url.replace("weights.bin", "mae%20base.pth?download=1#x")
    for _ in range(2):  # the second time nothing is asked
        path = download_pretrained_model(url, tmp_path / "models", progress=False)
    assert path == tmp_path / "models" / "mae base.pth"
    assert_alone(path, (tmp_path / "original").read_bytes())
    assert len(server.requests) == 1


def test_pretrained_model_must_be_readable(server, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty")
    contents = saved(tmp_path / "original")[:-100], PAGE, CONTENT, (tmp_path / "empty").read_bytes()
    server.answers = [Answer(content=content) for content in contents]
    for words in ("cut off", "web page", "not a checkpoint", "holds no weights"):
        with pytest.raises(InputError, match=words):
            download_pretrained_model(server.url, tmp_path / "models", progress=False)
        assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("path", ["", "/", "/%2e%2e"])
def test_pretrained_model_needs_a_name(tmp_path, path):
    with pytest.raises(InputError, match="names no file"):
        download_pretrained_model(f"http://127.0.0.1:1{path}", tmp_path, progress=False)


def test_pretrained_model_stays_in_its_folder(server, tmp_path):
    server.answers = [Answer(content=saved(tmp_path / "original"))]
    path = download_pretrained_model(f"{server.url}/..%2F..%2Fa.pth", tmp_path / "models", progress=False)
    assert path == tmp_path / "models" / "a.pth"
