"""Files by path or URL, through fsspec: `images/a.jpg`, `s3://bucket/images/a.jpg`."""

from __future__ import annotations

import io
import os
import posixpath
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

from zoo_seg.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Stat = tuple[int | None, int | None]
"""A file's size in bytes, and when it was last written, in nanoseconds; None: its storage does not say."""
Stats = Callable[[str], Stat]
"""Of a path or URL; an OSError where there is no file."""

_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2"}
"""Object stores: what is put there appears whole or not at all, and moving is copying."""


def is_url(text: str) -> bool:
    """Whether a place is a URL, such as s3://bucket/images, and not a path of this machine."""
    return "://" in text


def place(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        OptionError: no file system has this name.
        MissingExtraError: its package is not installed; the message names the pip command.
    """
    try:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem
        from fsspec.registry import known_implementations
    except ImportError as error:
        raise MissingExtraError(f"{address} needs fsspec ({error}): pip install 'zoo_seg[scale]'") from None
    if not is_url(address):
        return LocalFileSystem(), os.path.abspath(address)  # noqa: PTH100  (keeps every byte of a name)
    protocol = address.partition("://")[0]
    try:
        return url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        package = f"'fsspec[{protocol}]'" if package == "fsspec" else package
        raise MissingExtraError(f"{protocol}:// needs another package ({error}): pip install {package}") from None
    except ValueError as error:
        raise OptionError(f"{address}: {error}; expected a path, or a URL that fsspec knows, such as s3://") from None


def whole_path(address: str) -> str:
    """The path in its storage, from the root on."""
    return place(address)[1] if is_url(address) else os.path.abspath(address)  # noqa: PTH100


def below(folder: str, name: str) -> str:
    """The path or URL of a result, named without its ending, below a folder.

    Names come from lists and storages, where they are any text: `a/../b` becomes `b`.

    Raises:
        OptionError: it would lie elsewhere, also for a storage that decodes `%2e` or takes a backslash for a slash; or
            there is no name.
    """
    if not name:
        raise OptionError("names no file; expected the path or URL of an image")
    name = posixpath.normpath(f"{name}_".lstrip("/"))[:-1]  # with an ending `..` is a name like others
    plain = f"{name}_"
    while (decoded := unquote(plain)) != plain:
        plain = decoded
    steps = re.split(r"[/\\]", plain)
    chained = is_url(folder) and "::" in plain  # fsspec would take what follows for another storage
    if "" in steps or ".." in steps or "\0" in plain or chained or os.path.splitdrive(name)[0]:
        raise OptionError(f"its results would not lie below --out ({name!r}); rename it")
    return f"{folder}/{name}" if is_url(folder) else str(Path(folder, name))


@dataclass(frozen=True)
class Elsewhere:
    """An image file of another machine: its bytes are fetched when it is opened."""

    address: str

    def __str__(self) -> str:
        return self.address

    def open(self, mode: str = "rb") -> BinaryIO:
        """The whole file, in memory."""
        file_system, path = place(self.address)
        return io.BytesIO(file_system.cat_file(path))


def opens(address: str) -> Path | Elsewhere:
    """What opens the file at a path or URL."""
    return Elsewhere(address) if is_url(address) else Path(address)


def stats(folder: str) -> Stats:
    """Asks for results below a folder, and for images anywhere; what is not on this machine is listed once."""
    remote, root = place(folder) if is_url(folder) else (None, "")
    try:
        results = set(remote.find(root)) if remote else set()
    except FileNotFoundError:
        results = set()

    def stat(address: str) -> Stat:
        where, path = place(address) if is_url(address) else (None, address)
        if where is None or "file" in where.protocol:
            status = os.stat(path)  # noqa: PTH116  (keeps every byte of a name)
            return status.st_size, status.st_mtime_ns
        if where is remote and path.startswith(f"{root}/") and path not in results:
            raise FileNotFoundError(address)
        size = where.info(path).get("size")
        try:
            return size, round(where.modified(path).timestamp() * 1e9)
        except (NotImplementedError, KeyError, AttributeError):
            return size, None

    return stat


def read_text(address: str) -> str:
    """A text file, of whatever bytes."""
    file_system, path = place(address)
    return bytes(file_system.cat_file(path)).decode("utf-8", "surrogateescape")


def write_text(text: str, address: str) -> None:
    """A small text file."""
    put(text.encode("utf-8"), address, f"{address}.part")


def write_file(data: bytes, address: str, staging: str) -> None:
    """Write a file; its folder is made, and it appears whole or not at all.

    Args:
        staging: a folder of the same storage; what a killed process leaves of a file, it leaves there.
    """
    put(data, address, f"{staging}/{uuid.uuid4().hex}")


def put(data: bytes, address: str, part: str) -> None:
    """Write a file by way of `part`, or at once where half a file is never seen.

    Raises:
        OSError: it cannot be written there.
    """
    file_system, path = place(address)
    try:
        if _is_whole(file_system):
            file_system.pipe_file(path, data)
        else:
            _move_in(file_system, data, path, place(part)[1])
    except OSError:
        raise
    except Exception as error:  # storages have exceptions of their own
        raise OSError(f"{type(error).__name__}: {error}") from error


def _move_in(file_system: AbstractFileSystem, data: bytes, path: str, part: str) -> None:
    for each in (path, part):
        file_system.makedirs(os.path.dirname(each), exist_ok=True)  # noqa: PTH120
    try:
        file_system.pipe_file(part, data)
        file_system.mv(part, path)
    except BaseException:
        with suppress(Exception):
            file_system.rm_file(part)
        raise


def remove(folder: str) -> None:
    """A folder with what is in it, if there is one."""
    file_system, path = place(folder)
    if not _is_whole(file_system) and file_system.exists(path):
        file_system.rm(path, recursive=True)


def _is_whole(file_system: AbstractFileSystem) -> bool:
    protocol = file_system.protocol
    return not _WHOLE.isdisjoint([protocol] if isinstance(protocol, str) else protocol)
