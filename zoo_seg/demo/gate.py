"""What the page's server lets in: its own visitors, to what the page needs, with files that they uploaded."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from zoo_seg.errors import ImageError, OptionError
from zoo_seg.images.reading import drawn_street

LARGEST_FILE = 100 * 2**20
"""Bytes of an uploaded image."""
_LARGEST_REQUEST = 2**20
"""Bytes of any other request, and of what surrounds an uploaded image."""
_LARGEST_FOLDER = 20 * LARGEST_FILE
"""Bytes of all uploaded images that are kept at a time."""

_UPLOAD = "/gradio_api/upload"
_FILE = "/gradio_api/file="
_ROUTES = {
    *("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/login", "/logout"),
    *("/gradio_api/startup-events", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel"),
    *(_UPLOAD, "/gradio_api/upload_progress", "/gradio_api/login_check"),
}
_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/", _FILE)
"""What the page asks for; gradio would also fetch addresses, run components' functions and take recordings."""


@dataclass(frozen=True)
class Upload:
    """An image file as a visitor names it. It opens if it was uploaded or is the drawn street, else as if not there.

    Args:
        folder: what is uploaded, and nothing else, lies in it.
    """

    path: str
    folder: Path

    def __str__(self) -> str:
        return Path(self.path).name.encode(errors="replace").decode()  # any text may be sent

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file, for reading.

        Raises:
            ImageError: it is none of these, no regular file, or not there; the message does not tell which.
        """
        try:
            return os.fdopen(_open_regular(self._resolved()), mode)
        except (OSError, ValueError):  # also of a name that no file can have
            raise ImageError(f"{self}: is not among the uploaded images; upload it again") from None

    def _resolved(self) -> Path:
        named, street = Path(os.path.abspath(self.path)), drawn_street()  # noqa: PTH100  (asks no file system)
        folder = self.folder.resolve()
        if named == street:
            return named
        if not (named.is_relative_to(self.folder.absolute()) or named.is_relative_to(folder)):
            raise FileNotFoundError  # before anything is asked that takes time where there is such a file
        resolved = named.resolve(strict=True)
        if not resolved.is_relative_to(folder):
            raise FileNotFoundError
        return resolved


def _open_regular(path: Path) -> int:
    """A descriptor of a regular file. Opening a pipe must not wait for who writes it."""
    flags = (getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
    descriptor = os.open(path, os.O_RDONLY | sum(flags))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise FileNotFoundError


class Hosts:
    """The names under which a page may be asked for, so that no other web page reaches it by a name of its own.

    Args:
        bound: where it is served. At every address of the machine (0.0.0.0) any address is let in, for no other
            page can own one, and the machine's name.
        allowed: more names, such as that of a proxy in front; their pages may ask on any port.

    Raises:
        OptionError: one of them is no name.
    """

    def __init__(self, bound: str, allowed: Sequence[str] = ()) -> None:
        for each in allowed:
            if not re.fullmatch(r"[a-z0-9._:-]+", host_name(each)):
                raise OptionError(f"--allow-host {each!r}: expected the name of a host, such as zoo.example.org")
        self.allowed = {host_name(each) for each in allowed}
        self._names = {"localhost", "127.0.0.1", "::1", host_name(bound)}
        self._everywhere = bound in ("", "0.0.0.0", "::", "[::]")
        if self._everywhere:
            name = socket.gethostname().lower()
            self._names |= {name, f"{name}.local"}

    def know(self, host: str) -> bool:
        """Whether a `Host` header is one of them."""
        name = host_name(host)
        return bool(name) and (name in self._names | self.allowed or (self._everywhere and _is_address(name)))

    def trust(self, origin: str, host: str) -> bool:
        """Whether an `Origin` header is that of this page, asked for by this `Host`, or of an allowed one."""
        name = host_name(origin)
        ours = name in self._names or name == host_name(host)
        return bool(name) and (name in self.allowed or (ours and _port(origin) == _port(host)))


def host_name(text: str) -> str:
    """`https://Example.org:80` -> `example.org`, `[::1]:7860` -> `::1`; empty where there is none."""
    text = text.strip()
    if _is_address(text.strip("[]")):
        return str(ip_address(text.strip("[]")))
    try:
        return (urlsplit(text if "://" in text else f"//{text}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _port(text: str) -> int | None:
    try:
        return urlsplit(text if "://" in text else f"//{text}").port
    except ValueError:
        return -1


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class Gate:
    """ASGI middleware: answers what is not let in with the reason.

    Args:
        hosts: None where a proxy in front knows its hosts.
        uploads: the folder of uploaded images.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Hosts | None, uploads: Path) -> None:
        self.app, self.hosts, self.uploads = app, hosts, uploads

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Callable[..., Awaitable[None]]) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, reason = refusal
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": f"{reason}\n".encode()})

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        """Status and reason."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        host, origin, length = (_header(scope, name) for name in (b"host", b"origin", b"content-length"))
        if self.hosts and not self.hosts.know(host or ""):
            return 403, _not_allowed("host", host or "")
        if self.hosts and origin is not None and not self.hosts.trust(origin, host or ""):
            return 403, _not_allowed("origin", origin)
        if path not in _ROUTES and not path.startswith(_FOLDERS):
            return 404, "not found"
        if path.startswith(_FILE):
            try:
                Upload(path.removeprefix(_FILE), self.uploads).open().close()
            except ImageError:
                return 404, "not found"
        return None if scope["method"] in ("GET", "HEAD") else self._too_large(length, path)

    def _too_large(self, length: str | None, path: str) -> tuple[int, str] | None:
        if length is None or not length.isdecimal():
            return 411, "a request must say how long it is (Content-Length)"
        most = _LARGEST_REQUEST + (LARGEST_FILE if path == _UPLOAD else 0)
        if int(length) > most:
            return 413, f"{length} bytes are too many; expected at most {most}"
        if path == _UPLOAD and _size(self.uploads) + int(length) > _LARGEST_FOLDER:
            return 507, "too many images are uploaded at the moment; try again later"
        return None


def _header(scope: dict[str, Any], name: bytes) -> str | None:
    """All that a request says under this name."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name) or None


def _not_allowed(what: str, found: str) -> str:
    name = host_name(found) or "NAME"
    return f"the {what} {found[:200]!r} is not allowed; start the page with: zoo-seg demo --allow-host {name[:200]}"


def _size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += Path(place, file).lstat().st_size
            except OSError:
                continue  # it was cleared
    return total
