"""torch's checkpoints, read by a machine that knows what `torch.save` writes and can do nothing else.

`torch.load(weights_only=True)` keeps a pickle from running code, not from taking memory and time without end: a view
far beyond its storage, bytes that double with every call, a dictionary copied a thousand times, keys that take ages to
hash, a zip entry that inflates. Here tensors are views of what lies in the file, whatever else the file names is not
made, and the work grows with the file's own size.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from zoo_seg.hub.files import check_directory

MAX_STEPS = 500_000
"""Instructions of a pickle, and entries that are copied. PSPNet R-101 with AdamW's state needs 50,000."""
MAX_TEXT = 1000
"""Letters of a text that is kept: names and such. Logs and arrays are longer."""
MAX_DIMENSIONS = 8

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001

TakeStorage = Callable[[torch.dtype, str, int], Tensor]
"""(dtype, key, number of elements) -> the flat tensor that the container has under this key."""


class Refused(Exception):
    """The file must not be opened; the text says why. Any other exception means that it is damaged."""


@dataclass(frozen=True, slots=True)
class Inert:
    """What the file names and no tensor needs: a log, numpy's numbers, a dtype. Called, it stays as it is."""

    name: str

    def __call__(self, *arguments: object) -> Inert:
        return self


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint (zip or legacy) holds: tensors, plain values, and `Inert` for all else.

    Tensors of a zip are mapped from the file.

    Raises:
        Refused: it asks for code, or claims more than it has.
        Exception: of almost any kind, where it is damaged.
    """
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return _read_zip(path, content) if content[:2] == b"PK" else _read_legacy(content)


def plain(text: object) -> str:
    """What may have been written by a stranger, in a message: one line that can be printed, and not without end."""
    first = str(text).strip().partition("\n")[0]
    return "".join(letter if letter.isprintable() else "?" for letter in first[:300])


# --- containers ---------------------------------------------------------------------------------


def _read_zip(path: Path, content: mmap.mmap) -> Any:
    check_directory(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
    parts: dict[str, memoryview] = {}
    for entry in entries:
        name = entry.filename.removeprefix(prefix)
        if not entry.filename.startswith(prefix) or not _PART.fullmatch(name):
            raise Refused(f"it holds {entry.filename[:100]!r}; expected the parts of a torch checkpoint only")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Refused(f"its part {name!r} is compressed; torch stores them as they are")
        if name.casefold() in parts:  # torch's reader does not tell case
            raise Refused(f"it holds {name!r} twice")
        header = content[entry.header_offset : entry.header_offset + 30]
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        parts[name.casefold()] = memoryview(content)[start : start + entry.file_size]
        if len(parts[name.casefold()]) < entry.file_size:
            raise ValueError(f"{name!r} goes on beyond the end")
    if "data.pkl" not in parts:
        raise Refused("it is a zip file without 'data.pkl'; expected a torch checkpoint")
    if bytes(parts.get("byteorder", b"little")) != b"little":
        raise Refused("its numbers are not little-endian; save it again on another machine")

    @cache
    def take(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        part = parts.get(f"data/{key}".casefold())
        if part is None or len(part) != numel * dtype.itemsize:
            found = "that is missing" if part is None else f"of {len(part)} bytes"
            raise ValueError(f"a tensor claims {numel * dtype.itemsize} bytes in 'data/{key}' {found}")
        values = torch.frombuffer(part, dtype=torch.uint8)
        return (values if values.data_ptr() % dtype.itemsize == 0 else values.clone()).view(dtype)

    return _run(io.BytesIO(parts["data.pkl"]), take)


_PART = re.compile(
    r"data\.pkl|data/\w{1,40}|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
"""What `torch.save` writes below the archive's name."""


def _read_legacy(content: mmap.mmap) -> Any:
    if content[257:262] == b"ustar":
        raise Refused("it is a tar archive as well; expected a torch checkpoint")
    file = cast(IO[bytes], content)
    magic, version, system = (_run(file) for _ in range(3))
    if (magic, version) != (_MAGIC, _VERSION):
        raise Refused("it is a pickle, but not one of torch's; expected a torch checkpoint")
    if not system["little_endian"]:
        raise Refused("its numbers are not little-endian; save it again on another machine")
    storages: dict[str, Tensor] = {}
    left = len(content)

    @cache
    def take(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        nonlocal left
        if key in storages:
            raise ValueError(f"a tensor claims the storage {key!r} in another size")
        left -= 8 + numel * dtype.itemsize
        if left < 0:
            raise ValueError(f"its tensors claim {len(content) - left} bytes in a file of {len(content)}")
        storages[key] = torch.empty(numel, dtype=dtype)
        return storages[key]

    result = _run(file, take)
    keys = _run(file)
    if sorted(keys) != sorted(storages):
        raise ValueError("the list of storages names others than the tensors do")
    for key in keys:  # in the order in which they lie in the file
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storages[key].numel():
            raise ValueError(f"the storage {key!r} has {numel} values, its tensors {storages[key].numel()}")
        values = storages[key].view(torch.uint8)
        values.copy_(torch.frombuffer(bytearray(file.read(len(values))), dtype=torch.uint8))
    return result


# --- the pickle ---------------------------------------------------------------------------------


def _run(stream: IO[bytes], take: TakeStorage | None = None) -> Any:
    """Carry out one pickle, up to its end, with the calls of `_GLOBALS` and storages from `take`."""
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    steps = MAX_STEPS
    for opcode, argument, _ in pickletools.genops(stream):
        steps -= 1
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINSTRING":
                text = cast(str, argument)
                stack.append(text if len(text) <= MAX_TEXT else Inert("a long text"))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marked.append(stack)
                stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS":
                items, stack = stack, marked.pop()
                if opcode.name == "TUPLE":
                    stack.append(tuple(items))
                elif opcode.name == "APPENDS":
                    _only(list, stack[-1]).extend(items)
                else:
                    _put(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "APPEND":
                item = stack.pop()
                _only(list, stack[-1]).append(item)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], [(key, value)])
            case "BINPUT" | "LONG_BINPUT":
                memo[cast(int, argument)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[cast(int, argument)])
            case "GLOBAL":
                stack.append(_find(cast(str, argument)))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _only(tuple, stack.pop()), stack.pop()
                if not callable(function):  # as nothing is that does not come from `_find`
                    raise ValueError("a call of what is no function")
                steps -= sum(len(each) for each in arguments if isinstance(each, (list, dict)))  # may be copied
                stack.append(function(*arguments))
            case "BUILD":
                stack.pop()  # attributes, such as a state dict's `_metadata`
            case "BINPERSID" if take:
                match stack.pop():
                    case ("storage", torch.dtype() as dtype, str(key), _, int(numel), *rest) if numel > 0:
                        if rest not in ([], [None]):  # a view, in files of torch 0.3
                            raise Refused("it holds a storage that is part of another; save it with a newer torch")
                        stack.append(take(dtype, key, numel))
                    case _:
                        raise Refused("it refers to something other than the storage of a tensor with values")
            case name:
                raise Refused(f"it has the instruction {name}, which torch.save does not write there")
        if steps < 0:
            raise Refused(f"its pickle takes more than {MAX_STEPS} steps; expected tensors and a few plain values")
    return stack.pop()


def _only(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _put(target: Any, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Keys are hashed at once: tuples of tuples of tuples are not, and long numbers can be made to collide."""
    for key, value in items:
        if not isinstance(key, (str, type(None))) and not (isinstance(key, int) and -(1 << 31) <= key < 1 << 32):
            raise Refused(f"it has a {type(key).__name__} as a key; expected names and small numbers")
        _only(dict, target)[key] = value
    return cast(dict[Any, Any], target)


def _tensor(values: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`: a view within its storage, that has no value twice."""
    numbers = (offset, *_only(tuple, size), *_only(tuple, stride))
    if len(size) > MAX_DIMENSIONS or not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise Refused(f"a tensor of {len(size)} dimensions has a size or stride that is none")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if 0 in size:
        raise Refused(f"a tensor of the shape {size} is empty; expected values")
    if max(last + 1, prod(size)) > _only(Tensor, values).numel():
        raise Refused(f"a tensor of the shape {size} goes beyond its storage of {values.numel()} values")
    if len(others) > 2 and others[2]:  # a view that is negated when it is read
        raise Refused("a tensor is stored as another one's negative or conjugate; save a clone of it")
    tensor: Tensor = values.as_strided(size, stride, offset)
    return tensor


def _mapping(items: Any = ()) -> dict[Any, Any]:
    """Stands for `collections.OrderedDict` and `Counter`."""
    return _put({}, items.items() if isinstance(items, dict) else items)


def _dotted(name: str) -> str:
    return name.replace("__builtin__", "builtins").replace(" ", ".")  # Python 2's name, as torch.save writes it


_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_INERT = (
    "_codecs encode",  # bytes, in protocol 2
    "torch Size",
    "torch device",
    *(str(dtype).replace(".", " ") for dtype in _STORAGES.values()),
    # mmengine's logs, which hold methods of their class and numpy's arrays; numpy 2 renamed its own
    "mmengine.logging.history_buffer HistoryBuffer",
    "__builtin__ getattr",
    "numpy dtype",
    "numpy ndarray",
    *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
_GLOBALS: dict[str, Any] = {
    "collections OrderedDict": _mapping,
    "collections Counter": _mapping,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *others: data,
    **{f"torch {name}Storage": dtype for name, dtype in _STORAGES.items()},
    **{name: Inert(_dotted(name)) for name in _INERT},
}
"""All that a checkpoint may refer to, as `module name`, and what stands for it here."""
_OTHER_TENSORS = {
    "torch._utils _rebuild_sparse_tensor": "a sparse tensor; save tensor.to_dense()",
    "torch._utils _rebuild_meta_tensor_no_storage": "a tensor of the meta device, without values",
    "torch._utils _rebuild_qtensor": "a quantised tensor; save tensor.dequantize()",
}


def _find(name: str) -> Any:
    if name in _GLOBALS:
        return _GLOBALS[name]
    if name in _OTHER_TENSORS:
        raise Refused(f"it holds {_OTHER_TENSORS[name]}")
    if name.startswith(("torch ", "torch.")):
        raise Refused(f"it asks for {_dotted(name)}; expected dense tensors of an ordinary type")
    raise Refused(
        f"it asks for {_dotted(name)}, which could run code; expected tensors and plain values only. Ask its author "
        "for a safetensors file"
    )
