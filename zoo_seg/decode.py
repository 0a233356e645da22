"""JSON decoded into dataclasses: their annotations are the schema.

What they do not name is refused, and a mistake is reported with its path and line in the file. The file may be
anybody's: its length, its numbers and the letters of its strings are bounded, so that it can be read, kept and shown.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypeVar

from zoo_seg.errors import ManifestError

T = TypeVar("T")

MAX_BYTES = 4 << 20
"""Of a file; Python needs about 30 times as much for what is in it."""
_MAX_DIGITS = 20
"""Of a whole number; a time in nanoseconds has 19."""
_MAX_DEPTH = 8
"""Of the options of a network."""
_MAX_SHOWN = 500
"""Letters of a message that come from the file."""


@dataclass(frozen=True)
class Document:
    """A file of JSON, kept as text as well, so that a mistake found later is reported with its line."""

    path: Path
    text: str
    raw: Any

    def error(self, mistake: Mistake) -> ManifestError:
        """The mistake with file, line and path."""
        line = f":{_line_of(self.text, mistake.path)}" if mistake.path else ""
        message = mistake.message if len(mistake.message) <= _MAX_SHOWN else f"{mistake.message[:_MAX_SHOWN]}..."
        return ManifestError(f"{self.path}{line}: {_dotted(mistake.path)}: {message}")


def open_json(path: Path) -> Document:
    """The JSON in a file.

    Raises:
        ManifestError: the file cannot be read or is not JSON as a manifest may have it.
    """
    text = _read_text(path)
    try:
        raw = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_int=_whole_number, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except _Duplicate:
        key, number = _find_duplicate(text)
        raise ManifestError(f"{path}:{number}: the key {key[:60]!r} stands twice in one object") from None
    except _Number as error:
        raise ManifestError(f"{path}: {error}") from None
    except RecursionError:
        raise ManifestError(f"{path}: nested too deeply for a manifest") from None
    return Document(path, text, raw)


def read_json(path: Path, decode_all: Callable[[Any], T]) -> T:
    """What `decode_all` makes of the JSON in a file.

    Raises:
        ManifestError: with file, line and path of the first mistake, a `Mistake` of `decode_all` among them.
    """
    document = open_json(path)
    try:
        return decode_all(document.raw)
    except Mistake as mistake:
        raise document.error(mistake) from None


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ManifestError(f"{path}: more than {MAX_BYTES >> 20} MiB; expected a manifest (JSON) of less")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as UTF-8 text ({error}); expected a manifest (JSON)") from None


class _Number(Exception):
    """A number that JSON allows or Python adds, and nobody means."""


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _Number(f"a number of {len(digits)} digits, expected at most {_MAX_DIGITS}")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise _Number(f"{name} is not valid JSON; expected a number")


class Mistake(Exception):
    """A mistake at a place given by keys and indices; becomes a ManifestError with file and line."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.message, self.path = message, path

    def below(self, *path: str | int) -> Mistake:
        """The same mistake, seen from further up in the file."""
        self.path = (*path, *self.path)
        return self


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}

Shared = Mapping[type, Mapping[str, Any]]
"""Records that stand in a file once, by type and name: where one is expected, its name will do."""


def decode(
    kind: Any,
    value: Any,
    path: tuple[str | int, ...] = (),
    known: Mapping[str, Any] | None = None,
    shared: Shared | None = None,
) -> Any:
    """Return `value` as `kind`; `known` fields of a dataclass are filled in by us and refused in the file.

    Raises:
        Mistake: below `path`.
    """
    try:
        return _record(kind, value, known, shared or {}) if known else _decoder(kind)(value, shared or {})
    except Mistake as mistake:
        raise mistake.below(*path) from None


_Decoder = Callable[[Any, Shared], Any]


@cache
def _decoder(kind: Any) -> _Decoder:
    """What decodes a value of this type; made once, since a manifest has thousands of them."""
    if is_dataclass(kind):
        return lambda value, shared: _record(kind, value, {}, shared)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return _union(arguments)
    if origin is Literal:
        return _literal(arguments)
    if origin is tuple:
        return _list(_decoder(arguments[0])) if arguments[-1] is Ellipsis else _tuple(arguments)
    if origin is Mapping:
        return _plain_object
    return _scalar(kind)


def _union(arguments: tuple[Any, ...]) -> _Decoder:
    options = [option for option in arguments if option is not type(None)]
    nullable, only = len(options) < len(arguments), _decoder(options[0]) if len(options) == 1 else None

    def run(value: Any, shared: Shared) -> Any:
        if value is None and nullable:
            return None
        if only is not None:
            return only(value, shared)
        if type(value) in options:
            return value
        raise Mistake(f"found {show(value)}, expected {' or '.join(_NAMES[option] for option in options)}")

    return run


def _literal(arguments: tuple[Any, ...]) -> _Decoder:
    def run(value: Any, shared: Shared) -> Any:
        if value in arguments:
            return value
        raise Mistake(f"found {show(value)}, expected one of {', '.join(map(repr, arguments))}")

    return run


def _items(value: Any, each: Iterable[_Decoder], shared: Shared) -> tuple[Any, ...]:
    result: list[Any] = []
    try:
        for decoder, item in zip(each, value, strict=False):
            result.append(decoder(item, shared))
    except Mistake as mistake:
        raise mistake.below(len(result)) from None
    return tuple(result)


def _list(each: _Decoder) -> _Decoder:
    def run(value: Any, shared: Shared) -> Any:
        if not isinstance(value, list):
            raise Mistake(f"found {show(value)}, expected a list")
        return _items(value, repeat(each), shared)

    return run


def _tuple(arguments: tuple[Any, ...]) -> _Decoder:
    decoders = [_decoder(argument) for argument in arguments]

    def run(value: Any, shared: Shared) -> Any:
        if not isinstance(value, list):
            raise Mistake(f"found {show(value)}, expected a list")
        if len(value) != len(decoders):
            raise Mistake(f"found {len(value)} items, expected {len(decoders)}")
        return _items(value, decoders, shared)

    return run


def _scalar(kind: Any) -> _Decoder:
    def run(value: Any, shared: Shared) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise Mistake(f"found {show(value)}, expected {_NAMES[kind]}")
        if kind is float and not math.isfinite(value):
            raise Mistake("found a number that is too large")
        if kind is str and not _is_text(value):
            raise Mistake(f"found {show(value)}, expected text without control characters")
        return value

    return run


def _plain_object(value: Any, shared: Shared) -> Any:
    if not isinstance(value, dict):
        raise Mistake(f"found {show(value)}, expected an object")
    _check_plain(value)
    return value


def _check_plain(value: Any, depth: int = 0) -> None:
    """An object whose keys the manifest does not know holds short JSON all the same."""
    if depth > _MAX_DEPTH:
        raise Mistake("nested too deeply for an option")
    pairs: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    elif value is not None:
        kind: Any = type(value)
        _decoder(kind)(value, {})
    for step, item in pairs:
        if isinstance(step, str) and not _is_text(step):
            raise Mistake(f"found the key {show(step)}, expected text without control characters")
        try:
            _check_plain(item, depth + 1)
        except Mistake as mistake:
            raise mistake.below(step) from None


@cache
def _fields(cls: Any) -> tuple[dict[str, _Decoder], tuple[str, ...]]:
    """A decoder for each field of a dataclass, and the fields without a default."""
    hints, each = typing.get_type_hints(cls), fields(cls)
    required = tuple(one.name for one in each if one.default is MISSING and one.default_factory is MISSING)
    return {one.name: _decoder(hints[one.name]) for one in each}, required


def _record(cls: Any, value: Any, known: Mapping[str, Any], shared: Shared) -> Any:
    if cls in shared and isinstance(value, str):
        if value not in shared[cls]:
            raise Mistake(f"nothing is named {show(value)}; {suggest(value, shared[cls])}")
        return shared[cls][value]
    if not isinstance(value, dict):
        raise Mistake(f"found {show(value)}, expected an object")
    decoders, required = _fields(cls)
    for key in value:
        if key not in decoders or key in known:
            raise Mistake(f"unknown key; {suggest(key, [name for name in decoders if name not in known])}", key)
    for name in required:
        if name not in value and name not in known:
            raise Mistake(f"the key {name!r} is missing")
    arguments = dict(known)
    for key, item in value.items():
        try:
            arguments[key] = decoders[key](item, shared)
        except Mistake as mistake:
            raise mistake.below(key) from None
    try:
        return cls(**arguments)
    except ValueError as error:
        raise Mistake(str(error)) from None


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _is_text(value: str) -> bool:
    """Whether a terminal only shows it, and a file can hold it (half of a surrogate pair it cannot)."""
    return value.isprintable() or not _CONTROL.search(value)


def show(value: Any) -> str:
    """A value in a message: as JSON, in ASCII, and not without end."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the near ones there are, or all of them."""
    import difflib  # for a mistake only

    known = list(known)
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.75)
    close = close or [each for each in known if name and (name in each or name.startswith(each))]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known are {', '.join(known)}" if known else "none is known"


class _Duplicate(Exception):
    """A key stands twice in one object, which JSON allows and nobody means."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _Duplicate
    return result


def _find_duplicate(text: str) -> tuple[str, int]:
    """The first key that stands twice in one object, and the line where it does so the second time."""
    seen: list[set[str]] = []
    for token in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}\[\]]', text):
        if token[0] in "{[":
            seen.append(set())
        elif token[0] in "}]":
            seen.pop()
        elif token[2]:
            key: str = json.loads(token[1])
            if key in seen[-1]:
                return key, text.count("\n", 0, token.start()) + 1
            seen[-1].add(key)
    raise AssertionError("called for a text without duplicates")


def _line_of(text: str, path: tuple[str | int, ...]) -> int:
    """The 1-based line at which the value at `path` starts (its deepest existing ancestor)."""
    return text.count("\n", 0, locate(text, path)[0]) + 1


def locate(text: str, path: tuple[str | int, ...]) -> tuple[int, int, int]:
    """Where in a valid JSON text the value at `path` stands, or its deepest existing ancestor.

    Returns:
        Its first position, the position after it, and how many steps of `path` were found.
    """
    decoder = json.JSONDecoder()
    skip = re.compile(r"[\s:,]*").match

    def after_space(position: int) -> int:
        match = skip(text, position)
        return match.end() if match else position

    position, depth = after_space(0), 0
    for step in path:
        cursor, found, index = after_space(position + 1), False, 0
        while text[position] in "{[" and text[cursor] not in "]}":
            if text[position] == "{":
                key, cursor = decoder.raw_decode(text, cursor)
                cursor, found = after_space(cursor), key == step
            else:
                found, index = index == step, index + 1
            if found:
                break
            cursor = after_space(decoder.raw_decode(text, cursor)[1])
        if not found:
            break
        position, depth = cursor, depth + 1
    return position, decoder.raw_decode(text, position)[1], depth


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"\w{1,100}", step):
            text += f".{step}" if text else step
        else:
            text += f"[{show(step)}]"
    return text or "the top level"
