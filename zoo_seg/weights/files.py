"""Files on this disk, safely: is it a weight file, what is its hash, who may write it, and replacing it in one step."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging import getLogger
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


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
            if not zipfile.is_zipfile(path):
                found = "a zip file without its end (cut off?)"
        elif head[8:9] == b"{" and header_size < 100 << 20:
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
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def describe(head: bytes) -> str:
    """What a file that begins like this seems to be, in words."""
    if not head:
        return "an empty file"
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

    Yields False where the file system has no locks. Nothing depends on it but work done twice: every process writes
    a file of its own and puts it in place in one step.
    """
    import filelock

    with ExitStack() as stack:
        try:
            handle = filelock.FileLock(str(lock))
            try:
                stack.enter_context(handle.acquire(timeout=3))
            except filelock.Timeout:
                getLogger("zoo_seg").info("waiting for another process that is busy in %s", lock.parent)
                stack.enter_context(handle.acquire(timeout=-1))
            held = True
        except (OSError, NotImplementedError):
            held = False
        yield held


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `destination` when the block ends well and vanishes when it does not."""
    temporary = destination.with_name(f"{destination.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
        replace_durably(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


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
