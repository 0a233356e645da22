"""Image files with the very values given: Pillow writes few of the depths that it reads."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_PNG_KINDS = {"grey": 0, "rgb": 2, "palette": 3, "grey+alpha": 4, "rgba": 6}


def write_png(
    path: Path, values: npt.NDArray[Any], bits: int, kind: str = "grey", palette: bytes = b"", chunks: bytes = b""
) -> Path:
    """A PNG of (H, W) or (H, W, channels) with so many bits a value."""
    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, bits, _PNG_KINDS[kind], 0, 0, 0)
    rows = b"".join(b"\0" + _packed(row.ravel(), bits, ">") for row in values)
    parts = [_chunk(b"IHDR", head), _chunk(b"PLTE", palette) if palette else b"", chunks]
    parts += [_chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def transparent(*values: int) -> bytes:
    """PNG's chunk that makes one grey or colour transparent."""
    return _chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def write_tiff(
    path: Path,
    values: npt.NDArray[Any],
    bits: int,
    *,
    order: str = "<",
    white_is_zero: bool = False,
    deflate: bool = False,
    planar: bool = False,
    extra: int | None = None,
) -> Path:
    """A TIFF of one strip of (H, W), (H, W, 3) or, with `extra` (what the fourth is), (H, W, 4)."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    floating = values.dtype.kind == "f"
    planes = np.moveaxis(values, 2, 0) if planar else values[None]
    strips = [b"".join(_packed(row.ravel(), bits, order) for row in plane) for plane in planes]
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    photometric = 2 if channels >= 3 else 0 if white_is_zero else 1
    tags = {
        256: [width], 257: [height], 258: [bits] * channels, 259: [8 if deflate else 1], 262: [photometric],
        273: [0] * len(strips), 277: [channels], 278: [height], 279: [len(strip) for strip in strips],
        284: [2 if planar else 1], **({338: [extra]} if extra is not None else {}),
        339: [3 if floating else 1] * channels,
    }  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    pixels = after + sum(4 * len(each) for each in tags.values() if len(each) > 1)
    tags[273] = [pixels + sum(map(len, strips[:number])) for number in range(len(strips))]
    entries, data = b"", b""
    for tag, each in sorted(tags.items()):
        entries += struct.pack(f"{order}HHI", tag, 4, len(each))
        entries += struct.pack(f"{order}I", each[0] if len(each) == 1 else after + len(data))
        data += struct.pack(f"{order}{len(each)}I", *each) if len(each) > 1 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    path.write_bytes(
        head + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0) + data + b"".join(strips)
    )
    return path


def _packed(row: npt.NDArray[Any], bits: int, order: str) -> bytes:
    if row.dtype.kind == "f":
        return row.astype(f"{order}f{bits // 8}").tobytes()
    if bits >= 8 and bits % 8 == 0:
        return row.astype(f"{order}u{bits // 8}").tobytes()
    return np.packbits(row[:, None] >> np.arange(bits - 1, -1, -1) & 1).tobytes()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
