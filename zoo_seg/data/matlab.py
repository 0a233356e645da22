"""The label map in a MATLAB file, as COCO-Stuff 10k is distributed (MathWorks, "MAT-File Format", level 5)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo_seg.errors import DataError

_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_LARGEST = 1 << 28
"""Bytes that a compressed variable may hold."""


def read_matrix(path: Path, name: str) -> npt.NDArray[np.uint16]:
    """A variable of two dimensions and whole numbers from 0 to 65535.

    Raises:
        DataError: there is none of this name and kind.
    """
    data = path.read_bytes()
    if not data.startswith(b"MATLAB 5.0"):
        raise DataError(f"{path}: not a MATLAB file of level 5 (save with '-v7')")
    order = "<" if data[126:128] == b"IM" else ">"
    for kind, content in _elements(data[128:], order):
        if kind == _COMPRESSED:
            ((kind, content),) = _elements(zlib.decompressobj().decompress(content, _LARGEST), order)
        if kind != _MATRIX:
            continue
        _, (_, dimensions), (_, found), *_ = elements = list(islice(_elements(content, order), 4))
        if found.decode("ascii") == name:
            stored, values = elements[3]
            matrix = np.frombuffer(values, order + _TYPES[stored]).reshape(
                np.frombuffer(dimensions, f"{order}i4"), order="F"
            )
            if matrix.ndim == 2 and matrix.size and (matrix == matrix.astype(np.uint16)).all():
                return np.ascontiguousarray(matrix, np.uint16)
    raise DataError(f"{path}: holds no variable {name!r} of class numbers (height x width)")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each; of up to four bytes, both stand in eight bytes."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]
        place = end
