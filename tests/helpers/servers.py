"""A local HTTP server that misbehaves on request, and counts what it was asked and what it sent."""

from __future__ import annotations

import io
import re
import socket
import struct
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import requests

PIECE = 1 << 14
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


def zip_payload(size: int = 2000, seed: int = 0) -> bytes:
    """A zip file with about `size` bytes in it: what a .pth of today is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(
            zipfile.ZipInfo("archive/data"), bytes((seed + i * i // 7) % 251 for i in range(1000)) * (size // 1000)
        )
    return buffer.getvalue()


@dataclass
class Asked:
    """One request; `sent` counts the bytes of the body that went out."""

    path: str
    headers: dict[str, str]
    sent: int = 0

    @property
    def start(self) -> int:
        match = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(match[1]) if match else 0


class Server(ThreadingHTTPServer):
    """Serves `files`; the steps in `plan[path]` answer the first requests for a path instead, one each.

    A step in `always[path]` answers every request for it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str | None] = {}
        self.plan: dict[str, list[Step]] = defaultdict(list)
        self.always: dict[str, Step] = {}
        self.asked: list[Asked] = []
        self.release = threading.Event()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *exception: Any) -> None:
        self.release.set()  # whoever stalls may go
        self.shutdown()
        super().__exit__(*exception)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def url(self, path: str) -> str:
        return f"{self.base}/{path}"

    @property
    def sent(self) -> int:
        return sum(asked.sent for asked in self.asked)

    def reach(self, url: str, **options: Any) -> requests.Response:
        """A `requests.get` for which this server is every https host; the host is the path's first part."""
        assert url.startswith(("https://", self.base)), f"{url} was asked for"
        return requests.api.get(url.replace("https:/", self.base), **options)

    def handle_error(self, *args: object) -> None:
        pass  # a client that goes away is part of the plan


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.asked = Asked(path, {key.lower(): value for key, value in self.headers.items()})
        with self.server.lock:
            self.server.asked.append(self.asked)
            steps = self.server.plan[path]
            step = steps.pop(0) if steps else self.server.always.get(path, serve())
        step(self, self.server.files.get(path.split("?")[0]))
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response_only(status)
        for key, value in {"Date": DATE, "Connection": "close", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.write(body)

    def write(self, body: bytes) -> None:
        for start in range(0, len(body), PIECE):
            self.wfile.write(body[start : start + PIECE])
            self.asked.sent += len(body[start : start + PIECE])

    def reset(self) -> None:
        """End the connection as a crash does."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.close()


Step = Callable[[_Handler, "bytes | None"], object]


def _head(handler: _Handler, body: bytes, etag: str | None, ranges: bool) -> tuple[int, dict[str, str], int]:
    start, headers = handler.asked.start, {"Content-Type": "application/octet-stream"}
    if etag:
        headers["ETag"] = etag
    if start and ranges and handler.asked.headers.get("if-range", etag) == etag:
        if start >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}, len(body)
        headers |= {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        return 206, headers | {"Content-Length": str(len(body) - start)}, start
    return 200, headers | {"Content-Length": str(len(body))}, 0


def serve(
    *,
    etag: str | None = "default",
    ranges: bool = True,
    stop: int | None = None,
    how: Literal["close", "reset", "stall"] = "close",
    announce: object = None,
    framing: Literal["length", "chunks", "none"] = "length",
    other: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Step:
    """Send the file, ranges included.

    Args:
        etag: `"default"` for that of `Server.etags`, else `"v1"`.
        ranges: False ignores the `Range` header.
        stop: bytes of the body after which the connection ends,
        how: namely by "close", "reset" or "stall" (until the server ends).
        announce: a `Content-Length` that is not true.
        framing: how the end of the body is told: by its length, by chunks, or not at all.
        other: bytes of another file, under the same name.
        headers: further ones.
    """

    def step(handler: _Handler, body: bytes | None) -> None:
        if body is None:
            status(404)(handler, None)
            return
        tag = handler.server.etags.get(handler.asked.path, '"v1"') if etag == "default" else etag
        body = other or body
        code, head, start = _head(handler, body, tag, ranges)
        if announce is not None:
            head["Content-Length"] = str(announce)
        if framing != "length":
            del head["Content-Length"]
        piece = body[start : None if stop is None else start + stop]
        if framing == "chunks":
            head["Transfer-Encoding"] = "chunked"
            piece = b"%x\r\n%b%b" % (len(body) - start, piece, b"" if stop else b"\r\n0\r\n\r\n")
        handler.answer(code, head | (headers or {}), piece)
        if stop is not None and how == "stall":
            handler.server.release.wait(20)
        if stop is not None and how == "reset":
            handler.reset()

    return step


def silence(beginning: bytes = b"") -> Step:
    """No answer, or the beginning of one, until the client goes or the server ends."""
    return lambda handler, body: (handler.wfile.write(beginning), handler.server.release.wait(20))


def hang_up(how: Literal["close", "reset"] = "close") -> Step:
    """No answer; the connection ends."""
    return lambda handler, body: handler.reset() if how == "reset" else None


def raw(answer: bytes) -> Step:
    """These bytes instead of an answer."""
    return lambda handler, body: handler.wfile.write(answer)


def trickle(answer: bytes, at_once: int = 0) -> Step:
    """These bytes instead of an answer, a few now and then, so that none is ever long in coming."""

    def step(handler: _Handler, body: bytes | None) -> None:
        handler.wfile.write(answer[:at_once])
        with suppress(OSError):
            for start in range(at_once, len(answer), 8):
                handler.wfile.write(answer[start : start + 8])
                handler.server.release.wait(0.02)

    return step


def status(code: int, **headers: str) -> Step:
    """An answer without a body; `Retry_After="1"` is the header Retry-After."""
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, body: handler.answer(code, {"Content-Length": "0", **fields})


def redirect(to: str) -> Step:
    return status(302, Location=to)


def send(body: bytes, kind: str = "application/octet-stream", **headers: str) -> Step:
    """Other bytes than the file's, as the whole answer."""
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, _: handler.answer(
        200, {"Content-Type": kind, "Content-Length": str(len(body)), **fields}, body
    )


def endless(piece: bytes = b"PK\x03\x04" * 1024) -> Step:
    """A body without a length that never ends by itself."""

    def step(handler: _Handler, body: bytes | None) -> None:
        handler.answer(200, {"Content-Type": "application/octet-stream"})
        with suppress(OSError):
            while not handler.server.release.is_set():
                handler.write(piece)

    return step


def wrong_range(offset: int) -> Step:
    """Answers a range request with another part of the file than was asked for."""

    def step(handler: _Handler, body: bytes | None) -> None:
        assert body is not None
        begin = handler.asked.start + offset
        head = {"ETag": '"v1"', "Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
        handler.answer(206, head | {"Content-Length": str(len(body) - begin)}, body[begin:])

    return step
