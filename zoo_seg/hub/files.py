"""Files on this disk, safely: is it a weight file, what is its hash, who may write it, and replacing it in one step."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from zoo_seg.checkpoints.claims import check_directory

if TYPE_CHECKING:
    import filelock

STUCK = 600.0
"""Seconds without any change in its folder after which a lock is no longer waited for."""
WAIT = 3.0
"""Seconds between two looks at that folder."""

MAX_HEADER = 4 << 20
"""Bytes of a safetensors header; a ResNet-101's has 60 kB."""

_log = getLogger("zoo_seg")


def check_weight_file(path: Path) -> None:
    """Tell a .pth (zip or legacy pickle) or .safetensors file from whatever else a server may send.

    Raises:
        ValueError: the message quotes what was found.
    """
    found = None
    with path.open("rb") as file:
        head = file.read(256)
        header_size = int.from_bytes(head[:8], "little")
        if head.startswith(b"PK\x03\x04"):
            found = _zip_damage(path)
        elif head[8:9] == b"{" and header_size <= MAX_HEADER:
            file.seek(8)
            size, expected = path.stat().st_size, _safetensors_size(file.read(header_size))
            if expected is None:
                found = "a safetensors file with a broken header"
            elif size != expected:
                found = f"a safetensors file of {size} bytes whose header announces {expected}"
        elif not head.startswith(b"\x80\x02"):
            found = describe(head)
    if found:
        raise ValueError(f"found {found}, expected a whole .pth or .safetensors file")


def _safetensors_size(header: bytes) -> int | None:
    """The size in bytes of the whole file with this header; None where the header cannot be read."""
    try:
        tensors = [value for key, value in json.loads(header).items() if key != "__metadata__"]
        return 8 + len(header) + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None


def _zip_damage(path: Path) -> str | None:
    """What is wrong with a zip file, by the checksums in it; None where they hold.

    A checkpoint's entries lie unpacked, one after the other. What claims to hold more than the file has is not read.
    """
    try:
        if not zipfile.is_zipfile(path):
            return "a zip file without its end (cut off?)"
        check_directory(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "a zip file of packed entries"
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                return "a zip file that claims to hold more than it has"
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises almost anything on damaged data
        return f"a broken zip file ({error})"
    return f"a zip file in which {damaged!r} is damaged" if damaged else None


def describe(head: bytes) -> str:
    """What a file that begins like this seems to be, in words."""
    if not head:
        return "an empty file"
    if head.startswith(b"PK\x03\x04"):
        return "a zip file"
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    beginning = f"beginning {text[:60]!r}"
    if text.startswith("version https://git-lfs"):
        return f"a Git LFS pointer {beginning}"
    if text.startswith("<"):
        return f"a web page {beginning}"
    return f"JSON {beginning}" if text.startswith(("{", "[")) else f"a file beginning {head[:16]!r}"


def file_path(url: str) -> Path:
    """The path of a file:// link.

    Raises:
        FileNotFoundError: the link names a host.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise FileNotFoundError(errno.ENOENT, f"it names a host, {parts.netloc!r}; write file:///path", url)
    return Path(url2pathname(parts.path))


def hash_file(path: Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def exclusive(lock: Path) -> Iterator[bool]:
    """Hold the lock file `lock`, so that others wait instead of doing the same work.

    Yields False where the file system has no locks, or their holder is stuck. Nothing depends on it but work done
    twice: every process writes a file of its own and puts it in place in one step.
    """
    import filelock

    handle = filelock.FileLock(str(lock))
    try:
        held = _acquire(handle, lock.parent)
    except (OSError, NotImplementedError):
        held = False
    try:
        yield held
    finally:
        with suppress(OSError):
            handle.release()


def _acquire(handle: filelock.BaseFileLock, folder: Path) -> bool:
    """Wait for the lock for as long as its holder gets on with the files in `folder`."""
    import filelock

    seen, since = None, time.monotonic()
    while True:
        with suppress(filelock.Timeout):
            handle.acquire(timeout=WAIT)
        if isinstance(handle, filelock.SoftFileLock):  # a mere marker, for want of locks: it outlives a killed process
            return False
        if handle.is_locked:
            return True
        if seen is None:
            _log.info("waiting for another process that is busy in %s", folder)
        if (now := _state(folder)) != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > STUCK:
            _log.warning("whoever is busy in %s has done nothing for %d s; going on without waiting", folder, STUCK)
            return False


def _state(folder: Path) -> list[tuple[str, int, int]]:
    with suppress(OSError):
        entries = [(entry.name, entry.stat()) for entry in os.scandir(folder)]
        return sorted((name, status.st_size, status.st_mtime_ns) for name, status in entries)
    return []


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `destination` when the block ends well and vanishes when it does not."""
    temporary = destination.with_name(f"{destination.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
        replace_durably(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder, but not what a note invites to go on with.

    For the holder of its lock, which alone writes there. Should another one write there all the same, without a lock,
    then it misses its file and begins again.
    """
    for path in folder.iterdir():
        unfinished = re.search(r"\.[0-9a-f]{12}\.part(\.json)?$|^\.hub-", path.name)
        partner = path.name.removesuffix(".json") if path.suffix == ".json" else f"{path.name}.json"
        if unfinished and not path.with_name(partner).exists():
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_durably(temporary: Path, destination: Path) -> None:
    """Give a finished file its final name: after a crash either the old or the whole new file is there."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(destination)
    with suppress(OSError):  # not every system can sync a folder
        folder = os.open(destination.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
