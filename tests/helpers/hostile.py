"""Weight files that want to do harm: small, each made of a claim that is not true.

Pickles are put together by naming what the reader is to call: `Call(function, *arguments)`, `Stored(...)` for a
storage. Nothing here is called while the file is written.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

MAGIC = 0x1950A86A20F9469CFC6C
TERA = 1 << 40
NAME = "head.classifier.weight"


class Call:
    """`function(*arguments)` when the pickle is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments, self.state


class Stored:
    """A storage: `numel` values of a type, in the container's part `key`."""

    def __init__(self, numel: Any, key: str = "0", kind: Any = torch.FloatStorage) -> None:
        self.numel, self.key, self.kind = numel, key, kind


def tensor(numel: Any, size: Any = None, stride: Any = None, offset: Any = 0, **storage: Any) -> Call:
    """A view (size, stride, offset) of a storage of `numel` values."""
    size = (numel,) if size is None else size
    return Call(
        torch._utils._rebuild_tensor_v2,
        Stored(numel, **storage),
        offset,
        size,
        (1,) * len(size) if stride is None else stride,
        False,
        OrderedDict(),
    )


class _Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Stored):
            return ("storage", value.kind, value.key, "cpu", value.numel, *([None] if self.legacy else []))
        return None


def pickled(content: Any, *, legacy: bool = False, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol)
    pickler.legacy = legacy
    pickler.dump(content)
    return buffer.getvalue()


def zipped(content: Any, parts: Mapping[str, bytes] | None = None, *, deflated: bool = False) -> bytes:
    """torch's zip container; `content` may be the bytes of a pickle."""
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickled(content))
        archive.writestr("archive/byteorder", "little")
        for name, part in ({"data/0": bytes(64)} if parts is None else parts).items():
            archive.writestr(f"archive/{name}", part)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def legacy(content: Any, parts: Mapping[str, bytes] | None = None, *, counts: Mapping[str, int] | None = None) -> bytes:
    """torch's container before 1.6: five pickles, then the storages' values."""
    parts = {"0": bytes(64)} if parts is None else parts
    body = content if isinstance(content, bytes) else pickled(content, legacy=True)
    pickles = [pickle.dumps(MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2), body]
    pickles.append(pickle.dumps(sorted(parts), 2))
    values = b"".join(
        struct.pack("<q", (counts or {}).get(key, len(parts[key]) // 4)) + parts[key] for key in sorted(parts)
    )
    return b"".join(pickles) + values


def safetensors(header: Mapping[str, Any] | bytes, values: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def entry(shape: list[Any], begin: Any = 0, end: Any = None, dtype: str = "F32") -> dict[str, Any]:
    """A tensor in the header of a safetensors file."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, 4 * int(np.prod(shape)) if end is None else end]}


def execute(command: str = "touch executed") -> Call:
    return Call(os.system, command)


def _repeat(opcodes: bytes, count: int) -> bytes:
    return b"\x80\x02" + opcodes * count + b"."


def _hexed(times: int) -> bytes:
    """A bytes value that doubles with each call of `_codecs.encode`, which torch's reader allows."""
    start = b"\x80\x02c_codecs\nencode\n" + b"X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R"
    return start + b"".join(b"q\x00c_codecs\nencode\nh\x00X\x03\x00\x00\x00hex\x86R" for _ in range(times)) + b"."


def _hashed(depth: int) -> bytes:
    """A tuple of a tuple twice, and so on: small in memory, endless to hash, here as a key."""
    return b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * depth + b"K\x01s."


def _colliding(count: int) -> bytes:
    """A dictionary whose keys all have the hash 0."""
    prime = (1 << 61) - 1
    return b"}(" + b"".join(b"\x8a\x0a" + (prime * i).to_bytes(10, "little") + b"N" for i in range(count)) + b"u"


def copied_states(keys: int, times: int) -> bytes:
    """One long dictionary as the attributes of many empty ones."""
    names = b"".join(b"X\x05\0\0\0%05dN" % i for i in range(keys))
    attributes = b"}(" + names + b"ur\xf0\0\0\0"
    return b"(ccollections\nOrderedDict\nr\xf1\0\0\0" + attributes + b"j\xf1\0\0\0)Rj\xf0\0\0\0b" * times + b"t"


def beside(value: bytes, *, legacy: bool = False) -> bytes:
    """A pickle of weights that are as they should be, with the value of these instructions beside them."""
    weights = pickled({NAME: tensor(16, (4, 4), (4, 1))}, legacy=legacy)[2:-1]
    return b"\x80\x02}(X\x05\0\0\0model" + weights + b"X\x05\0\0\0other" + value + b"u."


_GETATTR = (
    b"\x80\x02}X\x01\0\0\0ac__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\n"
    b"X\x0b\0\0\0__globals__\x86Rs."
)


def _tar_and_pickle() -> bytes:
    """A legacy file that is a tar archive as well, which torch would unpack."""
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("storages")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"data"))
    raw = bytearray(buffer.getvalue())
    raw[:100] = (pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2)).ljust(100, b"\0")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


def pickles() -> dict[str, tuple[bytes, str]]:
    """Of torch's containers: name -> the file, and what the refusal must say (a pattern)."""
    good = tensor(16, (4, 4), (4, 1))
    cases: dict[str, tuple[bytes, str]] = {}

    def both(name: str, content: Any, says: str, **parts: Any) -> None:
        cases[f"{name}.zip.pth"] = zipped(content, **parts), says
        cases[f"{name}.legacy.pth"] = legacy(content), says

    for name, content, says in (
        ("executes", {NAME: execute()}, "posix.system"),
        ("evaluates", {NAME: Call(eval, "1+1")}, "builtins.eval"),
        ("imports", {NAME: Call(__import__, "antigravity")}, "builtins.__import__"),
        ("unknown_global", b"\x80\x02cnowhere.at.all\nThing\n.", "nowhere.at.all.Thing"),
        ("terabyte_storage", {NAME: tensor(TERA)}, "claims? 4398046511"),
        ("terabyte_view", {NAME: tensor(16, (TERA,))}, "beyond"),
        ("terabyte_strides", {NAME: tensor(16, (4, 4), (TERA, 1))}, "beyond"),
        ("terabyte_expanded", {NAME: tensor(16, (1 << 20, 1 << 20), (0, 0))}, "beyond"),
        ("far_offset", {NAME: tensor(16, (4,), (1,), TERA)}, "beyond"),
        ("negative_offset", {NAME: tensor(16, (4,), (1,), -4)}, "size or stride"),
        ("negative_size", {NAME: tensor(16, (-4,), (1,))}, "size or stride"),
        ("negative_stride", {NAME: tensor(16, (4,), (-1,))}, "size or stride"),
        ("empty_and_huge", {NAME: tensor(16, (1 << 40, 0, 1, 1))}, "empty"),
        ("many_dimensions", {NAME: tensor(16, (1,) * 1000)}, "dimensions"),
        ("no_numbers", {NAME: tensor(16, ("a",), (1,))}, "size or stride"),
        ("strides_missing", {NAME: tensor(16, (4, 4), (1,))}, "damaged"),
        ("shared", {NAME: good, "head.classifier.bias": good}, "share"),
        ("overlapping", {NAME: tensor(16, (8,)), "b": tensor(16, (8,), (1,), 4)}, "share"),
        (
            "sparse",
            {NAME: Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, ())},
            "sparse tensor; save tensor.to_dense",
        ),
        (
            "quantised",
            {NAME: Call(torch._utils._rebuild_qtensor, Stored(16, kind=torch.QInt8Storage))},
            "quantised tensor",
        ),
        (
            "without_values",
            {NAME: Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (4,), (1,), False)},
            "tensor of the meta device",
        ),
        ("complex", {NAME: tensor(8, kind=torch.ComplexFloatStorage)}, "ComplexFloatStorage"),
        ("terabyte_bytes", {"a": Call(bytearray, TERA)}, "builtins.bytearray"),
        ("doubling_bytes", _hexed(40), "holds a _codecs.encode|names others"),
        ("endless_hash", _hashed(60), "key"),
        ("colliding_keys", beside(_colliding(30_000)), "int as a key"),
        ("memo_of_4_billion", _repeat(b"]r\xff\xff\xff\xff", 1), "holds a list|names others"),
        ("many_lists", _repeat(b"]", 100_000), "list"),
        ("endless_lists", _repeat(b"]", 1_000_000), "steps"),
        ("string_of_4_gigabytes", b"\x80\x02X\xff\xff\xff\xffabc.", "damaged"),
        (
            "terabyte_array",
            {NAME: Call(np._core.multiarray._reconstruct, np.ndarray, (TERA,), b"b")},  # type: ignore[attr-defined]
            "_reconstruct|names others",
        ),
        ("reaches_for_code", {NAME: Call(getattr, Call(getattr, dict, "get"), "__globals__")}, "builtins.dict"),
        ("reaches_into_a_log", _GETATTR, "builtins.getattr|names others"),
        (
            "class_changed",
            b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
            "OrderedDict|holds|damaged",
        ),
    ):
        both(name, content, says)

    big = bytes(1 << 26)
    cases["zip_bomb.pth"] = zipped({NAME: tensor(1 << 24)}, {"data/0": big}, deflated=True), "compressed"
    cases["nested_archive.pth"] = zipped({NAME: good}, {"data/0": bytes(64), "inner.zip": zipped({}, {})}), "inner.zip"
    cases["way_out.pth"] = zipped({NAME: good}, {"data/0": bytes(64), "../../out": b"x"}), r"\.\./out"
    cases["script.pth"] = (
        zipped({NAME: good}, {"data/0": bytes(64), "code/a.py": b"x", "constants.pkl": b"N."}),
        "code/a.py",
    )
    cases["twice.pth"] = zipped({NAME: good}, {"data/0": bytes(64), "DATA/0": bytes(64)}), "twice"
    cases["part_missing.pth"] = zipped({NAME: good}, {}), "data/0"
    cases["part_short.pth"] = zipped({NAME: good}, {"data/0": bytes(32)}), "32 bytes"
    cases["part_elsewhere.pth"] = zipped({NAME: tensor(16, key="../data.pkl")}), r"data\.pkl"
    cases["part_unprintable.pth"] = zipped({NAME: tensor(16, key="0\x1b[2J")}), r"'data/0\?\[2J' that is missing"
    cases["legacy_counts.pth"] = legacy({NAME: good}, counts={"0": TERA}), "damaged"
    cases["legacy_module.pth"] = (
        legacy(b"\x80\x02(X\x06\x00\x00\x00moduleNX\x01\x00\x00\x00aX\x01\x00\x00\x00btQ."),
        "module",
    )
    cases["tar.pth"] = _tar_and_pickle(), "tar"
    cases["protocol_5.pth"] = zipped(pickled({"a": bytearray(8)}, protocol=5)), "instruction|damaged"
    cases["directory_far.pth"] = _directory_far(zipped({NAME: good})), "damaged|directory"
    cases["crowded.pth"] = _crowded(100_000), "directory"
    return cases


def _directory_far(archive: bytes) -> bytes:
    """A zip whose end record points behind the file."""
    at = archive.rindex(b"PK\x05\x06")
    return archive[: at + 16] + b"\xff\xff\xff\x7f" + archive[at + 20 :]


def _crowded(count: int) -> bytes:
    """A zip of nothing but a table of contents."""
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 3, 0) + b"a/b"
    central = (
        struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0) + b"a/b"
    )
    directory = central * count
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), len(local), 0)
    return local + directory + end


def headers() -> dict[str, tuple[bytes, str]]:
    """Safetensors files with false headers."""
    one = entry([4])
    return {
        f"{name}.safetensors": (content, says)
        for name, content, says in (
            ("outside", safetensors({NAME: entry([4], 0, 1 << 40)}, bytes(16)), "whole"),
            ("too_short", safetensors({NAME: entry([1 << 20])}, bytes(16)), "whole"),
            ("behind", safetensors({NAME: one}, bytes(1000)), "whole"),
            ("overlap", safetensors({NAME: one, "b": entry([4], 8, 24)}, bytes(24)), "whole"),
            ("shared", safetensors({NAME: one, "b": one}, bytes(16)), "whole"),
            ("hole", safetensors({NAME: one, "b": entry([4], 32, 48)}, bytes(48)), "whole"),
            ("negative_shape", safetensors({NAME: entry([-4], 0, 16)}, bytes(16)), "whole"),
            ("negative_offset", safetensors({NAME: entry([4], -16, 0)}, bytes(16)), "whole"),
            ("overflow", safetensors({NAME: entry([1 << 62, 1 << 62], 0, 0)}), "whole|empty"),
            ("empty_and_huge", safetensors({NAME: entry([1 << 40, 0, 1, 1], 0, 0)}), "empty"),
            ("fraction", safetensors({NAME: entry([4.5], 0, 16)}, bytes(16)), "whole"),
            ("unknown_type", safetensors({NAME: entry([4], dtype="F33")}, bytes(16)), "whole"),
            ("type_of_8_bits", safetensors({NAME: entry([16], 0, 16, "F8_E4M3")}, bytes(16)), "float8_e4m3fn"),
            ("complex", safetensors({NAME: entry([2], 0, 16, "C64")}, bytes(16)), "complex64"),
            ("metadata", safetensors({"__metadata__": {"a": 1}, NAME: one}, bytes(16)), "whole"),
            ("no_object", safetensors(b"{[]}"), "whole"),
            ("header_of_terabytes", safetensors({NAME: one}, bytes(16), length=TERA), "header"),
            ("header_of_8_megabytes", safetensors(b"{" + b" " * (1 << 23) + b"}"), "header"),
            ("deep", safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "whole"),
            ("names_twice", safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(one).encode(),) * 2), bytes(16)), "twice"),
            ("no_utf8", safetensors(b'{"\xff":%b}' % json.dumps(one).encode(), bytes(16)), "whole"),
            ("nothing", safetensors({}), "nothing|none"),
        )
    }
