"""A server on the loopback that serves a few files, and misbehaves as it is told."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass
class Answer:
    """What the server does with one GET; by default it is well-behaved."""

    content: bytes | None = None  # in place of the file
    status: int = 200
    headers: dict[str, str] | None = None  # None: an ETag of the content
    stop: int | None = None  # bytes of the body after which the connection is dropped; -1: half of them
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

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        site, path, head = self.server, self.path.partition("?")[0], self.command == "HEAD"
        site.log.append((self.command, path, dict(self.headers)))
        answer = Answer() if head else next(site.answers.get(path, iter(())), Answer())
        answer.before()
        content = site.files.get(path) if answer.content is None else answer.content
        status, body = (405 if head and not site.heads else answer.status), content
        if body is None:
            status, body = 404, PAGE
        headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'} if answer.headers is None else dict(answer.headers)
        asked, mark = self.headers.get("Range"), self.headers.get("If-Range")
        same = not answer.if_range or mark in (headers.get("ETag"), headers.get("Last-Modified"))
        if status == 200 and asked and answer.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, body = 206, body[start:][: answer.most]
            headers["Content-Range"] = answer.span or f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.announced == -1:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Content-Length", str(len(body) if answer.announced is None else answer.announced))
        self.end_headers()
        if not head:
            self.send(answer, body)

    def send(self, answer, body):
        site = self.server
        body = memoryview(body)[: len(body) // 2 if answer.stop == -1 else answer.stop]
        self.close_connection = answer.stop is not None or answer.announced is not None
        with site.lock:
            site.now += 1
            site.most = max(site.most, site.now)
        try:
            step = 2048 if site.pause else max(1, len(body) // 2)
            for start in range(0, len(body), step):
                if site.pause:
                    time.sleep(site.pause)
                if start:
                    answer.amid()
                self.wfile.write(body[start : start + step])
            if answer.stop is not None:
                answer.instead()
        except ConnectionError:  # the client has seen enough, or was killed
            self.close_connection = True
        with site.lock:
            site.now -= 1
            site.sent += len(body)


@dataclass
class State:
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Iterator[Answer]] = field(default_factory=dict)  # to the next GETs of a path
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    heads: bool = True  # whether HEAD is known
    pause: float = 0.0  # seconds between two kilobytes
    now: int = 0  # answers under way,
    most: int = 0  # and the most of them at one time
    sent: int = 0  # bytes


class Site(State, ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        State.__init__(self)
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), Handler)
        self.url, self.lock = f"http://127.0.0.1:{self.server_port}", Lock()

    def handle_error(self, *_):
        """Clients that were killed are no errors."""

    def gets(self, path=None):
        """The paths that were asked for, or the headers with which one of them was."""
        got = [(where, headers) for method, where, headers in self.log if method == "GET"]
        return [where for where, _ in got] if path is None else [headers for where, headers in got if where == path]

    def will(self, path: str, answers: Iterable[Answer]) -> None:
        self.answers[path] = iter(answers)


@contextmanager
def running(site):
    with site:
        Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield site
        site.shutdown()
