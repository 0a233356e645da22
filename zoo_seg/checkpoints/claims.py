"""What a torch checkpoint claims to hold, read with stand-ins for its tensors before torch makes real ones.

`weights_only=True` keeps a pickle from running code, not from asking for terabytes: a storage longer than the file, a
view beyond its storage, bytes that double with every call, a key that takes ages to hash, a zip entry that inflates.
Here nothing is made that does not lie in the file, and what torch would be asked to make is known beforehand.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

MAX_PICKLE = 16 << 20
"""Bytes of the pickle: names, shapes and plain values. PSPNet R-101 with AdamW's state needs 0.3 MB."""
MAX_STEPS = 500_000
"""Reads, about two for each of a pickle's instructions: they bound the objects made of it. That PSPNet needs 0.1 M."""
MAX_DIRECTORY = 4 << 20
"""Bytes of a zip's table of contents."""
MAX_DIMENSIONS = 8

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


class Refused(Exception):
    """The file must not be opened; the text says why."""


class Damaged(Refused):
    """It is not what was written once."""


class Unsafe(Refused):
    """It asks for this, which could run code."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Values in a part of the file."""

    key: str
    itemsize: int
    numel: int

    @property
    def nbytes(self) -> int:
        return self.itemsize * self.numel


@dataclass(frozen=True, slots=True)
class Claim:
    """A tensor: a view of a storage, within it, that has no value twice."""

    storage: Storage
    shape: tuple[int, ...]


def read_claims(path: Path) -> Any:
    """What the pickle in a checkpoint (zip or legacy) holds, with `Claim`s in the place of tensors.

    Raises:
        Refused: the file is damaged, asks for code, or claims more than it has.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
            return _read_zip(file) if start == b"PK" else _read_legacy(file)
    except Refused:
        raise
    except Exception as error:  # zipfile and pickle raise almost anything on damaged data
        raise Damaged(f"{type(error).__name__}: {plain(error)}") from None


def plain(text: object) -> str:
    """What may have been written by a stranger, in a message: one line that can be printed, and not without end."""
    first = str(text).strip().partition("\n")[0]
    return "".join(letter if letter.isprintable() else "?" for letter in first[:300])


# --- containers ---------------------------------------------------------------------------------


def _read_zip(file: BinaryIO) -> Any:
    size = file.seek(0, 2)
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
        parts: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = entry.filename.removeprefix(prefix)
            if not entry.filename.startswith(prefix) or not _PART.fullmatch(name):
                raise Refused(f"it holds {entry.filename[:100]!r}; expected the parts of a torch checkpoint only")
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise Refused(f"its part {name!r} is compressed; torch stores them as they are")
            if parts.setdefault(name.casefold(), entry) is not entry:  # torch's reader does not tell case
                raise Refused(f"it holds {name!r} twice")
        total = sum(entry.file_size for entry in entries)
        if total > size:
            raise Damaged(f"its parts claim {total} bytes in a file of {size}")
        if "data.pkl" not in parts:
            raise Refused("it is a zip file without 'data.pkl'; expected a torch checkpoint")
        if parts["data.pkl"].file_size > MAX_PICKLE:
            raise Refused(_TOO_LONG)
        reader = _Reader(_Steps(io.BytesIO(archive.read(parts["data.pkl"]))))
        content = reader.load()
    for storage in reader.storages.values():
        part = parts.get(f"data/{storage.key}".casefold())
        if part is None or part.file_size != storage.nbytes:
            found = f"of {part.file_size} bytes" if part else "that is missing"
            raise Damaged(f"a tensor claims {storage.nbytes} bytes in 'data/{storage.key}' {found}")
    return content


_PART = re.compile(
    r"data\.pkl|data/\w{1,40}|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
"""What `torch.save` writes below the archive's name."""


def check_directory(path: Path) -> None:
    """Look at a zip file before Python does, which reads all of its table of contents.

    Raises:
        Refused: it is longer than a checkpoint's, or not where torch puts it.
    """
    with path.open("rb") as file:
        _check_directory(file, file.seek(0, 2))


def _check_directory(file: BinaryIO, size: int) -> None:
    file.seek(max(size - 42, 0))
    tail = file.read(42)
    if len(tail) < 42 or tail[20:24] != b"PK\x05\x06" or tail[40:] != b"\0\0":
        raise Damaged("no end of a zip file")
    (length,) = struct.unpack("<I", tail[32:36])
    if tail[:4] == b"PK\x06\x07":  # zip64
        (at,) = struct.unpack("<Q", tail[8:16])
        if at != size - 42 - 56:
            raise Damaged("no zip64 record where its end is said to be")
        file.seek(at)
        record = file.read(56)
        if record[:4] != b"PK\x06\x06":
            raise Damaged("no zip64 record where its end is said to be")
        (length,) = struct.unpack("<40xQ8x", record)
    if length > MAX_DIRECTORY:
        raise Refused(f"its zip directory has {length} bytes; expected at most {MAX_DIRECTORY}")


def _read_legacy(file: BinaryIO) -> Any:
    size = file.seek(0, 2)
    file.seek(257)
    if file.read(5) == b"ustar":
        raise Refused("it is a tar archive as well; expected a torch checkpoint")
    file.seek(0)
    steps = _Steps(file)
    header = [_Reader(steps).load() for _ in range(3)]
    if header[:2] != [_MAGIC, _VERSION]:
        raise Refused("it is a pickle, but not one of torch's; expected a torch checkpoint")
    reader = _Reader(steps, legacy=True)
    content = reader.load()
    keys = _Reader(steps).load()
    total = sum(8 + storage.nbytes for storage in reader.storages.values())
    if total > size:
        raise Damaged(f"its tensors claim {total} bytes in a file of {size}")
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in reader.storages for key in keys):
        raise Damaged("the list of storages names others than the tensors do")
    return content


# --- the pickle ---------------------------------------------------------------------------------


_TOO_LONG = f"its pickle has more than {MAX_PICKLE} bytes; expected tensors and a few plain values"


class _Steps:
    """A file read no further than a checkpoint's pickle needs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._bytes, self._steps = file, MAX_PICKLE, MAX_STEPS

    def read(self, size: int) -> bytes:
        self._steps, self._bytes = self._steps - 1, self._bytes - size
        if self._steps < 0 or self._bytes < 0:
            self.spend(0)
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("a value goes on beyond the end")
        return data

    def readline(self) -> bytes:
        self.spend(1, 200)
        return self._file.readline(200)

    def spend(self, steps: int, size: int = 0) -> None:
        """Count what was read or made.

        Raises:
            Refused: it is too much.
        """
        self._steps, self._bytes = self._steps - steps, self._bytes - size
        if self._bytes < 0:
            raise Refused(_TOO_LONG)
        if self._steps < 0:
            raise Refused(f"its pickle takes more than {MAX_STEPS} steps; expected tensors and a few plain values")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What stands for the class of a storage."""

    itemsize: int


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Refused(f"a tensor has the {what} {_show(value)}; expected a whole number, not negative")
    return value


def _show(value: Any) -> str:
    """A value in a message; a tuple of tuples of tuples could be endless."""
    return repr(value)[:60] if isinstance(value, (str, int, float)) else f"of type {type(value).__name__}"


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Claim:
    """Stands for `torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Damaged("a tensor without storage, size or stride")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise Refused(
            f"a tensor has {len(size)} dimensions and {len(stride)} strides; expected at most {MAX_DIMENSIONS}"
        )
    shape = tuple(_whole(side, "size") for side in size)
    steps = [_whole(step, "stride") for step in stride]
    if 0 in shape:
        raise Refused(f"a tensor of the shape {shape} is empty; expected values")
    last = _whole(offset, "offset") + sum((side - 1) * step for side, step in zip(shape, steps, strict=True))
    if last >= storage.numel:
        raise Refused(f"a tensor of the shape {shape} goes beyond its storage of {storage.numel} values")
    if prod(shape) > storage.numel:
        raise Refused(f"a tensor of the shape {shape} has more values than its storage, {storage.numel}")
    return Claim(storage, shape)


def _parameter(data: Any, *others: Any) -> Any:
    """Stands for `torch._utils._rebuild_parameter`."""
    return data


def _encoded(text: Any, encoding: Any) -> bytes:
    """Stands for `_codecs.encode`, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused(f"it calls _codecs.encode with {_show(encoding)}; expected tensors and plain values only")
    return text.encode("latin1")


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Stands for `collections.OrderedDict` and `Counter`."""
    result: dict[Any, Any] = {}
    for argument in arguments:
        for key, value in argument.items() if isinstance(argument, Mapping) else argument:
            result[_key(key)] = value
    return result


def _size(sides: tuple[Any, ...]) -> tuple[Any, ...]:
    """Stands for `torch.Size`."""
    return sides


def _key(key: Any) -> Any:
    """A key that is hashed at once, as a tuple of tuples of tuples is not."""
    if not isinstance(key, (str, int, float, bytes, type(None))):
        raise Refused(f"it has a {type(key).__name__} as a key; expected names and numbers")
    return key


_SIZES = {
    "Double": 8,
    "Long": 8,
    "Float": 4,
    "Int": 4,
    "Half": 2,
    "BFloat16": 2,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_GLOBALS: Mapping[str, Any] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "_codecs.encode": _encoded,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": lambda *arguments: None,
    **{f"torch.{name}Storage": _Kind(size) for name, size in _SIZES.items()},
    **{f"torch.{name}": None for name in _DTYPES},
}
"""All that a checkpoint may refer to, and what stands for it here."""


class _Reader(pickle._Unpickler):  # the C one believes what LONG_BINPUT says about the size of its memo
    """The instructions that `torch.save` writes, and nothing but stand-ins to call."""

    stack: list[Any]
    if TYPE_CHECKING:

        def pop_mark(self) -> list[Any]: ...

    def __init__(self, steps: _Steps, *, legacy: bool = False) -> None:
        super().__init__(steps, encoding="utf-8")
        self._steps = steps
        self.storages: dict[str, Storage] = {}
        self._fields = 6 if legacy else 5

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's name, as torch.save writes it
        if full not in _GLOBALS:
            if module.partition(".")[0] == "torch":
                raise Refused(f"it asks for {plain(full)}; expected dense tensors of an ordinary type")
            raise Unsafe(plain(full))
        return _GLOBALS[full]

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) != self._fields or pid[0] != "storage":
            found = _show(pid[0]) if isinstance(pid, tuple) and pid else "nothing"
            raise Refused(f"it refers to something outside the pickle, {found}; expected the storage of a tensor")
        kind, key, numel = pid[1], pid[2], _whole(pid[4], "number of values")
        if not isinstance(kind, _Kind) or not isinstance(key, str) or pid[5:] not in ((), (None,)):
            raise Damaged("a storage without type or key")
        storage = Storage(key, kind.itemsize, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise Refused(f"it refers to its storage {key[:40]!r} with two sizes")
        return storage

    # The stack of `pickle._Unpickler`; its own versions of these would set attributes and hash what they are given.

    def _build(self) -> None:
        self.stack.pop()  # attributes such as `_metadata`, which torch's own reader sets

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([(key, value)])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._put(zip(items[::2], items[1::2], strict=True))

    def _put(self, items: Any) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise Damaged(f"entries of a {type(target).__name__}")
        target.update((_key(key), value) for key, value in items)

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: Any) -> None:
        if not isinstance(self.stack[-1], list):
            raise Damaged(f"items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if function not in _CALLED or not isinstance(arguments, tuple):
            raise Damaged("a call of what is no function")
        # What is called may copy what it is given, and one long value can be given to many calls.
        self._steps.spend(sum(len(each) for each in arguments if isinstance(each, (str, bytes, tuple, list, dict))))
        self.stack[-1] = function(*arguments)

    def _unusual(self) -> None:
        raise Refused("it has an instruction that torch.save does not write; expected tensors and plain values only")


_CALLED = [value for value in _GLOBALS.values() if callable(value)]
_PLAIN = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST EMPTY_DICT GLOBAL BINPERSID BINPUT LONG_BINPUT "
    "BINGET LONG_BINGET"
)
_OWN: Mapping[str, Callable[..., None]] = {
    "BUILD": _Reader._build,
    "SETITEM": _Reader._set_item,
    "SETITEMS": _Reader._set_items,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "REDUCE": _Reader._reduce,
}
_dispatch: dict[int, Any] = dict.fromkeys(range(256), _Reader._unusual)
for _name in _PLAIN.split():
    _dispatch[getattr(pickle, _name)[0]] = pickle._Unpickler.dispatch[getattr(pickle, _name)[0]]
for _name, _function in _OWN.items():
    _dispatch[getattr(pickle, _name)[0]] = _function
_Reader.dispatch = _dispatch
