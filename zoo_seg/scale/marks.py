"""The mark in a file that `zoo-seg predict` wrote: which image, weights and settings decided what it holds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zoo_seg.images.raster import software

_MARK = "zoo_seg"
_HEAD, _END = 256, b"IEND\xaeB`\x82"
"""Bytes in which the mark stands, and the last ones of a whole PNG."""
_JSON = re.compile(rb'\{"zoo_seg": "([0-9a-f]{64}) ([0-9a-f]{64})"')
"""How a JSON file begins: its mark, and the sha256 of all that follows, which a file edited by hand no longer has."""
_TIFF = re.compile(r"zoo-seg predict ([0-9a-f]{64})")
"""The software that wrote a TIFF; it appears whole or not at all."""
_CHUNK = 1 << 20


def marked_png(image: Image.Image, mark: str, **options: Any) -> bytes:
    """A PNG with Pillow's options."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(_MARK, mark)
    image.save(buffer, format="PNG", pnginfo=info, **options)
    return buffer.getvalue()


def marked_json(document: Mapping[str, Any], mark: str) -> bytes:
    """A JSON object of at least one member."""
    buffer = io.BytesIO()
    with marking_json(buffer, mark) as write:
        write(json.dumps(document)[1:-1])
    return buffer.getvalue()


@contextmanager
def marking_json(file: BinaryIO, mark: str) -> Iterator[Callable[[str], None]]:
    """Write a JSON object piece by piece: its members, separated by commas, in ASCII."""
    digest = hashlib.sha256()

    def write(text: str) -> None:
        data = text.encode("ascii")
        digest.update(data)
        file.write(data)

    file.write(_head(mark, "0" * 64))
    write(", ")
    yield write
    write("}\n")
    file.seek(0)
    file.write(_head(mark, digest.hexdigest()))


def _head(mark: str, digest: str) -> bytes:
    return f'{{"{_MARK}": "{mark} {digest}"'.encode("ascii")


def tiff_software(mark: str) -> str:
    """What a marked TIFF says that it was written by."""
    return f"zoo-seg predict {mark}"


def read_mark(file: BinaryIO) -> str | None:
    """The mark of a file that `zoo-seg predict` wrote; empty where its end is missing; None for any other file."""
    if found := _TIFF.fullmatch(software(file)):
        return found[1]
    head = file.read(_HEAD)
    if start := _JSON.match(head):
        return _of_json(file, start[1], start[2], start.end())
    png = re.search(rf"tEXt{_MARK}\0([0-9a-f]{{64}})".encode(), head)
    if png is None:
        return None
    file.seek(-len(_END), os.SEEK_END)
    return png[1].decode() if file.read() == _END else ""


def _of_json(file: BinaryIO, mark: bytes, digest: bytes, start: int) -> str | None:
    """Nothing of a file whose content was changed: it is its editor's."""
    file.seek(start)
    found, end = hashlib.sha256(), b""
    while data := file.read(_CHUNK):
        found.update(data)
        end = (end + data)[-2:]
    if found.hexdigest().encode() == digest:
        return mark.decode()
    return None if end == b"}\n" else ""
