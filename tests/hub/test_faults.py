"""Whatever a server does: afterwards the right file is in the cache, or none, and the next call gets it.

Each fault is a row of `docs/reliability.md`, which `python -m pytest tests/hub/test_faults.py --write-reliability` writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import requests
from helpers.records import ID, LINK, record
from helpers.reliability import Reliability
from helpers.servers import (
    Server,
    Step,
    endless,
    hang_up,
    raw,
    redirect,
    send,
    serve,
    silence,
    status,
    trickle,
    wrong_range,
    zip_payload,
)

from zoo_seg.errors import DownloadError
from zoo_seg.hub import cache, partial
from zoo_seg.hub import download as module
from zoo_seg.manifest import File

BODY, OTHER = zip_payload(200_000), zip_payload(200_000, seed=1)
SPOILED = BODY[:5000] + b"spoiled" + BODY[5007:]
SHA256 = hashlib.sha256(BODY).hexdigest()
PAGE = b"<!DOCTYPE html><title>Sign in</title>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 200\n"

State = Literal["the right file", "no file", "another file"]
RIGHT, NONE, ANOTHER = "the right file", "no file", "another file"


@dataclass(frozen=True)
class Fault:
    """What the publisher's server does, and what must come of it."""

    name: str
    first: Sequence[Step] = ()
    """Its answers to the first requests."""
    then: Step | None = None
    """Its answer to all others; the file where None."""
    mirror: Step | None = None
    """What another host, which is asked next, answers; None where there is none."""
    state: State = RIGHT
    unpublished: State | None = None
    """The state where neither hash nor size are published, should it differ."""
    requests: int = 1
    again: int = 0
    """Percent of the file that are fetched twice, at most."""
    waits: int = 0
    """Seconds."""
    slow: bool = False
    """It takes patience, which the test shortens."""
    says: str = ""
    """Some words of the error, or of the log."""


def continuing(content_range: str, body: bytes = BODY) -> Step:
    """A 206 that keeps the ETag, with this `Content-Range` and the rest of these bytes."""

    def step(handler: Any, file: bytes) -> None:
        rest = body[handler.asked.start :]
        told = content_range.format(start=handler.asked.start, last=len(body) - 1, size=len(body))
        head = {"ETag": '"v1"', "Content-Length": str(len(rest))}
        handler.answer(206, head | ({"Content-Range": told} if told else {}), rest)

    return step


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)
HALF = serve(stop=90_000)
RANGE = "bytes {start}-{last}/{size}"
LATER = {"Retry_After": "Fri, 31 Dec 2100 23:59:59 GMT"}
HOSTILE_DATE = {"Last-Modified": "Fri, 31 Dec 2020 23:59:59 +99999999999999999999"}

# fmt: off
FAULTS = [
    # --- connections
    Fault("the connection ends halfway, twice", [HALF, serve(stop=60_000)], requests=3),
    Fault("the connection is reset halfway, twice", [serve(stop=90_000, how="reset")] * 2, requests=3),
    Fault("the connection stalls halfway, twice", [serve(stop=90_000, how="stall"), serve(stop=60_000, how="stall")],
          requests=3, slow=True),
    Fault("every connection ends after a tenth of the file", then=serve(stop=20_000), requests=11),
    Fault("every connection ends halfway, and there are no ranges", then=serve(stop=90_000, ranges=False),
          state=NONE, requests=5, again=200, says="gave up after 5 attempts"),
    Fault("the same, and a mirror has the file", then=serve(stop=90_000, ranges=False), mirror=serve(),
          requests=6, again=250, says="gave up after 5 attempts"),
    Fault("a chunked body ends halfway", [serve(stop=90_000, framing="chunks")], requests=2),
    Fault("a body of untold length ends halfway", [serve(stop=90_000, framing="none")],
          unpublished=NONE, requests=2),
    Fault("the body trickles", [trickle(HEAD + BODY, at_once=len(HEAD))], requests=2, slow=True),
    Fault("the head trickles", [trickle(b"HTTP/1.1 200 OK\r\n" + 999 * b"X-A: b\r\n")], requests=2, slow=True),
    Fault("interim answers (100) without end", [trickle(99 * b"HTTP/1.1 100 Continue\r\n\r\n")], requests=2, slow=True),
    Fault("no answer", [silence()], requests=2, slow=True),
    Fault("half a head, then silence", [silence(b"HTTP/1.1 200 OK\r\nContent-Le")], requests=2, slow=True),
    Fault("silence, always", then=silence(), state=NONE, requests=4, says="no data for", slow=True),
    Fault("the connection ends without an answer, twice", [hang_up()] * 2, requests=3),
    Fault("the connection is reset without an answer, twice", [hang_up("reset")] * 2, requests=3),
    Fault("what answers does not speak HTTP", then=raw(b"SSH-2.0-OpenSSH_9.6\r\n"), state=NONE, requests=4,
          says="gave up after 4 attempts"),
    Fault("a head of 100 KB", then=raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000), state=NONE, requests=4,
          says="gave up after 4 attempts"),
    # --- errors
    Fault("429, then 503, without Retry-After", [status(429), status(503)], requests=3),
    Fault("429 with Retry-After: 7", [status(429, Retry_After="7")], requests=2, waits=7),
    Fault("503 with Retry-After: a date in 2100", [status(503, **LATER)], requests=2, waits=120),
    Fault("503 with Retry-After: 99999999999999999999", [status(503, Retry_After="9" * 20)], requests=2, waits=120),
    Fault("429 with Retry-After: soon", [status(429, Retry_After="soon")], requests=2),
    Fault("503, always", then=status(503), state=NONE, requests=4, says="HTTP 503 Service Unavailable; gave up"),
    Fault("503, always, and a mirror has the file", then=status(503), mirror=serve(), requests=5, says="HTTP 503"),
    Fault("429 with Retry-After: 7, always", then=status(429, Retry_After="7"), state=NONE, requests=4, waits=21,
          says="HTTP 429 Too Many Requests; gave up"),
    Fault("408, 500, 502", [status(408), status(500), status(502)], requests=4),
    Fault("404", then=status(404), state=NONE, says="HTTP 404 Not Found"),
    Fault("404, and a mirror has the file", then=status(404), mirror=serve(), requests=2, says="HTTP 404"),
    Fault("403, and a mirror has the file", then=status(403), mirror=serve(), requests=2, says="HTTP 403"),
    Fault("404 here and at the mirror", then=status(404), mirror=status(404), state=NONE, requests=2,
          says="https://mirror.test/w.pth: HTTP 404"),
    Fault("204 without a file", then=status(204), state=NONE, says="HTTP 204"),
    Fault("404 in a status line with terminal codes", then=raw(b"HTTP/1.1 404 \x1b[2JGone\r\n\r\n"), state=NONE,
          says="HTTP 404 ?[2JGone"),
    # --- redirects
    Fault("a redirect to another host", then=redirect("https://elsewhere.test/w.pth"), requests=2),
    Fault("a redirect without a scheme", then=redirect("//elsewhere.test/w.pth"), requests=2),
    Fault("a redirect to http", then=redirect("http://elsewhere.test/w.pth"), state=NONE,
          says="redirected to http://elsewhere.test/w.pth; only https is used"),
    Fault("a redirect to http, and a mirror has the file", then=redirect("http://elsewhere.test/w.pth"),
          mirror=serve(), requests=2, says="only https"),
    Fault("a redirect to file:///etc/passwd", then=redirect("file:///etc/passwd"), state=NONE,
          says="redirected to file:///etc/passwd"),
    Fault("a redirect to itself", then=redirect("/w.pth"), state=NONE, requests=11,
          says="redirected more than 10 times"),
    Fault("a redirect to nowhere", then=status(302), state=NONE, says="HTTP 302 Found"),
    Fault("a redirect to https://[bad", then=redirect("https://[bad"), state=NONE, says="Invalid"),
    # --- lengths
    Fault("Content-Length is 10 bytes too large", then=serve(announce=len(BODY) + 10, ranges=False), state=NONE,
          requests=1, says=f"announces {len(BODY) + 10} bytes, expected {len(BODY)}"),
    Fault("Content-Length is 10 bytes too small", then=serve(announce=len(BODY) - 10), state=NONE,
          says=f"announces {len(BODY) - 10} bytes"),
    Fault("Content-Length: -1", then=serve(announce=-1)),
    Fault("Content-Length: many", then=serve(announce="many")),
    Fault("Content-Length: 10 TB", then=serve(announce=10 * 10**12), state=NONE, says="announces 10000000000000 bytes"),
    Fault("a body without end", then=endless(), state=NONE, says=f"goes on beyond {len(BODY)} bytes"),
    Fault("a body without end, and a mirror has the file", then=endless(), mirror=serve(), requests=2, again=100,
          says="goes on beyond"),
    Fault("bytes after the announced end", then=lambda handler, file: handler.answer(
          200, {"Content-Length": str(len(BODY))}, BODY + b"more")),
    # --- ranges and ETags: the connection has ended halfway, and then
    Fault("the rest is asked for; the server sends the whole file", [HALF, serve(ranges=False)], requests=2, again=45),
    Fault("...the file has changed, and its ETag too", [serve(stop=90_000, etag='"v0"', other=OTHER)],
          requests=2, again=45),
    Fault("...the file has changed under the same ETag", [serve(stop=90_000, other=OTHER)], requests=3, again=100),
    Fault("...the file has changed; there is neither ETag nor date", [serve(stop=90_000, other=OTHER, etag=None)],
          requests=3, again=100),
    Fault("...the file has changed; the ETags are weak", [serve(stop=90_000, other=OTHER, etag='W/"v0"')],
          requests=3, again=45),
    Fault("...each answer has another ETag", [serve(stop=90_000, etag=f'"{i}"') for i in range(9)], state=NONE,
          requests=5, again=200, says="gave up after 5 attempts"),
    Fault("...a range that begins earlier", [HALF, wrong_range(-10)], requests=3, again=45),
    Fault("...a range that begins later", [HALF, wrong_range(10)], requests=3, again=45),
    Fault("...a range of a longer file", [HALF, continuing("bytes {start}-{last}/999999")], requests=3, again=45),
    Fault("...the right range, but other bytes", [HALF, continuing(RANGE, OTHER)], requests=3, again=100),
    Fault("...206 without Content-Range", [HALF, continuing("")], requests=3, again=45),
    Fault("...a Content-Range that is not one", [HALF, continuing("bytes */*")], requests=3, again=45),
    Fault("...a rest that goes on beyond the file", [HALF, continuing(RANGE, BODY + OTHER)], requests=3, again=45),
    Fault("...416", [HALF, status(416)], requests=3, again=45),
    Fault("...a web page", [HALF, send(PAGE, "text/html")], state=NONE, requests=2, says="a web page"),
    Fault("...a web page, and a mirror has the file", [HALF, send(PAGE, "text/html")], mirror=serve(), requests=3,
          again=45, says="a web page"),
    Fault("206 though all was asked for", then=continuing(RANGE), state=NONE, says="HTTP 206"),
    Fault("a Last-Modified that is no date", then=serve(headers=HOSTILE_DATE)),
    # --- other files
    Fault("a web page", then=send(PAGE, "text/html"), state=NONE, says="a web page beginning '<!DOCTYPE html>"),
    Fault("a web page that calls itself a file", then=send(PAGE), state=NONE, unpublished=NONE,
          says="a web page beginning '<!DOCTYPE html>"),
    Fault("a Git LFS pointer", then=send(LFS), state=NONE, says="a Git LFS pointer beginning 'version https://git-lfs"),
    Fault("a Git LFS pointer, and a mirror has the file", then=send(LFS), mirror=serve(), requests=2,
          says="a Git LFS pointer"),
    Fault("a captive portal that redirects to http", then=redirect("http://portal.test/"), state=NONE,
          says="redirected to http://portal.test/"),
    Fault("a captive portal that redirects to https", then=redirect("https://portal.test/"), state=NONE, requests=2,
          says="a web page beginning"),
    Fault("a captive portal that answers 511, then is left", [status(511)], requests=2),
    Fault("gzip-encoded bytes", then=send(b"\x1f\x8b rest", Content_Encoding="gzip"), state=NONE,
          says="sent with Content-Encoding gzip, expected the plain file"),
    Fault("gzip-encoded bytes that do not say so", then=send(b"\x1f\x8b rest"), state=NONE, says="announces 7 bytes"),
    Fault("an empty file", then=send(b""), state=NONE, says="announces 0 bytes"),
    Fault("a file that was cut off before it was put there", then=serve(other=BODY[:-1000]), state=NONE,
          says="announces"),
    Fault("a damaged file", then=serve(other=SPOILED), state=NONE, says="'archive/data' is damaged"),
    Fault("a damaged file, and a mirror has the right one", then=serve(other=SPOILED), mirror=serve(), requests=2,
          again=100, says="is damaged"),
    Fault("the wrong file", then=serve(other=OTHER), state=NONE, unpublished=ANOTHER,
          says=f"expected sha256 {SHA256}, got {hashlib.sha256(OTHER).hexdigest()}"),
    Fault("the wrong file, and a mirror has the right one", then=serve(other=OTHER), mirror=serve(),
          unpublished=ANOTHER, requests=2, again=100, says="expected sha256"),
]
# fmt: on


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        for host in ("zoo", "mirror", "elsewhere"):
            server.files[f"{host}.test/w.pth"] = BODY
        server.always["portal.test/"] = send(PAGE, "text/html")
        yield server


@dataclass
class Watch:
    """What the client did meanwhile."""

    requests: int = 0
    received: int = 0
    places: set[int] = dataclasses.field(default_factory=set)
    """The bytes of the file that came, by their place in it."""
    waited: float = 0

    @property
    def again(self) -> int:
        return self.received - len(self.places)


@pytest.fixture
def watch(server: Server, monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    append = partial.Partial.append

    def get(url: str, **options: Any) -> requests.Response:
        watch.requests += 1
        return server.reach(url, **options)

    def watched(self: partial.Partial, chunk: bytes) -> None:
        watch.received += len(chunk)
        watch.places.update(range(self.size, self.size + len(chunk)))
        append(self, chunk)

    def sleep(seconds: float) -> None:
        watch.waited += seconds

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(partial.Partial, "append", watched)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    monkeypatch.setattr(partial, "MAX_UNPUBLISHED", 2 * len(BODY))
    monkeypatch.setattr(module, "MAX_UNPUBLISHED", 2 * len(BODY))
    return watch


def state_of(path: Path) -> State:
    """What is under the file's name, which must also be what its record says."""
    if not path.exists():
        return NONE
    assert cache.check(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    return RIGHT if path.read_bytes() == BODY else ANOTHER


@pytest.mark.parametrize("published", [True, False], ids=["published", "unpublished"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_right_file_or_none(
    fault: Fault,
    published: bool,
    server: Server,
    watch: Watch,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reliability: Reliability,
) -> None:
    if fault.slow:
        monkeypatch.setattr(module, "READ_TIMEOUT", 0.3)
        monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.5)
    server.plan["zoo.test/w.pth"] = list(fault.first)
    server.always["zoo.test/w.pth"] = fault.then or serve()
    mirrors = ("https://mirror.test/w.pth",) if fault.mirror else ()
    server.always["mirror.test/w.pth"] = fault.mirror or serve()
    file = File(LINK, mirrors, size=len(BODY) if published else None, sha256=SHA256 if published else None)
    path = home / "weights" / ID / "w.pth"

    message = ""
    with caplog.at_level(logging.INFO, "zoo_seg"):
        try:
            cache.fetch(record(file))
        except DownloadError as error:
            message = "; ".join(line.strip() for line in str(error).splitlines()[1:-1])
    state = state_of(path)
    assert state == (fault.state if published else fault.unpublished or fault.state)
    assert [left.name for left in path.parent.glob("*.part")] == [] or state == NONE

    if published:
        message = message or "; ".join(entry.getMessage() for entry in caplog.records)
        assert fault.says in message
        assert watch.requests == fault.requests
        assert 100 * watch.again <= fault.again * len(BODY)
        assert round(watch.waited) == fault.waits
        waited = f"{fault.waits} s" if fault.waits else ""
        unpublished = fault.unpublished or fault.state
        message = message.replace("0.3 s", "30 s")
        cells = (fault.name, fault.state, unpublished, fault.requests, waited, message or "-")
        reliability.row("faults", *cells, figures=(f"{watch.received:,}", f"{watch.again:,}"))

    server.plan.clear()
    server.always.clear()
    cache.fetch(record(file))
    assert state_of(path) == (RIGHT if state == NONE else state)
    assert sorted(left.name for left in path.parent.iterdir()) == [".lock", "w.pth", "w.pth.json"]
